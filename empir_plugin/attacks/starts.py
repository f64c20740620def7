"""Starting points and step sizes of gradient attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.threat import Norm


class Start(Protocol):
    """The interface of a starting point."""

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Initial perturbations ``(N, C, H, W)`` of images ``x``, of norm ``eps`` or less."""
        ...


@dataclass(frozen=True)
class AtImage:
    """Start at the clean image."""

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Zero perturbations."""
        return torch.zeros_like(x)


at_image = AtImage()


@dataclass(frozen=True)
class UniformStart:
    """Start at a point drawn uniformly from the ball."""

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw points of the ball of radius ``eps``."""
        return norm.random(x, eps, draw)


@dataclass(frozen=True)
class GaussianStart:
    """Start at Gaussian noise on every pixel, projected to the ball.

    Args:
        deviation: Standard deviation, relative to the change ``eps`` allows if all pixels change alike.
    """

    deviation: float = 1.0

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw noise and project it."""
        noise = draw.normal(x)
        typical = float(norm.size(torch.ones_like(x[:1])))
        return norm.project(noise.mul_(self.deviation * eps / typical), eps)


@dataclass(frozen=True)
class DirectionStart:
    """Start with a random step, as R+FGSM does, https://arxiv.org/abs/1705.07204. For Linf, the sign of Gaussian noise.

    Args:
        ratio: Length of the step, relative to ``eps``.
    """

    ratio: float = 0.5

    def __call__(self, norm: Norm, x: Tensor, eps: float, draw: Draw) -> Tensor:
        """Draw a direction and take the step."""
        return norm.ascent(draw.normal(x)).mul_(self.ratio * eps)


class StepSize(Protocol):
    """The interface of a step size."""

    def at(self, eps: float) -> float:
        """Length of a step under a threat of radius ``eps``, in units of the image."""
        ...


@dataclass(frozen=True)
class FixedStep:
    """A step of the same length under every threat.

    Args:
        size: In units of the image: 2/255, not 2.
    """

    size: float

    def at(self, eps: float) -> float:
        """The fixed length, whatever ``eps`` is."""
        return self.size


@dataclass(frozen=True)
class StepOfEps:
    """A step whose length is proportional to ``eps``.

    Args:
        ratio: Length of the step, relative to ``eps``.
    """

    ratio: float

    def at(self, eps: float) -> float:
        """``ratio`` times ``eps``."""
        return self.ratio * eps
