"""Where a gradient attack starts, and how far it steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.threat import Norm


class Start(Protocol):
    """What a start must offer."""

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """First perturbations ``(N, C, H, W)`` of images ``x``, of norm ``eps`` or less."""
        ...


@dataclass(frozen=True)
class AtImage:
    """Start at the clean image."""

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """No perturbation."""
        return torch.zeros_like(x)


at_image = AtImage()


@dataclass(frozen=True)
class UniformStart:
    """Start anywhere in the ball, all points alike."""

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw from the ball of radius ``eps``."""
        return norm.random(x, eps, draw)


@dataclass(frozen=True)
class GaussianStart:
    """Start at normal noise of every pixel, cut to the ball.

    Args:
        deviation: Standard deviation, as a share of the largest change ``eps`` allows each pixel on average.
    """

    deviation: float = 1.0

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw noise and project it."""
        noise = draw.normal(x)
        typical = float(norm.size(torch.ones_like(x[:1])))
        return norm.project(noise.mul_(self.deviation * eps / typical), eps)


@dataclass(frozen=True)
class DirectionStart:
    """Start at a random step: R+FGSM's, https://arxiv.org/abs/1705.07204. For Linf, the signs of normal noise.

    Args:
        ratio: Length of the step as a share of ``eps``.
    """

    ratio: float = 0.5

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw a direction and take the step."""
        return norm.ascent(draw.normal(x)).mul_(self.ratio * eps)


class StepSize(Protocol):
    """What a step size must offer."""

    def at(self, eps: float) -> float:
        """Length of a step, in units of the image."""
        ...


@dataclass(frozen=True)
class FixedStep:
    """A step of the same length under any threat.

    Args:
        size: In units of the image: 2/255, not 2.
    """

    size: float

    def at(self, eps: float) -> float:
        """That length."""
        return self.size


@dataclass(frozen=True)
class StepOfEps:
    """A step of a length that grows with the threat.

    Args:
        ratio: Length as a share of ``eps``.
    """

    ratio: float

    def at(self, eps: float) -> float:
        """The share of ``eps``."""
        return self.ratio * eps
