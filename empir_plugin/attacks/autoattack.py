"""AutoAttack, part by part, on any surrogate: success is the model's own decision, and its warnings are kept as data.

The suite and its result come first, then the model that AutoAttack sees, the model that skips broken images, and the
parts of AutoAttack as attacks of their own.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import pyautoattack
import torch
import torch.nn.functional as F
from pyautoattack.checks import check_square_sr
from torch import Tensor

from empir_plugin._compat.observe import collect_autoattack_flags, contiguous_gradient, isolate_autoattack_state
from empir_plugin.attacks.batch import NO_GRADIENT, Batch, freeze_parameters, view
from empir_plugin.attacks.losses import margin
from empir_plugin.attacks.suite_progress import OnSuiteProgress, SuiteMeter
from empir_plugin.attacks.surrogates import Model, Surrogate, View, plain
from empir_plugin.attacks.threat import L2, Threat, check_threat
from empir_plugin.errors import EvaluationError, InputError

_STANDARD_QUERIES = 5000
_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
        "rand": ("apgd-ce", "apgd-dlr"),
    }
)
# The smallest number of classes for which a part's loss is defined.
_FEWEST_CLASSES: Mapping[str, int] = MappingProxyType(
    {"apgd-ce": 2, "apgd-dlr": 3, "fab": 2, "square": 2, "apgd-t": 4, "fab-t": 2}
)
_FEWEST_ROWS = 5


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """The result of a run of AutoAttack.

    Args:
        images: Adversarial images ``(N, C, H, W)``; images that are robust to all parts are unchanged.
        robust: For ``"clean"`` and then for each part, which images ``(N,)`` were still classified correctly after it.
        flags: AutoAttack's warnings about the model or the evaluation, each once.
    """

    images: Tensor
    robust: Mapping[str, Tensor]
    flags: tuple[str, ...]

    @property
    def accuracy(self) -> dict[str, float]:
        """Share of images still classified correctly, ``"clean"`` and after each part."""
        return {part: robust.double().mean().item() for part, robust in self.robust.items()}


@dataclass(frozen=True)
class AutoAttackSuite:
    """AutoAttack, https://arxiv.org/abs/2003.01690; each part attacks the images that earlier parts did not break.

    With the same seed, images and batch size, its verdicts are those of pyautoattack's ``run_standard_evaluation``; the
    first adversarial image found is returned, and broken images cost no further passes. AutoAttack's random numbers
    depend on the batch, not on the image: other batch or shard sizes give other, equally valid results.

    Args:
        version: ``"standard"`` (as on the RobustBench leaderboard), ``"plus"`` or ``"rand"`` (for randomised models).
        attacks: Run only these parts, in this order, with the version's settings; all parts of the version if empty.
        surrogate: Supplies logits and gradients. Success is always the model's own decision: the logit of the class
            the model decides for is raised, by a constant, above the surrogate's other logits.
        batch_size: Images per batch.
        queries: Number of queries of the Square attack.

    Raises:
        InputError: If the version or a part is unknown, or ``batch_size`` or ``queries`` is below 1.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
        >>> x = torch.rand(2, 3, 2, 2)
        >>> suite = AutoAttackSuite(attacks=("apgd-ce",))
        >>> suite.run(model, x, model(x).argmax(1), Threat.parse("Linf:8/255")).accuracy["clean"]
        1.0
    """

    algorithm_version: ClassVar[int] = 1

    version: str = "standard"
    attacks: tuple[str, ...] = ()
    surrogate: Surrogate = plain
    batch_size: int = 250
    queries: int = _STANDARD_QUERIES

    def __post_init__(self) -> None:
        if self.version not in _PARTS:
            raise InputError(f"version must be one of {', '.join(_PARTS)}, got {self.version!r}")
        unknown = [part for part in self.attacks if part not in _FEWEST_CLASSES]
        if unknown:
            raise InputError(f"attacks must be some of {', '.join(_FEWEST_CLASSES)}, got {', '.join(unknown)}")
        if self.batch_size < 1 or self.queries < 1:
            raise InputError(f"batch_size and queries must be 1 or more, got {self.batch_size} and {self.queries}")

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts that run, in order."""
        return self.attacks or _PARTS[self.version]

    @property
    def kind(self) -> str:
        """What a run record calls this kind of attack.

        ``"autoattack-standard"`` is AutoAttack as on the RobustBench leaderboard: the version ``"standard"`` with all
        its parts and 5,000 queries, on the model's own output; in batches of any size, which changes the random numbers
        only. Everything else is ``"autoattack"``.

        Example:
            >>> AutoAttackSuite().kind, AutoAttackSuite(queries=100).kind
            ('autoattack-standard', 'autoattack')
        """
        whole = self.version == "standard" and self.parts == _PARTS["standard"] and self.queries == _STANDARD_QUERIES
        return "autoattack-standard" if whole and self.surrogate == plain else "autoattack"

    def undefined_parts(self, num_classes: int, image_shape: Sequence[int], threat: Threat) -> dict[str, str]:
        """The parts that cannot run on such data, each with the reason.

        Args:
            num_classes: K.
            image_shape: ``(C, H, W)``.
            threat: Norm and radius.

        Example:
            >>> AutoAttackSuite().undefined_parts(3, (3, 32, 32), Threat.parse("Linf:8/255"))
            {'apgd-t': 'needs at least 4 classes, got 3'}
        """
        undefined = {}
        for part in self.parts:
            if num_classes < _FEWEST_CLASSES[part]:
                undefined[part] = f"needs at least {_FEWEST_CLASSES[part]} classes, got {num_classes}"
            elif part == "square" and isinstance(threat.norm, L2) and image_shape[1] < _FEWEST_ROWS:
                # pyautoattack 0.2.0 lays tiles of a fifth of the rows over the image, and divides by their size.
                undefined[part] = f"needs images of at least {_FEWEST_ROWS} rows under L2, got {image_shape[1]}"
        return undefined

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """Attack a batch, with the interface of every attack; ``run`` returns more.

        Returns:
            Adversarial images ``(N, C, H, W)``; images the attack does not break are returned unchanged.
        """
        return self.run(model, x, y, threat, seed=seed).images

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        on_progress: OnSuiteProgress | None = None,
    ) -> AutoAttackResult:
        """Attack a batch and return the result of every part.

        Args:
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
            x: Images ``(N, C, H, W)``, float32, in [0, 1].
            y: True labels ``(N,)``.
            threat: Norm and radius the perturbations must respect.
            seed: Seed of every part.
            on_progress: Called at every part, batch and restart, and a few times a second in between.

        Raises:
            InputError: If a tensor is invalid, the radius is infinite, or there are too few classes.
            EvaluationError: If a logit is NaN, or there is no gradient for a part that needs one.
        """
        batch = Batch.of(x, y)
        _check(batch, threat)
        meter: list[SuiteMeter] = []  # It needs AutoAttack's objects, which need the model.
        wrapped = _wrap(model, self.surrogate, lambda: [each.count_call() for each in meter])
        with freeze_parameters(model), _isolate(x.device) as flags:
            robust = self._classified_correctly(wrapped, batch)
            images = x.detach().clone(memory_format=torch.contiguous_format)
            robust_after = {"clean": robust.clone()}
            adversary = self._adversary(model, wrapped, batch, threat, seed) if robust.any() else None
            if adversary is not None and on_progress is not None:
                meter.append(SuiteMeter(self.parts, adversary, len(batch), on_progress))
            for index, part in enumerate(self.parts):
                if robust.any():
                    for each in meter:
                        each.begin_part(index, int(robust.sum()), self.batch_size)
                    self._run_part(part, adversary, batch, robust, images)
                robust_after[part] = robust.clone()
            result = AutoAttackResult(images, MappingProxyType(robust_after), ())
            check_square_sr(result.accuracy, logger=logging.getLogger("auto-attack"))
        return AutoAttackResult(images, result.robust, tuple(dict.fromkeys(filter(self._is_relevant, flags))))

    def _is_relevant(self, flag: str) -> bool:
        """Whether a flag is about a part that runs: AutoAttack always warns about the targeted DLR loss."""
        return "apgd-t" in self.parts or "targeted DLR" not in flag

    @torch.no_grad()
    def _classified_correctly(self, wrapped: Model, batch: Batch) -> Tensor:
        """Which clean images ``(N,)`` the model classifies correctly."""
        robust = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
        for rows in batch.rows.split(self.batch_size):
            chunk = batch.keep(rows)
            logits = wrapped(chunk.x)
            chunk.check_logits(logits)
            robust[rows] = ~chunk.fooled(logits.argmax(1))
        return robust

    def _adversary(self, model: Model, wrapped: Model, batch: Batch, threat: Threat, seed: int) -> Any:
        """AutoAttack's own object, with this suite's settings."""
        names: dict[str, Any] = {"version": self.version, "norm": str(threat.norm)}
        attacked: Any = wrapped
        adversary = pyautoattack.AutoAttack(attacked, device=batch.x.device, eps=threat.eps, seed=seed, **names)
        square: Any = adversary.square
        square.n_queries = self.queries
        if self.surrogate != plain:
            square.margin_and_loss = _margin_and_loss(self.surrogate, model)
        for apgd in (adversary.apgd, adversary.apgd_targeted):
            if apgd.eot_iter == 1:  # With several passes per iterate, only the last one decides about success.
                drop_broken_images(apgd)
        with torch.no_grad():
            classes = wrapped(batch.x[:2]).shape[1]  # Some networks need two images.
        for part, reason in self.undefined_parts(classes, batch.x.shape[1:], threat).items():
            raise InputError(f"{part} {reason}: leave it out")
        # With fewer classes than targets AutoAttack would index beyond the last one.
        for targeted in (adversary.apgd_targeted, adversary.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
        return adversary

    def _run_part(self, part: str, adversary: Any, batch: Batch, robust: Tensor, images: Tensor) -> None:
        """Attack the robust images; write those it breaks into ``images`` and remove them from ``robust``."""
        adversary.attacks_to_run = [part]
        active = batch.keep(robust)
        adv, decision = adversary.run_standard_evaluation(active.x.contiguous(), active.y, batch_size=self.batch_size)
        broken = active.fooled(decision)
        images[active.rows[broken]] = adv[broken]
        robust[active.rows[broken]] = False


def _check(batch: Batch, threat: Threat) -> None:
    if batch.x.dtype != torch.float32:
        raise InputError(f"AutoAttack computes in float32, got images of {batch.x.dtype}: convert images and model")
    check_threat(threat)
    if math.isinf(threat.eps):
        raise InputError(f"AutoAttack needs a budget, got {threat}: name a finite eps")


def _wrap(model: Model, surrogate: Surrogate, on_call: Callable[[], object]) -> Callable[[Tensor], Tensor]:
    """The model that AutoAttack sees: the surrogate's logits, with the model's own decision on top."""

    def forward(x: Tensor) -> Tensor:
        on_call()
        found = view(surrogate, model, contiguous_gradient(x))
        if x.requires_grad and torch.is_grad_enabled() and not found.logits.requires_grad:
            raise EvaluationError(NO_GRADIENT)
        logits = found.logits if surrogate == plain else _raise_decision(found)
        # AutoAttack stores logits of any type as float32. Square overwrites those it is given, which may be memory of
        # the model.
        return logits.clone() if logits.dtype == torch.float32 or not logits.is_floating_point() else logits.float()

    return forward


def _raise_decision(found: View) -> Tensor:
    """The surrogate's logits, with that of the class the model decides for raised to the top by a constant."""
    decision = found.decide()[:, None]
    with torch.no_grad():
        best, top = found.logits.max(1, keepdim=True)
        above = torch.nextafter(best, torch.full_like(best, math.inf))
        raised = torch.zeros_like(found.logits, dtype=torch.bool).scatter_(1, decision, top != decision)
    # Adding the difference instead would round back to a tie.
    return torch.where(raised, above + (found.logits - found.logits.detach()), found.logits)


def _margin_and_loss(surrogate: Surrogate, model: Model) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Square's objective: margins ``(N,)`` that decide about success, and the loss ``(N,)`` it minimises.

    The margin is that of the model's decision, the loss that of the surrogate's own logits. Where the surrogate is
    already fooled and the model is not, the margin is a tiny constant that would not guide the search.
    """

    def margin_and_loss(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        found = view(surrogate, model, x)
        return -margin(_raise_decision(found), y).float(), -margin(found.logits, y).float()

    return margin_and_loss


@contextmanager
def _isolate(device: torch.device) -> Iterator[list[str]]:
    """Collect AutoAttack's flags, and restore the process's state afterwards, including its random numbers."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), isolate_autoattack_state(), collect_autoattack_flags() as flags:
        yield flags


def square_flags(accuracy: Mapping[str, float]) -> tuple[str, ...]:
    """AutoAttack's warning that Square broke images its white-box attacks did not; empty if there is no reason for it.

    The warning compares accuracies over all images, so call this once per evaluation, not once per shard.

    Args:
        accuracy: Share of images classified correctly, ``"clean"`` and after each part.

    Example:
        >>> len(square_flags({"clean": 0.9, "apgd-ce": 0.5, "square": 0.4}))
        1
    """
    texts: list[str] = []
    check_square_sr(dict(accuracy), logger=SimpleNamespace(warning=texts.append))
    return tuple(texts)


class ActiveBatchModel:
    """A model for one run of an attack, which computes only the images that are still robust.

    For a broken image it returns logits, without a gradient, that predict the true class: an attack that keeps the last
    adversarial image it found, as APGD does, then keeps that one. APGD treats images independently otherwise, so the
    other images' results do not change.

    Args:
        model: From images ``(N, C, H, W)`` to logits ``(N, K)``.
        y: True labels ``(N,)`` of the images of the run.

    Example:
        >>> model = ActiveBatchModel(lambda x: x.flatten(1), torch.tensor([0, 1]))
        >>> x = torch.tensor([[0.2, 0.8], [0.1, 0.9]]).view(2, 1, 1, 2)
        >>> model(x).argmax(1), model(x).argmax(1)
        (tensor([1, 1]), tensor([0, 1]))
    """

    def __init__(self, model: Model, y: Tensor) -> None:
        self._model = model
        self._y = y
        self._robust = torch.ones_like(y, dtype=torch.bool)
        self._classes = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``, in the order of the labels."""
        if self._robust.all():
            logits = self._model(x)
            self._classes = logits.shape[1]
        else:
            logits = self._active_logits(x)
        self._robust &= logits.detach().max(1)[1] == self._y
        return logits

    def _active_logits(self, x: Tensor) -> Tensor:
        one_hot = F.one_hot(self._y, self._classes).to(x.dtype)
        rows = self._robust.nonzero().squeeze(1)
        if not len(rows):
            return one_hot + 0 * x.flatten(1).sum(1, keepdim=True)  # Differentiable, as the attack expects.
        return one_hot.index_copy(0, rows, self._model(x[rows]))


def drop_broken_images(apgd: Any) -> None:
    """Change an APGD attack of AutoAttack so that images it has broken cost no further passes.

    Every run of it then attacks an :class:`ActiveBatchModel`.

    Args:
        apgd: With ``model`` and ``attack_single_run(x, y, x_init)``, and a single pass per iterate.

    Example:
        >>> from pyautoattack.autopgd_base import APGDAttack
        >>> drop_broken_images(APGDAttack(lambda x: x.flatten(1), eps=0.1, device="cpu"))
    """
    attack_single_run = apgd.attack_single_run

    def run(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> Any:
        model = apgd.model
        apgd.model = ActiveBatchModel(model, y)
        try:
            return attack_single_run(x, y, x_init)
        finally:
            apgd.model = model

    apgd.attack_single_run = run


def _version(name: str) -> Callable[..., AutoAttackSuite]:
    def suite(*, surrogate: Surrogate = plain, batch_size: int = 250, queries: int = 5000) -> AutoAttackSuite:
        return AutoAttackSuite(name, surrogate=surrogate, batch_size=batch_size, queries=queries)

    return suite


def _part(name: str) -> Callable[..., AutoAttackSuite]:
    def part(*, surrogate: Surrogate = plain, batch_size: int = 250) -> AutoAttackSuite:
        return AutoAttackSuite(attacks=(name,), surrogate=surrogate, batch_size=batch_size)

    return part


def square(*, queries: int = 5000, surrogate: Surrogate = plain, batch_size: int = 250) -> AutoAttackSuite:
    """Square attack, https://arxiv.org/abs/1912.00049: random search without gradients.

    Args:
        queries: Largest number of forward passes per image.
        surrogate: Supplies the logits.
        batch_size: Images per batch.

    Example:
        >>> square(queries=100).parts
        ('square',)
    """
    return AutoAttackSuite(attacks=("square",), surrogate=surrogate, batch_size=batch_size, queries=queries)


autoattack = _version("standard")
autoattack_plus = _version("plus")
autoattack_rand = _version("rand")
apgd_ce = _part("apgd-ce")
apgd_dlr = _part("apgd-dlr")
apgd_t = _part("apgd-t")
fab = _part("fab")
fab_t = _part("fab-t")
