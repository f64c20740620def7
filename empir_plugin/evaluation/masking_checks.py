"""The checks of the masking audit: each compares measurements with a threshold that has a reason.

Most compare two attacks on the same images, one of which has to be the weaker wherever gradients can be believed. What
such a comparison may show by chance is bounded twice: by a slack that has a reason of its own, and by an exact sign
test. If neither attack were the better, an image broken by one of them only would be a coin toss.

Sources: Athalye et al., https://arxiv.org/abs/1802.00420 (one step, black box, unbounded, random points), Carlini et
al., https://arxiv.org/abs/1902.06705 (checklist), Gupta and Ajanthan, https://arxiv.org/abs/2003.13511 (temperature).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from empir_plugin.evaluation.masking_evidence import Columns, Evidence

SIGNIFICANCE = 0.01
"""How improbable coin tosses must make a difference before it counts."""

_ZERO_IMAGES = 0.05
_ZERO_PIXELS = 0.5
_UNBROKEN = 0.01
_NOISE_SHARE = 2 / 3
_NOISE_LEAST = 0.05
_NEARLY_ALL = 0.95


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: The sign of masking it looks for.
        measured: What was measured, as a sentence.
        value: The number that was compared.
        threshold: What it may be at most.
        reason: Why that much.
        passed: Whether it is not above the threshold, or above it by chance.
    """

    name: str
    measured: str
    value: float
    threshold: float
    reason: str
    passed: bool


Check = Callable[[Evidence], Finding]


@dataclass(frozen=True)
class Beats:
    """Fails if one of several attacks breaks images that a reference, which has to be no weaker, leaves.

    The value is the largest share of images only the challenger breaks, less the share only the reference does.

    Args:
        name: The sign of masking it looks for.
        challengers: Picks the attacks out of the evidence.
        reference: Picks what they are compared with.
        against: What the reference is called.
        slack: By which share of the images a challenger may win.
        reason: Why that much.
    """

    name: str
    challengers: Callable[[Evidence], Columns]
    reference: Callable[[Evidence], Tensor]
    against: str
    slack: float
    reason: str

    def __call__(self, evidence: Evidence) -> Finding:
        """Compare each challenger with the reference."""
        challengers, reference = self.challengers(evidence), self.reference(evidence)
        duels = [_Duel.of(name, column, reference) for name, column in challengers.items()]
        if not duels:
            return Finding(self.name, "Does not apply to this model.", 0.0, self.slack, self.reason, passed=True)
        lost = any(duel.gap > self.slack and duel.chance < SIGNIFICANCE / len(duels) for duel in duels)
        worst = max(duels, key=lambda duel: duel.gap)
        return Finding(self.name, worst.text(self.against), worst.gap, self.slack, self.reason, passed=not lost)


@dataclass(frozen=True)
class _Duel:
    name: str
    broken: float
    against: float
    wins: int
    losses: int
    images: int

    @classmethod
    def of(cls, name: str, challenger: Tensor, reference: Tensor) -> _Duel:
        wins, losses = int((challenger & ~reference).sum()), int((reference & ~challenger).sum())
        return cls(name, _share(challenger), _share(reference), wins, losses, len(reference))

    @property
    def gap(self) -> float:
        return (self.wins - self.losses) / self.images

    @property
    def chance(self) -> float:
        """Probability of as many wins or more if every image in question were a coin toss."""
        tosses = self.wins + self.losses
        return sum(math.comb(tosses, heads) for heads in range(self.wins, tosses + 1)) / 2**tosses

    def text(self, against: str) -> str:
        alone = f"{self.wins} images fall to the first alone, {self.losses} to the second"
        return f"{self.name} breaks {self.broken:.1%} of the images, {against} {self.against:.1%}; {alone}."


def zero_images(evidence: Evidence) -> Finding:
    """Images without any gradient."""
    share = _share(evidence.zero_images)
    reason = "an attack cannot move such an image, so one in twenty of them would already hide five points"
    measured = f"The gradient of the cross-entropy is exactly zero for {share:.1%} of the images."
    return Finding("images without a gradient", measured, share, _ZERO_IMAGES, reason, share <= _ZERO_IMAGES)


def zero_pixels(evidence: Evidence) -> Finding:
    """Pixels without a gradient."""
    share = float(evidence.zero_pixels.mean())
    reason = "a network answers to most of its pixels; where the majority has no slope, steps are blind"
    measured = f"The gradient of the margin is exactly zero in {share:.1%} of an image's pixels, on average."
    return Finding("pixels without a gradient", measured, share, _ZERO_PIXELS, reason, share <= _ZERO_PIXELS)


def loss_dependence(evidence: Evidence) -> Finding:
    """One loss of PGD against another: its strongest against its weakest."""
    by_strength = sorted(evidence.losses, key=lambda name: int(evidence.losses[name].sum()))
    weakest, strongest = by_strength[0], by_strength[-1]
    check = Beats(
        "the loss decides",
        lambda evidence: {f"PGD on {strongest}": evidence.losses[strongest]},
        lambda evidence: evidence.losses[weakest],
        f"on {weakest}",
        _FEW_POINTS,
        f"losses share the model's slopes, and the best of them wins by a few points; {_SLOPES_DIFFER}",
    )
    return check(evidence)


def noise_as_strong(evidence: Evidence) -> Finding:
    """Random points do what the gradient does."""
    noise, attack = _share(evidence.noise), _share(evidence.losses["cross-entropy"])
    value = noise / attack if attack else float(noise > 0)
    passed = noise < _NOISE_LEAST or attack >= _NEARLY_ALL or value <= _NOISE_SHARE
    reason = (
        "a slope that points somewhere finds far more than chance does; not asked where noise breaks less than "
        f"{_NOISE_LEAST:.0%}, or the attack at least {_NEARLY_ALL:.0%}"
    )
    measured = f"Random noise breaks {noise:.1%} of the images, PGD {attack:.1%}."
    return Finding("noise is as strong", measured, value, _NOISE_SHARE, reason, passed)


def unbounded_fails(evidence: Evidence) -> Finding:
    """An attacker who may paint any image."""
    left = 1 - _share(evidence.unbounded)
    measured = f"{left:.1%} of the images survive BIM that may change them into any other."
    reason = "such an attacker always wins; whatever survives shows the attack at its end, not the model's strength"
    return Finding("unbounded attack fails", measured, left, _UNBROKEN, reason, left <= _UNBROKEN)


def autoattack_flags(evidence: Evidence) -> Finding:
    """AutoAttack's own warnings, all but the one on Square: the check of black boxes asks that with its chance."""
    flags = [flag for flag in evidence.flags if "square" not in flag.lower()]
    measured = f"AutoAttack warns: {'; '.join(flags)}." if flags else "AutoAttack has no warning."
    reason = "each warning names a property of the model under which AutoAttack is not reliable"
    return Finding("AutoAttack's warnings", measured, float(len(flags)), 0.0, reason, not flags)


_FEW_IMAGES = 0.02
_FEW_POINTS = 0.1
_SLOPES_DIFFER = "a tenth of the images is more than such differences, and means that slopes vanish or mislead"

CHECKS: tuple[Check, ...] = (
    zero_images,
    zero_pixels,
    Beats(
        "one step beats many",
        lambda evidence: {"FGSM": evidence.one_step},
        lambda evidence: evidence.losses["cross-entropy"],
        "PGD",
        _FEW_IMAGES,
        "PGD can go wherever FGSM goes; two in a hundred allow for its random start",
    ),
    Beats(
        "more steps help the defender",
        lambda evidence: {"PGD with few long steps": evidence.few_steps},
        lambda evidence: evidence.many_steps,
        "with many short ones of the same sum",
        _FEW_IMAGES,
        "finer steps follow a slope better; two in a hundred allow for paths that part",
    ),
    Beats(
        "black box beats white box",
        lambda evidence: evidence.black_box,
        lambda evidence: torch.stack(list(evidence.losses.values())).any(0),
        "PGD on the model's own gradient, the best of its losses,",
        _FEW_IMAGES,
        "who sees the gradient knows more; two in a hundred allow for images no single run settles",
    ),
    Beats(
        "surrogate beats the model's own gradient",
        lambda evidence: evidence.surrogates,
        lambda evidence: evidence.losses["cross-entropy"],
        "PGD on the model's own gradient",
        _FEW_POINTS,
        f"nothing describes the model better than itself; {_SLOPES_DIFFER}",
    ),
    loss_dependence,
    Beats(
        "the temperature decides",
        lambda evidence: {f"PGD at temperature {name}": column for name, column in evidence.temperatures.items()},
        lambda evidence: evidence.losses["cross-entropy"],
        "at temperature 1",
        _FEW_POINTS,
        f"dividing logits changes no decision and, without saturation, few attacks; {_SLOPES_DIFFER}",
    ),
    noise_as_strong,
    unbounded_fails,
    autoattack_flags,
)


def _share(column: Tensor) -> float:
    return float(column.double().mean())
