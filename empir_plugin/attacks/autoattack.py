"""AutoAttack, part by part: on any surrogate, judged by the model's own decision, its warnings kept as data."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType, SimpleNamespace
from typing import Any, ClassVar

import pyautoattack
import torch
import torch.nn.functional as F
from pyautoattack.checks import check_square_sr
from torch import Tensor

from empir_plugin._compat.observe import autoattack_state_kept_clean, collect_autoattack_flags, contiguous_gradient
from empir_plugin.attacks.batch import Batch, parameters_frozen
from empir_plugin.attacks.losses import margin
from empir_plugin.attacks.surrogates import Model, Surrogate, View, plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError


class SparingModel:
    """A model for one run of an attack that watches which images fall, and is asked no more about them.

    For an image that fell it returns, without a gradient, logits that name the true class: an attack that keeps, image
    by image, what last fooled the model, as APGD does, then keeps what it has. Nothing else in APGD passes between
    images, so the others' way is the same.

    Args:
        model: From images ``(N, C, H, W)`` to logits ``(N, K)``.
        y: True labels ``(N,)`` of the images of that run.

    Example:
        >>> model = SparingModel(lambda x: x.flatten(1), torch.tensor([0, 1]))
        >>> x = torch.tensor([[0.2, 0.8], [0.1, 0.9]]).view(2, 1, 1, 2)
        >>> model(x).argmax(1), model(x).argmax(1)
        (tensor([1, 1]), tensor([0, 1]))
    """

    def __init__(self, model: Model, y: Tensor) -> None:
        self._model = model
        self._y = y
        self._standing = torch.ones_like(y, dtype=torch.bool)
        self._classes = 0

    def __call__(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``, which belong to the labels row by row."""
        if self._standing.all():
            logits = self._model(x)
            self._classes = logits.shape[1]
        else:
            logits = self._of_standing(x)
        self._standing &= logits.detach().max(1)[1] == self._y
        return logits

    def _of_standing(self, x: Tensor) -> Tensor:
        named = F.one_hot(self._y, self._classes).to(x.dtype)
        rows = self._standing.nonzero().squeeze(1)
        if not len(rows):
            return named + 0 * x.flatten(1).sum(1, keepdim=True)  # Differentiable, as its caller expects.
        return named.index_copy(0, rows, self._model(x[rows]))


def spare_the_fallen(ascent: Any) -> None:
    """Change an APGD attack of AutoAttack so that its runs ask a :class:`SparingModel`.

    Args:
        ascent: With ``model`` and ``attack_single_run(x, y, x_init)``, and a single look at each iterate.

    Example:
        >>> from pyautoattack.autopgd_base import APGDAttack
        >>> spare_the_fallen(APGDAttack(lambda x: x.flatten(1), eps=0.1, device="cpu"))
    """
    whole_run = ascent.attack_single_run

    def run(x: Tensor, y: Tensor, x_init: Tensor | None = None) -> Any:
        model = ascent.model
        ascent.model = SparingModel(model, y)
        try:
            return whole_run(x, y, x_init)
        finally:
            ascent.model = model

    ascent.attack_single_run = run


_STANDARD_QUERIES = 5000
_PARTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
        "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
        "rand": ("apgd-ce", "apgd-dlr"),
    }
)
# Fewest classes with which a part's loss is defined.
_CLASSES: Mapping[str, int] = MappingProxyType(
    {"apgd-ce": 2, "apgd-dlr": 3, "fab": 2, "square": 2, "apgd-t": 4, "fab-t": 2}
)


@dataclass(frozen=True, eq=False)
class AutoAttackResult:
    """What a run of AutoAttack found.

    Args:
        images: Adversarial images ``(N, C, H, W)``; an image that withstood all parts is unchanged.
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
    """AutoAttack, https://arxiv.org/abs/2003.01690, each part on the images the parts before it left.

    With the same seed, images and batch size it gives the verdicts of pyautoattack's ``run_standard_evaluation``; an
    image that fell is returned as it first fell, and costs nothing from then on. AutoAttack's random numbers belong to
    a batch and not to an image: shards of other sizes give other, equally valid, results.

    Args:
        version: ``"standard"`` (as on the RobustBench leaderboard), ``"plus"`` or ``"rand"`` (for randomised models).
        attacks: Only these parts, in this order, under the version's settings; all parts of the version if empty.
        surrogate: What supplies logits and gradients. Success is the model's own decision everywhere: the class the
            model decides for is raised, by a constant, above the surrogate's other logits.
        batch_size: Images per batch.
        queries: Of the Square attack.

    Raises:
        InputError: If the version or a part is unknown.

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
        unknown = [part for part in self.attacks if part not in _CLASSES]
        if unknown:
            raise InputError(f"attacks must be some of {', '.join(_CLASSES)}, got {', '.join(unknown)}")
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

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """Attack a batch as every attack does; ``run`` tells more.

        Returns:
            Adversarial images ``(N, C, H, W)``; an image that withstood is returned unchanged.
        """
        return self.run(model, x, y, threat, seed=seed).images

    def run(self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0) -> AutoAttackResult:
        """Attack a batch and keep what each part achieved.

        Args:
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
            x: Images ``(N, C, H, W)``, float32, in [0, 1].
            y: True labels ``(N,)``.
            threat: How far to go.
            seed: Of every part.

        Raises:
            InputError: If a tensor is not what it must be, the radius is infinite, or there are too few classes.
            EvaluationError: If a logit is NaN.
        """
        batch = Batch.of(x, y)
        _check(batch, threat)
        attacked = _attacked(model, self.surrogate)
        with parameters_frozen(model), _left_clean(x.device) as flags:
            robust = self._clean(attacked, batch)
            found = x.detach().clone(memory_format=torch.contiguous_format)
            after = {"clean": robust.clone()}
            adversary = self._adversary(model, attacked, batch, threat, seed) if robust.any() else None
            for part in self.parts:
                if robust.any():
                    self._run_part(part, adversary, batch, robust, found)
                after[part] = robust.clone()
            result = AutoAttackResult(found, MappingProxyType(after), ())
            check_square_sr(result.accuracy, logger=logging.getLogger("auto-attack"))
        return AutoAttackResult(found, result.robust, tuple(dict.fromkeys(filter(self._concerns, flags))))

    def _concerns(self, flag: str) -> bool:
        """Whether a flag is about a part that runs: AutoAttack warns of the targeted DLR loss in any case."""
        return "apgd-t" in self.parts or "targeted DLR" not in flag

    @torch.no_grad()
    def _clean(self, attacked: Model, batch: Batch) -> Tensor:
        robust = torch.zeros(len(batch), dtype=torch.bool, device=batch.x.device)
        for rows in batch.rows.split(self.batch_size):
            chunk = batch.keep(rows)
            logits = attacked(chunk.x)
            chunk.check_logits(logits)
            robust[rows] = ~chunk.fooled(logits.argmax(1))
        return robust

    def _adversary(self, real: Model, attacked: Model, batch: Batch, threat: Threat, seed: int) -> Any:
        names: dict[str, Any] = {"version": self.version, "norm": str(threat.norm)}
        model: Any = attacked
        adversary = pyautoattack.AutoAttack(model, device=batch.x.device, eps=threat.eps, seed=seed, **names)
        square: Any = adversary.square
        square.n_queries = self.queries
        if self.surrogate != plain:
            square.margin_and_loss = _margins(self.surrogate, real)
        for ascent in (adversary.apgd, adversary.apgd_targeted):
            if ascent.eot_iter == 1:  # Of several looks at one iterate, the last alone says whether it fools.
                spare_the_fallen(ascent)
        with torch.no_grad():
            classes = attacked(batch.x[:1]).shape[1]
        for part in self.parts:
            if classes < _CLASSES[part]:
                raise InputError(f"{part} needs at least {_CLASSES[part]} classes, got {classes}: leave it out")
        # With fewer classes than targets AutoAttack would index beyond the last one.
        for targeted in (adversary.apgd_targeted, adversary.fab):
            targeted.n_target_classes = min(targeted.n_target_classes, classes - 1)
        return adversary

    def _run_part(self, part: str, adversary: Any, batch: Batch, robust: Tensor, found: Tensor) -> None:
        """Attack the images of ``robust`` and take those that fell out of it."""
        adversary.attacks_to_run = [part]
        left = batch.keep(robust)
        adv, decision = adversary.run_standard_evaluation(left.x.contiguous(), left.y, batch_size=self.batch_size)
        fell = left.fooled(decision)
        found[left.rows[fell]] = adv[fell]
        robust[left.rows[fell]] = False


def _check(batch: Batch, threat: Threat) -> None:
    if batch.x.dtype != torch.float32:
        raise InputError(f"AutoAttack computes in float32, got images of {batch.x.dtype}: convert images and model")
    if math.isinf(threat.eps):
        raise InputError(f"AutoAttack needs a budget, got {threat}: name a finite eps")


def _attacked(model: Model, surrogate: Surrogate) -> Callable[[Tensor], Tensor]:
    """The model as AutoAttack shall see it."""

    def forward(x: Tensor) -> Tensor:
        view = surrogate(model, contiguous_gradient(x))
        # Square overwrites the logits it is given, and they may be memory of the model.
        return view.logits.clone() if surrogate == plain else _decided(view)

    return forward


def _decided(view: View) -> Tensor:
    """The surrogate's logits, the class the model decides for raised to the top by a constant."""
    decision = view.decide()[:, None]
    with torch.no_grad():
        best, top = view.logits.max(1, keepdim=True)
        above = torch.nextafter(best, torch.full_like(best, math.inf))
        raised = torch.zeros_like(view.logits, dtype=torch.bool).scatter_(1, decision, top != decision)
    # Adding the difference instead would round back to a tie.
    return torch.where(raised, above + (view.logits - view.logits.detach()), view.logits)


def _margins(surrogate: Surrogate, model: Model) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What Square asks for: margins ``(N,)`` that say who fell, and what to lower.

    They are those of the decision and of the surrogate's own logits. Once the surrogate's top class is another one and
    the vote still stands, the first would be the same small number whatever the search tries.
    """

    def margin_and_loss(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        view = surrogate(model, x)
        return -margin(_decided(view), y), -margin(view.logits, y)

    return margin_and_loss


@contextmanager
def _left_clean(device: torch.device) -> Iterator[list[str]]:
    """Collect AutoAttack's flags; leave no trace in the process, its random numbers included."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), autoattack_state_kept_clean(), collect_autoattack_flags() as flags:
        yield flags


def square_flags(accuracy: Mapping[str, float]) -> tuple[str, ...]:
    """AutoAttack's warning that its black-box part found what its white-box parts missed, if it has to be given.

    It speaks of a share of all images, so it is asked once for an evaluation and not of every shard.

    Args:
        accuracy: Share of images classified correctly, ``"clean"`` and after each part.

    Example:
        >>> len(square_flags({"clean": 0.9, "apgd-ce": 0.5, "square": 0.4}))
        1
    """
    texts: list[str] = []
    check_square_sr(dict(accuracy), logger=SimpleNamespace(warning=texts.append))
    return tuple(texts)


def _version(name: str) -> Callable[..., AutoAttackSuite]:
    def suite(*, surrogate: Surrogate = plain, batch_size: int = 250, queries: int = 5000) -> AutoAttackSuite:
        return AutoAttackSuite(name, surrogate=surrogate, batch_size=batch_size, queries=queries)

    return suite


def _part(name: str) -> Callable[..., AutoAttackSuite]:
    def part(*, surrogate: Surrogate = plain, batch_size: int = 250) -> AutoAttackSuite:
        return AutoAttackSuite(attacks=(name,), surrogate=surrogate, batch_size=batch_size)

    return part


def square(*, queries: int = 5000, surrogate: Surrogate = plain, batch_size: int = 250) -> AutoAttackSuite:
    """Square attack, https://arxiv.org/abs/1912.00049: random search that never asks for a gradient.

    Args:
        queries: Forward passes per image at most.
        surrogate: What supplies the logits it compares.
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
