"""What the masking audit measures: who falls to which attack, and what the gradients themselves are like."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.gradient import bim, fgsm, pgd, uniform_noise
from empir_plugin.attacks.losses import CrossEntropy, Loss, cross_entropy, dlr, margin
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.surrogates import Surrogate, Through, mean_logits, mean_probability, member, plain
from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.attacks.transfer import OnMember
from empir_plugin.evaluation.judge import check_attack_result, decisions
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import is_full_precision

STEPS, FEW_STEPS, MANY_STEPS, UNBOUNDED_STEPS = 20, 10, 50, 40
"""Of PGD; of PGD with long steps, and with short ones that walk as far; and of BIM without a budget."""
TEMPERATURES = 0.1, 10.0, 100.0
QUERIES = 300
"""Of Square, per image."""
TRIALS = 20
"""Points of random noise per image."""


@dataclass(frozen=True)
class Probe:
    """One attack of the audit.

    Args:
        group: What it is compared as.
        name: What reports call it.
        attack: Settings bound.
        follows: Whose gradient it needs; None for an attack that needs none.
        unbounded: Whether it may paint any image.
    """

    group: str
    name: str
    attack: Attack
    follows: Surrogate | None = plain
    unbounded: bool = False


def reference() -> Probe:
    """PGD on the cross-entropy of the model's own output: what most evaluations rest on.

    Example:
        >>> reference().name
        'PGD on cross-entropy'
    """
    return Probe("losses", "PGD on cross-entropy", pgd(STEPS))


def probes(model: nn.Module, classes: int) -> Iterator[Probe]:
    """All attacks for a model with that many classes.

    Example:
        >>> len(list(probes(nn.Flatten(), 10)))
        12
    """
    yield Probe("one step", "FGSM", fgsm())
    yield Probe("few steps", f"PGD with {FEW_STEPS} long steps", pgd(FEW_STEPS))
    yield Probe("many steps", f"PGD with {MANY_STEPS} short steps", pgd(MANY_STEPS))
    yield reference()
    losses: list[tuple[str, Loss]] = [("CW's margin", margin), *([("DLR", dlr)] if classes > 2 else [])]
    for name, loss in losses:
        yield Probe("losses", f"PGD on {name}", pgd(STEPS, loss=loss))
    for heat in TEMPERATURES:
        yield Probe("temperatures", f"PGD at temperature {heat:g}", pgd(STEPS, loss=CrossEntropy(heat)))
    for surrogate in surrogates_of(model):
        yield Probe("surrogates", f"PGD on {surrogate}", pgd(STEPS, surrogate=surrogate), surrogate)
    yield from _black_boxes(model)
    yield Probe("noise", "random noise", uniform_noise(TRIALS), None)
    yield Probe("unbounded", f"BIM with {UNBOUNDED_STEPS} steps to any image", bim(UNBOUNDED_STEPS), unbounded=True)


def _black_boxes(model: nn.Module) -> Iterator[Probe]:
    """Square's queries; and images made on one member of an ensemble, shown to all of it."""
    yield Probe(
        "black box", f"Square with {QUERIES} queries", AutoAttackSuite(attacks=("square",), queries=QUERIES), None
    )
    for index in range(len(model.members) if isinstance(model, Ensemble) else 0):
        attack = OnMember(index, replace(pgd(STEPS, loss=margin), return_last=True))
        yield Probe("black box", f"transfer from member {index}", attack, member(index))


def flag_suite(classes: int, *, has_gradient: bool, batch_size: int) -> AutoAttackSuite:
    """AutoAttack for its flags: the parts that look at gradients, where there are any, and Square last."""
    gradients = ("apgd-ce", "apgd-dlr") if classes > 2 else ("apgd-ce",)
    parts = (*gradients, "square") if has_gradient else ("square",)
    return AutoAttackSuite(attacks=parts, batch_size=batch_size, queries=QUERIES)


def surrogates_of(model: nn.Module) -> tuple[Surrogate, ...]:
    """What may be differentiated in place of a model: an ensemble's smooth votes, and quantizers without their clip.

    Example:
        >>> [str(surrogate) for surrogate in surrogates_of(Ensemble([nn.Flatten(), nn.Flatten()]))]
        ['mean_probability', 'mean_logits']
    """
    everybody = mean_probability if isinstance(model, Ensemble) else plain
    smooth = (mean_probability, mean_logits) if isinstance(model, Ensemble) else ()
    if is_full_precision(model):
        return smooth
    return (*smooth, Through(everybody, identity), Through(everybody, soft))


def gives_gradient(surrogate: Surrogate, model: nn.Module, x: Tensor) -> bool:
    """Whether the images ``(N, C, H, W)`` have a gradient at all through the surrogate, be it zero.

    Example:
        >>> gives_gradient(plain, nn.Flatten(), torch.rand(1, 1, 1, 3))
        True
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)
        logits = surrogate(model, x).logits
        if not logits.requires_grad:
            return False
        (grad,) = torch.autograd.grad(logits.sum(), x, allow_unused=True)
    return grad is not None


Columns = Mapping[str, Tensor]
"""Which images ``(N,)`` were broken, by name of the attack."""

OnProgress = Callable[[str, int, int], None]
"""Told what is measured next, how many measurements are done, and how many there are."""

_LEFT_TO_COMPARE = 1 / 3
_HALVINGS = 5


@dataclass(frozen=True, eq=False)
class Evidence:
    """All measurements on the N images that the model classifies correctly.

    Args:
        compared_at: Under which budget the attacks below ran.
        broken: Who fell to each attack, by group and by name.
        no_slope: Whether the gradient of the cross-entropy is zero in every pixel of PGD's random start, ``(N,)``.
        flat_pixels: Share of pixels of that start whose gradient of the margin is zero, ``(N,)``.
        kept: By how much a step of half the radius along the margin's gradient raises the margin, as a share of what
            the gradient promises, ``(N,)``.
        has_gradient: Whether the model's own output has a gradient at all.
        flags: AutoAttack's warnings.
    """

    compared_at: Threat
    broken: Mapping[str, Columns]
    no_slope: Tensor
    flat_pixels: Tensor
    kept: Tensor
    has_gradient: bool
    flags: tuple[str, ...]

    def the(self, group: str) -> Tensor:
        """Who fell to the one attack of a group, ``(N,)``."""
        (column,) = self.broken[group].values()
        return column


@dataclass(frozen=True, eq=False)
class Bench:
    """A prepared model of K classes, and the images ``(N, C, H, W)`` and labels ``(N,)`` it classifies correctly."""

    model: nn.Module
    x: Tensor
    y: Tensor
    classes: int
    threat: Threat
    seed: int
    batch_size: int

    def gather(self, on_progress: OnProgress | None = None) -> Evidence:
        """Measure everything."""
        plan = list(probes(self.model, self.classes))
        tell = _Teller(on_progress, len(plan) + 2)
        tell("radius to compare at")
        compared_at = self.comparable()
        broken: dict[str, dict[str, Tensor]] = {}
        for probe in plan:
            tell(probe.name)
            threat = whole_box(self.threat, self.x) if probe.unbounded else compared_at
            broken.setdefault(probe.group, {})[probe.name] = self.broken(probe, threat)
        broken.setdefault("surrogates", {})
        tell("AutoAttack")
        flags = self._flags()
        no_slope, flat_pixels = self._flatness()
        tell("done")
        return Evidence(
            compared_at=compared_at,
            broken=broken,
            no_slope=no_slope,
            flat_pixels=flat_pixels,
            kept=self._kept(compared_at),
            has_gradient=self._gives_gradient(plain),
            flags=flags,
        )

    def comparable(self) -> Threat:
        """The threat, or the nearest half, quarter, ... of it under which PGD leaves a third of the images.

        Where every attack breaks everything, no two can be told apart, however badly the gradient misleads.
        """
        threat = self.threat
        for _ in range(_HALVINGS):
            if not int(self.broken(reference(), threat).sum()) > (1 - _LEFT_TO_COMPARE) * len(self.y):
                break
            threat = Threat(threat.norm, threat.eps / 2)
        return threat

    def broken(self, probe: Probe, threat: Threat) -> Tensor:
        """Who falls to an attack, ``(N,)``; nobody where it needs a gradient that does not exist."""
        if probe.follows is not None and not self._gives_gradient(probe.follows):
            return torch.zeros_like(self.y, dtype=torch.bool)
        parts = []
        for rows in self._batches():
            x, y = self.x[rows], self.y[rows]
            made = probe.attack(self.model, x.clone(), y, threat, seed=self.seed, indices=rows)
            parts.append(decisions(self.model, check_attack_result(x, made, threat)) != y)
        return torch.cat(parts)

    def _gives_gradient(self, surrogate: Surrogate) -> bool:
        return gives_gradient(surrogate, self.model, self.x[:1])

    def _flags(self) -> tuple[str, ...]:
        """AutoAttack's warnings under the threat itself."""
        suite = flag_suite(self.classes, has_gradient=self._gives_gradient(plain), batch_size=self.batch_size)
        return suite.run(self.model, self.x, self.y, self.threat, seed=self.seed).flags

    def _flatness(self) -> tuple[Tensor, Tensor]:
        """At PGD's start, not at the image: around a digit all is black, and a network without biases is dead there."""
        images, pixels = [], []
        for rows in self._batches():
            x, y = self._start(rows, self.threat), self.y[rows]
            images.append((self._gradient(x, y, cross_entropy) == 0).flatten(1).all(1))
            pixels.append((self._gradient(x, y, margin) == 0).flatten(1).double().mean(1))
        return torch.cat(images), torch.cat(pixels)

    def _kept(self, threat: Threat) -> Tensor:
        """Actual over promised rise of the margin, 0 where nothing is promised."""
        parts = []
        for rows in self._batches():
            x, y = self._start(rows, threat), self.y[rows]
            grad = self._gradient(x, y, margin)
            there = threat.norm.ascent(grad).mul_(threat.eps / 2).add_(x).clamp_(0, 1)
            promised = (grad.double() * (there - x).double()).flatten(1).sum(1)
            with torch.no_grad():
                rise = (margin(self.model(there), y) - margin(self.model(x), y)).double()
            parts.append(torch.where(promised > 0, rise / promised.clamp_min(torch.finfo(torch.double).tiny), 0.0))
        return torch.cat(parts)

    def _start(self, rows: Tensor, threat: Threat) -> Tensor:
        x = self.x[rows]
        return threat.norm.random(x, threat.eps, Draw(self.seed, rows)).add_(x).clamp_(0, 1)

    def _gradient(self, x: Tensor, y: Tensor, loss: Loss) -> Tensor:
        """Gradients of the loss of each image, shaped as ``x``; zero where there is none."""
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            total = loss(self.model(x), y).sum()
            found = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
        return torch.zeros_like(x) if found is None else found

    def _batches(self) -> tuple[Tensor, ...]:
        return torch.arange(len(self.y), device=self.y.device).split(self.batch_size)


class _Teller:
    """Counts measurements for whoever wants to know."""

    def __init__(self, on_progress: OnProgress | None, total: int) -> None:
        self._on_progress = on_progress
        self._total = total
        self._done = 0

    def __call__(self, name: str) -> None:
        if self._on_progress is not None:
            self._on_progress(name, self._done, self._total)
        self._done += 1


def whole_box(threat: Threat, x: Tensor) -> Threat:
    """The threat under which an image ``(C, H, W)`` of ``x`` may become any other.

    Example:
        >>> whole_box(Threat.parse("L2:0.5"), torch.rand(8, 1, 28, 28)).eps
        28.0
    """
    return Threat(threat.norm, 1.0 if isinstance(threat.norm, Linf) else math.sqrt(x[0].numel()))
