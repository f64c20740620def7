"""The inner attack of adversarial training: few steps of the one gradient loop, on weights quantized once.

The attacked network is in evaluation mode: batch normalisation uses its running statistics and does not collect those
of half-finished attacks, as in TRADES's code; the loss is then taken in training mode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from empir_plugin._files.tables import check_positive
from empir_plugin.attacks.gradient import GradientAttack
from empir_plugin.attacks.losses import Loss, cross_entropy
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.starts import DirectionStart, Start, StepOfEps, at_image
from empir_plugin.attacks.threat import Norm, Threat
from empir_plugin.errors import InputError
from empir_plugin.models.layers import bake_, quantized_layers
from empir_plugin.training.batch import Lesson

_RADII = 1
"""Number of the draw that radii come from; that of the attack's start is 0."""


@contextmanager
def as_attacked(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and weights quantized once, inside; modes and weights are as before afterwards.

    Example:
        >>> model = nn.Dropout().train()
        >>> with as_attacked(model):
        ...     print(model.training)
        False
        >>> model.training
        True
    """
    modes = [(module, module.training) for module in model.modules()]
    weights = [(layer, layer.baked_weight) for _, layer in quantized_layers(model)]
    try:
        bake_(model.eval())
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, baked in weights:
            layer.baked_weight = baked


@dataclass(frozen=True)
class Noise:
    """Start anywhere in a ball of another radius than the threat's.

    Args:
        ratio: Its radius as a share of the threat's.
    """

    ratio: float

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw from that ball."""
        return norm.random(x, self.ratio * eps, draw)


@dataclass(frozen=True)
class Adversary:
    """An attack to train against: a setting of the one gradient loop, with its threat.

    Args:
        threat: How far an image may be moved.
        steps: Gradient steps.
        step: Length of each, as a share of the distance images may really be moved.
        start: Where to begin.
        ramp: Share of the training in which the radius rises linearly from 0 to the threat's.
        reach: How many times that radius images may really be moved: above 1 for N-FGSM only.
        spread: Draw the radius of every image from the absolute values of a normal distribution with half the
            threat's radius as deviation, cut at that radius, as in https://arxiv.org/abs/1611.01236, Section 3.

    Raises:
        InputError: If the ramp lies outside [0, 1], there is no step, or the reach leads out of [0, 1].

    Example:
        >>> pgd("Linf:8/255", steps=3, ramp=0.5).eps_at(0.25) * 255
        4.0
    """

    threat: Threat
    steps: int
    step: float
    start: Start = at_image
    ramp: float = 0.0
    reach: float = 1.0
    spread: bool = False

    def __post_init__(self) -> None:
        check_positive("step of an adversary", self.step)
        if self.steps < 1:
            raise InputError(f"an adversary needs at least one step, got {self.steps!r}")
        if not 0 <= self.ramp <= 1:
            raise InputError(f"ramp must lie in [0, 1], got {self.ramp!r}")
        largest = self.threat.norm.largest_eps / self.threat.eps
        if not 1 <= self.reach <= largest:
            raise InputError(
                f"reach must lie in [1, {largest:g}] under {self.threat}, got {self.reach:g}: lower noise or step"
            )

    def eps_at(self, progress: float) -> float:
        """The radius when a share ``progress`` of the training is done, in units of the image."""
        return self.threat.eps * (min(1.0, progress / self.ramp) if self.ramp else 1.0)

    def __call__(self, model: nn.Module, lesson: Lesson, *, loss: Loss = cross_entropy) -> Tensor:
        """Attack the images of a lesson; the network is left as it was.

        Args:
            model: What is attacked, through its own output.
            lesson: Images, labels and randomness.
            loss: What to climb.

        Returns:
            Images ``(N, C, H, W)`` in [0, 1].

        Raises:
            EvaluationError: If a logit or gradient is not finite.
        """
        attack = GradientAttack(self.steps, StepOfEps(self.step), start=self.start, loss=loss, return_last=True)
        threat = Threat(self.threat.norm, self.reach * self.eps_at(lesson.progress))
        with as_attacked(model):
            found = attack(model, lesson.x, lesson.y, threat, seed=lesson.seed)
        return self._shortened(found, lesson) if self.spread else found

    def _shortened(self, found: Tensor, lesson: Lesson) -> Tensor:
        draw = Draw(lesson.seed, torch.arange(len(found), device=found.device), _RADII)
        return lesson.x + _half_normal(draw.uniform(found[:, :1, :1, :1])) * (found - lesson.x)


def _half_normal(uniform: Tensor) -> Tensor:
    """From numbers uniform in [0, 1) to absolute values of normal ones of deviation 1/2, none above 1."""
    return torch.erfinv(uniform * math.erf(math.sqrt(2))) / math.sqrt(2)


def fgsm(threat: str, *, spread: bool = False, ramp: float = 0.0) -> Adversary:
    """One full step from the image, https://arxiv.org/abs/1412.6572.

    EMPIR trains against this one with eps = 0.3. Its release means to ``spread`` the radii, but gives the deviation in
    units of 8-bit pixels, 38, to images in [0, 1]: practically every image it trains on is binary.
    """
    return Adversary(Threat.parse(threat), 1, 1.0, ramp=ramp, spread=spread)


def rfgsm(threat: str, *, ratio: float = 0.5, ramp: float = 0.0) -> Adversary:
    """A random step of ``ratio`` times the radius, then one along the gradient, https://arxiv.org/abs/1705.07204."""
    if not 0 < ratio < 1:
        raise InputError(f"ratio must lie between 0 and 1, got {ratio!r}")
    return Adversary(Threat.parse(threat), 1, 1 - ratio, DirectionStart(ratio), ramp)


def nfgsm(threat: str, *, noise: float = 2.0, step: float = 1.0, ramp: float = 0.0) -> Adversary:
    """Wide uniform noise, then one step, and no projection: N-FGSM, https://arxiv.org/abs/2202.01181.

    Args:
        threat: What the network is to withstand; images are moved up to ``noise + step`` times as far.
        noise: Half the width of the noise, as a multiple of the radius.
        step: Length of the step, as a multiple of the radius.
        ramp: Share of the training in which the radius rises.
    """
    check_positive("noise of an adversary", noise)
    check_positive("step of an adversary", step)
    reach = max(noise + step, 1.0)
    return Adversary(Threat.parse(threat), 1, step / reach, Noise(noise / reach), ramp, reach)


def pgd(threat: str, *, steps: int, step: float | None = None, noise: float = 1.0, ramp: float = 0.0) -> Adversary:
    """Projected gradient ascent from uniform noise, https://arxiv.org/abs/1706.06083.

    Args:
        threat: How far.
        steps: Gradient steps.
        step: Length of each as a share of the radius; 2.5 over ``steps`` if left out, at most 1.
        noise: Half the width of the noise as a share of the radius. Above 1 the first gradient is taken outside of the
            ball, as N-FGSM does; the steps lead back into it.
        ramp: Share of the training in which the radius rises.
    """
    check_positive("noise of an adversary", noise)
    length = min(1.0, 2.5 / max(steps, 1)) if step is None else step
    return Adversary(Threat.parse(threat), steps, length, Noise(noise), ramp)
