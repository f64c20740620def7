"""The checks of the masking audit: each compares measurements with a threshold that has a reason.

Most compare two attacks on the same images, one of which has to be the weaker wherever gradients can be believed. A
threshold says by how much it may still win. Chance is bounded on top of that, by an exact binomial tail at 1 %: if
neither attack were the better, an image broken by one of them only would be a coin toss. So on any number of images it
takes at least seven that fall to the wrong attack alone, and none to the right one, before such a check can fail.

Sources: Athalye et al., https://arxiv.org/abs/1802.00420 (one step, black box, unbounded, random points), Carlini et
al., https://arxiv.org/abs/1902.06705 (checklist), Gupta and Ajanthan, https://arxiv.org/abs/2003.13511 (temperature).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from empir_plugin.evaluation.audit.mcnemar import Beats, Duel, counts, first
from empir_plugin.evaluation.audit.measurements import Evidence
from empir_plugin.evaluation.audit.report import Finding, found, tail

Check = Callable[[Evidence], Finding]

_FEW_IMAGES = 0.02
_FEW_POINTS = 0.1
_FLAT_IMAGES = 0.05
_UNBROKEN = 0.01
_NOISE_SHARE = 2 / 3
_PROMISE = 0.1
_MOST = 0.5
_SLOPES_DIFFER = "more than a tenth of the images means that slopes vanish or mislead"


def zero_gradients(evidence: Evidence) -> Finding:
    """Images without any slope."""
    if not evidence.has_gradient:
        measured = "The model gives no gradient with respect to the images: only black-box attacks could run."
        reason = "without a gradient no white-box attack of any kind can start"
        return found("zero gradients", measured, (1.0, _FLAT_IMAGES, 0.0), reason, has_gradient=False)
    count, images = int(evidence.no_slope.sum()), len(evidence.no_slope)
    measured = f"The gradient of the cross-entropy is exactly zero for {count} of {images} images, at PGD's start."
    reason = "an attack cannot move such an image, so one in twenty of them would already hide five points"
    return found("zero gradients", measured, _share(count, images, _FLAT_IMAGES), reason, images=images, zero=count)


def zero_pixels(evidence: Evidence) -> Finding:
    """Images most pixels of which have no slope."""
    count, images = int((evidence.flat_pixels > _MOST).sum()), len(evidence.flat_pixels)
    share = float(evidence.flat_pixels.mean())
    measured = (
        f"The gradient of the margin is exactly zero in most pixels of {count} of {images} images, at PGD's start; "
        f"in {share:.1%} of all pixels."
    )
    reason = "a network answers to most of an image; where most pixels have no slope, steps are blind"
    numbers = _share(count, images, _FLAT_IMAGES)
    return found("zero pixels", measured, numbers, reason, images=images, mostly_zero=count, zero_pixels=share)


def broken_promises(evidence: Evidence) -> Finding:
    """Slopes that end long before the radius does."""
    count, images = int((evidence.kept < _PROMISE).sum()), len(evidence.kept)
    median = float(evidence.kept.median())
    measured = (
        f"A step of half the radius along the gradient raises the margin by less than a tenth of what the gradient "
        f"promises for {count} of {images} images (median {median:.2f} of it)."
    )
    reason = (
        "unmasked networks keep most of the promise; where most images keep less than a tenth, the gradient is another "
        "function's, or its slope ends long before the radius does"
    )
    numbers = _share(count, images, _MOST)
    return found("gradient misleads", measured, numbers, reason, images=images, broken=count, median_kept=median)


def loss_dependence(evidence: Evidence) -> Finding:
    """One loss of PGD against another: its strongest against its weakest."""
    losses = evidence.broken["losses"]
    by_strength = sorted(losses, key=lambda name: int(losses[name].sum()))
    weakest, strongest = by_strength[0], by_strength[-1]
    duel = Duel.of(strongest, losses[strongest], weakest, losses[weakest], duels=math.comb(len(losses), 2))
    reason = f"losses share the model's slopes, so the best of them wins by a few points; {_SLOPES_DIFFER}"
    numbers = duel.gap, _FEW_POINTS, duel.chance
    broken = counts(losses)
    return found("loss dependence", duel.measured, numbers, reason, images_broken=broken, images=duel.images)


def noise_as_strong(evidence: Evidence) -> Finding:
    """Random points do what the gradient does."""
    noise, (attack, column) = evidence.the("noise"), first(evidence.broken["losses"])
    count, either = int(noise.sum()), int((noise | column).sum())
    measured = f"Random noise breaks {count} images, {attack} {int(column.sum())}; one or the other {either}."
    reason = "a slope that leads somewhere breaks far more than blind points do; two thirds of it is not far more"
    broken = {"random noise": count, attack: int(column.sum()), "either": either}
    numbers = _share(count, either, _NOISE_SHARE)
    return found("noise as strong as the attack", measured, numbers, reason, images_broken=broken, images=len(noise))


def unbounded_fails(evidence: Evidence) -> Finding:
    """An attacker who may paint any image."""
    column = evidence.the("unbounded")
    count, images = int((~column).sum()), len(column)
    (name,) = evidence.broken["unbounded"]
    measured = f"{count} of {images} images survive {name}."
    reason = (
        "an attacker without a budget always wins, so accuracy must reach 0 % as eps reaches 1; one in a hundred "
        "allows for an image whose path runs into a corner"
    )
    return found("eps to 1", measured, _share(count, images, _UNBROKEN), reason, images=images, survivors=count)


def autoattack_flags(evidence: Evidence) -> Finding:
    """AutoAttack's own warnings, all but the one on Square: the check of black boxes asks that with its chance."""
    flags = [flag for flag in evidence.flags if "square" not in flag.lower()]
    measured = f"AutoAttack warns: {'; '.join(flags)}." if flags else "AutoAttack has no warning of its own."
    reason = (
        "each warning names a property under which AutoAttack is not reliable; Square's success counts as a black box"
    )
    numbers = float(len(flags)), 0.0, 0.0
    return found("AutoAttack's flags", measured, numbers, reason, flags=list(evidence.flags))


CHECKS: tuple[Check, ...] = (
    zero_gradients,
    zero_pixels,
    broken_promises,
    Beats(
        "one step beats many",
        lambda evidence: evidence.broken["one step"],
        lambda evidence: evidence.broken["losses"],
        _FEW_IMAGES,
        "PGD can go wherever FGSM goes; two in a hundred allow for its random start",
    ),
    Beats(
        "more steps help the defender",
        lambda evidence: evidence.broken["few steps"],
        lambda evidence: evidence.broken["many steps"],
        _FEW_IMAGES,
        "finer steps of the same sum follow a slope better; two in a hundred allow for paths that part",
    ),
    Beats(
        "black box beats white box",
        lambda evidence: evidence.broken["black box"],
        lambda evidence: {"PGD on any loss": torch.stack(list(evidence.broken["losses"].values())).any(0)},
        _FEW_IMAGES,
        "who sees the gradient knows more; two in a hundred allow for images that no single run settles",
    ),
    Beats(
        "surrogate beats plain",
        lambda evidence: evidence.broken["surrogates"],
        lambda evidence: evidence.broken["losses"],
        _FEW_POINTS,
        f"nothing describes the model better than its own gradient; {_SLOPES_DIFFER}",
    ),
    loss_dependence,
    Beats(
        "temperature",
        lambda evidence: evidence.broken["temperatures"],
        lambda evidence: evidence.broken["losses"],
        _FEW_POINTS,
        f"dividing logits changes no decision and, without saturation, few attacks; {_SLOPES_DIFFER}",
    ),
    noise_as_strong,
    unbounded_fails,
    autoattack_flags,
)


def _share(count: int, trials: int, threshold: float) -> tuple[float, float, float]:
    """Value, threshold and chance of a share."""
    return (count / trials if trials else 0.0), threshold, tail(count, trials, threshold)
