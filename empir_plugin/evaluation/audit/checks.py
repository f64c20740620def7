"""The checks of the masking audit: each compares a measurement with a threshold, and says why the threshold is there.

Most compare two attacks on the same images, one of which must be the weaker if gradients can be trusted. The threshold
is the margin by which the weaker attack may still win. To rule out chance, the difference must also be significant at
1 % in an exact McNemar test (:mod:`empir_plugin.evaluation.audit.mcnemar`). So whatever the number of images, such a
check fails only if the attack that should be weaker breaks at least seven images more.

Sources: Athalye et al., https://arxiv.org/abs/1802.00420 (one step, black box, unbounded, random points), Carlini et
al., https://arxiv.org/abs/1902.06705 (checklist), Gupta and Ajanthan, https://arxiv.org/abs/2003.13511 (temperature).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from empir_plugin.evaluation.audit.mcnemar import McNemarTest, binomial_tail
from empir_plugin.evaluation.audit.measurements import BrokenByAttack, Measurements
from empir_plugin.evaluation.audit.report import Finding, passes

Check = Callable[[Measurements], Finding]

_TWO_IN_A_HUNDRED = 0.02
_ONE_IN_TEN = 0.1
_ONE_IN_TWENTY = 0.05
_UNBROKEN = 0.01
_NOISE_SHARE = 2 / 3
_KEPT = 0.1
_HALF = 0.5
_GRADIENTS_DIFFER = "a difference on more than a tenth of the images means that gradients vanish or mislead"


def zero_gradients(measurements: Measurements) -> Finding:
    """Images with a gradient of exactly zero."""
    if not measurements.has_gradient:
        measured = "The model gives no gradient with respect to the images: only black-box attacks could run."
        reason = "without a gradient no white-box attack of any kind can start"
        return _finding("zero gradients", measured, (1.0, _ONE_IN_TWENTY, 0.0), reason, has_gradient=False)
    count, images = int(measurements.zero_gradient.sum()), len(measurements.zero_gradient)
    measured = f"The gradient of the cross-entropy is exactly zero for {count} of {images} images, at PGD's start."
    reason = "an attack cannot move such an image, so one in twenty of them would already hide five points"
    return _finding(
        "zero gradients", measured, _share(count, images, _ONE_IN_TWENTY), reason, images=images, zero=count
    )


def zero_pixels(measurements: Measurements) -> Finding:
    """Images for which most pixels have a gradient of exactly zero."""
    count, images = int((measurements.zero_pixels > _HALF).sum()), len(measurements.zero_pixels)
    share = float(measurements.zero_pixels.mean())
    measured = (
        f"The gradient of the margin is exactly zero in most pixels of {count} of {images} images, at PGD's start; "
        f"in {share:.1%} of all pixels."
    )
    reason = "a network depends on most of an image; where most pixels have no gradient, steps are blind"
    numbers = _share(count, images, _ONE_IN_TWENTY)
    return _finding("zero pixels", measured, numbers, reason, images=images, mostly_zero=count, zero_pixels=share)


def misleading_gradient(measurements: Measurements) -> Finding:
    """Gradients that promise more than a step of half the radius keeps."""
    count, images = int((measurements.kept < _KEPT).sum()), len(measurements.kept)
    median = float(measurements.kept.median())
    measured = (
        "A step of half the radius along the gradient raises the margin by less than a tenth of what the gradient "
        f"promises for {count} of {images} images (median {median:.2f} of it)."
    )
    reason = (
        "networks without masking keep most of the promise; where most images keep less than a tenth, the gradient is "
        "that of another function, or changes long before the radius is reached"
    )
    numbers = _share(count, images, _HALF)
    return _finding("gradient misleads", measured, numbers, reason, images=images, broken=count, median_kept=median)


def batch_dependence(measurements: Measurements) -> Finding:
    """Outputs that depend on the other images of the batch."""
    count, images = int(measurements.batch_dependent.sum()), len(measurements.batch_dependent)
    measured = f"The output for {count} of {images} images changes with the other images of the batch."
    reason = (
        "an attack that moves one image then moves others, and accuracies depend on the batch size; one in a hundred "
        "allows for rounding"
    )
    numbers = _share(count, images, _UNBROKEN)
    return _finding("batch dependence", measured, numbers, reason, images=images, batch_dependent=count)


def loss_dependence(measurements: Measurements) -> Finding:
    """PGD's strongest loss against its weakest."""
    losses = measurements.broken["losses"]
    by_strength = sorted(losses, key=lambda name: int(losses[name].sum()))
    weakest, strongest = by_strength[0], by_strength[-1]
    pairs = math.comb(len(losses), 2)
    test = McNemarTest.of(strongest, losses[strongest], weakest, losses[weakest], comparisons=pairs)
    reason = f"losses share the model's gradient, so the best of them wins by a few points; {_GRADIENTS_DIFFER}"
    numbers = test.difference, _ONE_IN_TEN, test.p_value
    broken = _counts(losses)
    return _finding("loss dependence", test.describe(), numbers, reason, images_broken=broken, images=test.images)


def noise_as_strong(measurements: Measurements) -> Finding:
    """Random noise that breaks as many images as the gradient does."""
    noise, (attack, column) = measurements.only("noise"), _first(measurements.broken["losses"])
    count, either = int(noise.sum()), int((noise | column).sum())
    measured = f"Random noise breaks {count} images, {attack} {int(column.sum())}; one or the other {either}."
    reason = "a useful gradient breaks far more images than random points do; two thirds of them is not far more"
    broken = {"random noise": count, attack: int(column.sum()), "either": either}
    numbers = _share(count, either, _NOISE_SHARE)
    return _finding("noise as strong as the attack", measured, numbers, reason, images_broken=broken, images=len(noise))


def unbounded_fails(measurements: Measurements) -> Finding:
    """Images that are robust even to an attack that may return any image."""
    column = measurements.only("unbounded")
    count, images = int((~column).sum()), len(column)
    (name,) = measurements.broken["unbounded"]
    measured = f"{count} of {images} images are robust to {name}."
    reason = (
        "an attacker without a budget always wins, so accuracy must reach 0 % as eps reaches 1; one in a hundred "
        "allows for an image whose path ends in a corner"
    )
    return _finding("eps to 1", measured, _share(count, images, _UNBROKEN), reason, images=images, survivors=count)


def autoattack_flags(measurements: Measurements) -> Finding:
    """AutoAttack's own warnings, except the one on Square, which the check of black boxes tests for significance."""
    flags = [flag for flag in measurements.flags if "square" not in flag.lower()]
    measured = f"AutoAttack warns: {'; '.join(flags)}." if flags else "AutoAttack has no warning of its own."
    reason = (
        "each warning names a property under which AutoAttack is not reliable; Square's success counts as a black box"
    )
    numbers = float(len(flags)), 0.0, 0.0
    return _finding("AutoAttack's flags", measured, numbers, reason, flags=list(measurements.flags))


@dataclass(frozen=True)
class Comparison:
    """Fails if an attack breaks images that a reference, which should be at least as strong, does not.

    The value is the share of images that only the attack breaks, minus the share that only the reference breaks. Among
    several attacks the one with the largest difference counts, and its p-value is corrected for their number.

    Args:
        name: The sign of masking it looks for.
        attacks: Selects the attacks from the measurements.
        reference: Selects the attack they are compared with.
        tolerance: Share of the images by which an attack may win.
        reason: Why that much.
    """

    name: str
    attacks: Callable[[Measurements], BrokenByAttack]
    reference: Callable[[Measurements], BrokenByAttack]
    tolerance: float
    reason: str

    def __call__(self, measurements: Measurements) -> Finding:
        """Compare each attack with the reference."""
        attacks, (reference, broken) = self.attacks(measurements), _first(self.reference(measurements))
        tests = [McNemarTest.of(name, column, reference, broken, len(attacks)) for name, column in attacks.items()]
        if not tests:
            return Finding(
                self.name, "Does not apply to this model.", 0.0, self.tolerance, 1.0, self.reason, passed=True
            )
        worst = max(
            tests, key=lambda test: (not passes(test.difference, self.tolerance, test.p_value), test.difference)
        )
        numbers = worst.difference, self.tolerance, worst.p_value
        counts = _counts({**attacks, reference: broken})
        return _finding(self.name, worst.describe(), numbers, self.reason, images_broken=counts, images=worst.images)


def _group(name: str) -> Callable[[Measurements], BrokenByAttack]:
    return lambda measurements: measurements.broken[name]


def _any_loss(measurements: Measurements) -> BrokenByAttack:
    return {"PGD on any loss": torch.stack(list(measurements.broken["losses"].values())).any(0)}


CHECKS: tuple[Check, ...] = (
    zero_gradients,
    zero_pixels,
    misleading_gradient,
    batch_dependence,
    Comparison(
        "one step beats many",
        _group("one step"),
        _group("losses"),
        _TWO_IN_A_HUNDRED,
        "PGD can go wherever FGSM goes; two in a hundred allow for its random start",
    ),
    Comparison(
        "more steps help the defender",
        _group("few steps"),
        _group("many steps"),
        _TWO_IN_A_HUNDRED,
        "shorter steps, as long in all, follow a gradient better; two in a hundred allow for paths that diverge",
    ),
    Comparison(
        "black box beats white box",
        _group("black box"),
        _any_loss,
        _TWO_IN_A_HUNDRED,
        "an attacker who sees the gradient knows more; two in a hundred allow for images that no single run settles",
    ),
    Comparison(
        "surrogate beats plain",
        _group("surrogates"),
        _group("losses"),
        _ONE_IN_TEN,
        f"nothing describes the model better than its own gradient; {_GRADIENTS_DIFFER}",
    ),
    loss_dependence,
    Comparison(
        "temperature",
        _group("temperatures"),
        _group("losses"),
        _ONE_IN_TEN,
        f"dividing logits changes no decision and, without saturation, few attacks; {_GRADIENTS_DIFFER}",
    ),
    noise_as_strong,
    unbounded_fails,
    autoattack_flags,
)


def _finding(name: str, measured: str, numbers: tuple[float, float, float], reason: str, **evidence: object) -> Finding:
    """A finding from value, threshold and p-value, from which it follows whether the check passed."""
    return Finding(name, measured, *numbers, reason, passes(*numbers), dict(evidence))


def _share(count: int, trials: int, threshold: float) -> tuple[float, float, float]:
    """Value, threshold and p-value of a share."""
    return (count / trials if trials else 0.0), threshold, binomial_tail(count, trials, threshold)


def _counts(columns: BrokenByAttack) -> dict[str, int]:
    return {name: int(column.sum()) for name, column in columns.items()}


def _first(columns: BrokenByAttack) -> tuple[str, Tensor]:
    return next(iter(columns.items()))
