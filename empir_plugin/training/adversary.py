"""Attacks to train against: FGSM, R+FGSM, N-FGSM and PGD with a few steps, on weights that are quantized once.

The network is attacked in evaluation mode: batch normalisation uses its running statistics, which attacked images do
not update, as in the code of TRADES. The loss is then computed in training mode.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin._files.tables import build_kind, check_positive
from empir_plugin.attacks.gradient import GradientAttack
from empir_plugin.attacks.losses import Loss, cross_entropy
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.starts import DirectionStart, Start, StepOfEps, at_image
from empir_plugin.attacks.threat import Norm, Threat
from empir_plugin.errors import InputError
from empir_plugin.models.layers import bake_, quantized_layers
from empir_plugin.training.batch import TrainingBatch

_RADII = 1
"""Number of the random draw for radii; the attack's start uses draw 0."""


@contextmanager
def attack_mode(model: nn.Module) -> Iterator[None]:
    """Context in which a network is in evaluation mode and its weights are quantized once; restored on exit.

    Example:
        >>> model = nn.Dropout().train()
        >>> with attack_mode(model):
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
    """Start at a random point of a ball around the image.

    Args:
        ratio: Radius of the ball as a multiple of the threat's radius.
    """

    ratio: float

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw from the ball."""
        return norm.random(x, self.ratio * eps, draw)


@dataclass(frozen=True)
class Adversary:
    """An attack to train against: the settings of the gradient attack, with its threat.

    Args:
        threat: Norm and radius eps of the perturbation, in units of the image (8/255, not 8).
        steps: Gradient steps.
        step: Step size as a share of the largest distance images may be moved, ``reach * eps``.
        start: Where the attack starts.
        ramp: Share of the training in which the radius rises linearly from 0 to eps, in [0, 1].
        reach: Largest distance images may be moved, as a multiple of the radius; above 1 for N-FGSM only.
        spread: Draw the radius of each image from the absolute values of a normal distribution with standard deviation
            eps/2, truncated at eps, as in https://arxiv.org/abs/1611.01236, Section 3.

    Raises:
        InputError: If the ramp lies outside [0, 1], there is no step, or the reach exceeds the whole image range.

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
            raise InputError(f"steps of an adversary must be 1 or more, got {self.steps!r}")
        if not 0 <= self.ramp <= 1:
            raise InputError(f"ramp must lie in [0, 1], got {self.ramp!r}")
        largest = self.threat.norm.largest_eps / self.threat.eps
        if not 1 <= self.reach <= largest:
            raise InputError(
                f"reach must lie in [1, {largest:g}] under {self.threat}, got {self.reach:g}: lower noise or step"
            )

    def eps_at(self, progress: float) -> float:
        """Radius after a share ``progress`` of the training, in units of the image."""
        return self.threat.eps * (min(1.0, progress / self.ramp) if self.ramp else 1.0)

    def __call__(self, model: nn.Module, batch: TrainingBatch, *, loss: Loss = cross_entropy) -> Tensor:
        """Attack the images of a batch; the network's modes and weights are left unchanged.

        Args:
            model: The network to attack; gradients are those of its own output.
            batch: Images, labels, and the seed of the attack.
            loss: The loss to maximize.

        Returns:
            Images ``(N, C, H, W)`` in [0, 1].

        Raises:
            EvaluationError: If a logit or gradient is not finite.
        """
        attack = GradientAttack(self.steps, StepOfEps(self.step), start=self.start, loss=loss, return_last=True)
        threat = Threat(self.threat.norm, self.reach * self.eps_at(batch.progress))
        with attack_mode(model):
            attacked = attack(model, batch.x, batch.y, threat, seed=batch.seed)
        return self._shorten(attacked, batch) if self.spread else attacked

    def _shorten(self, attacked: Tensor, batch: TrainingBatch) -> Tensor:
        """Scale each image's perturbation to a random radius."""
        draw = Draw(batch.seed, torch.arange(len(attacked), device=attacked.device), _RADII)
        return batch.x + _half_normal(draw.uniform(attacked[:, :1, :1, :1])) * (attacked - batch.x)


def _half_normal(uniform: Tensor) -> Tensor:
    """Absolute values of a normal distribution with deviation 1/2, truncated at 1, from uniform numbers in [0, 1)."""
    return torch.erfinv(uniform * math.erf(math.sqrt(2))) / math.sqrt(2)


def fgsm(threat: str, *, spread: bool = False, ramp: float = 0.0) -> Adversary:
    """FGSM, https://arxiv.org/abs/1412.6572: one full step from the image.

    EMPIR trains against FGSM with eps = 0.3. Its release intends to ``spread`` the radii, but passes a deviation in
    units of 8-bit pixels, 38, for images in [0, 1], so that practically every attacked image is binary.

    Args:
        threat: Norm and radius, such as ``"Linf:8/255"``.
        spread: See :class:`Adversary`.
        ramp: See :class:`Adversary`.
    """
    return Adversary(Threat.parse(threat), 1, 1.0, ramp=ramp, spread=spread)


def rfgsm(threat: str, *, ratio: float = 0.5, ramp: float = 0.0) -> Adversary:
    """R+FGSM, https://arxiv.org/abs/1705.07204: a random step, then one along the gradient.

    Args:
        threat: Norm and radius, such as ``"Linf:8/255"``.
        ratio: Length of the random step as a share of the radius, between 0 and 1; the gradient step is the rest.
        ramp: See :class:`Adversary`.
    """
    if not 0 < ratio < 1:
        raise InputError(f"ratio must lie between 0 and 1, got {ratio!r}")
    return Adversary(Threat.parse(threat), 1, 1 - ratio, DirectionStart(ratio), ramp)


def nfgsm(threat: str, *, noise: float = 2.0, step: float = 1.0, ramp: float = 0.0) -> Adversary:
    """N-FGSM, https://arxiv.org/abs/2202.01181: wide uniform noise, then one step without a projection.

    Args:
        threat: Norm and radius, such as ``"Linf:8/255"``; images are moved up to ``noise + step`` times as far.
        noise: Largest absolute value of the noise, as a multiple of the radius.
        step: Step size, as a multiple of the radius.
        ramp: See :class:`Adversary`.
    """
    check_positive("noise of an adversary", noise)
    check_positive("step of an adversary", step)
    reach = max(noise + step, 1.0)
    return Adversary(Threat.parse(threat), 1, step / reach, Noise(noise / reach), ramp, reach)


def pgd(threat: str, *, steps: int, step: float | None = None, noise: float = 1.0, ramp: float = 0.0) -> Adversary:
    """PGD, https://arxiv.org/abs/1706.06083: projected gradient ascent from uniform noise.

    Args:
        threat: Norm and radius, such as ``"Linf:8/255"``.
        steps: Gradient steps.
        step: Step size as a share of the radius; ``2.5 / steps`` if left out, at most 1.
        noise: Largest absolute value of the noise as a multiple of the radius. Above 1 the first gradient is taken
            outside the ball, as in N-FGSM; the steps project back into it.
        ramp: See :class:`Adversary`.
    """
    check_positive("noise of an adversary", noise)
    length = min(1.0, 2.5 / max(steps, 1)) if step is None else step
    return Adversary(Threat.parse(threat), steps, length, Noise(noise), ramp)


_ADVERSARIES: Mapping[str, Callable[..., Adversary]] = MappingProxyType(
    {"fgsm": fgsm, "rfgsm": rfgsm, "nfgsm": nfgsm, "pgd": pgd}
)


def parse_adversary(table: Any, where: str = "[adversary]") -> Adversary:
    """Read an adversary from its table in a recipe.

    Args:
        table: Its ``kind`` is ``fgsm``, ``rfgsm``, ``nfgsm`` or ``pgd``; the other keys are that function's arguments.
        where: What error messages call the table.

    Raises:
        InputError: If the kind is unknown, or an argument is missing, unknown or impossible.

    Example:
        >>> parse_adversary({"kind": "pgd", "threat": "Linf:8/255", "steps": 3}).steps
        3
    """
    return build_kind(_ADVERSARIES, table, where)
