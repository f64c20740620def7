"""Random noise: what a model must survive before any talk of adversaries, and a check on attacks no stronger."""

from __future__ import annotations

from empir_plugin.attacks.loop import GradientAttack
from empir_plugin.attacks.starts import GaussianStart, StepOfEps, UniformStart


def uniform_noise(trials: int = 1) -> GradientAttack:
    """Points drawn uniformly from the ball, for Linf uniform noise on every pixel: the loop's start, with no step.

    Args:
        trials: Points per image; an image that falls is not tried again.

    Example:
        >>> import torch
        >>> from empir_plugin.attacks.threat import Threat
        >>> x, y = torch.tensor([[[[0.51, 0.5]]]]), torch.tensor([0])
        >>> noisy = uniform_noise(100)(lambda x: x.flatten(1), x, y, Threat.parse("Linf:0.1"))
        >>> bool(noisy[0, 0, 0, 0] < noisy[0, 0, 0, 1])
        True
    """
    return GradientAttack(0, StepOfEps(0.0), start=UniformStart(), restarts=trials)


def gaussian_noise(trials: int = 1, *, deviation: float = 1.0) -> GradientAttack:
    """Normal noise on every pixel, cut to the ball.

    Args:
        trials: Points per image; an image that falls is not tried again.
        deviation: Standard deviation, as a share of the change that eps allows each pixel: for Linf of eps itself.

    Example:
        >>> gaussian_noise(10).restarts
        10
    """
    return GradientAttack(0, StepOfEps(0.0), start=GaussianStart(deviation), restarts=trials)
