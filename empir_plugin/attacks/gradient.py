"""FGSM, BIM, PGD, MIM and R+FGSM: settings of the one gradient loop."""

from __future__ import annotations

from empir_plugin.attacks.loop import GradientAttack as GradientAttack
from empir_plugin.attacks.losses import Loss, cross_entropy
from empir_plugin.attacks.starts import DirectionStart, FixedStep, StepOfEps, StepSize, UniformStart
from empir_plugin.attacks.surrogates import Surrogate, plain


def _step(step_size: float | None, steps: int) -> StepSize:
    if step_size is not None:
        return FixedStep(step_size)
    return StepOfEps(min(1.0, 2.5 / max(steps, 1)))


def fgsm(*, loss: Loss = cross_entropy, surrogate: Surrogate = plain) -> GradientAttack:
    """Fast gradient sign method, https://arxiv.org/abs/1412.6572: one step as long as the threat allows.

    Example:
        >>> import torch
        >>> from empir_plugin.attacks.threat import Threat
        >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
        >>> fgsm()(lambda x: x.flatten(1), x, y, Threat.parse("Linf:0.1"))
        tensor([[[[0.4000, 0.6000]]]])
    """
    return GradientAttack(1, StepOfEps(1.0), loss=loss, surrogate=surrogate)


def bim(
    steps: int = 40, *, step_size: float | None = None, loss: Loss = cross_entropy, surrogate: Surrogate = plain
) -> GradientAttack:
    """Basic iterative method, https://arxiv.org/abs/1607.02533: gradient ascent from the clean image.

    Args:
        steps: Gradient steps.
        step_size: In units of the image; 2.5 times the radius over the steps if left out, at most the radius.
        loss: What to climb.
        surrogate: What supplies the gradient.

    Example:
        >>> bim(10, step_size=2 / 255).step_size
        FixedStep(size=0.00784313725490196)
    """
    return GradientAttack(steps, _step(step_size, steps), loss=loss, surrogate=surrogate)


def pgd(
    steps: int = 40,
    *,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    surrogate: Surrogate = plain,
) -> GradientAttack:
    """Projected gradient descent, https://arxiv.org/abs/1706.06083: ascent from a random point of the ball.

    Args:
        steps: Gradient steps.
        step_size: In units of the image; 2.5 times the radius over the steps if left out, at most the radius.
        restarts: How often to begin, each time with the images that still withstand.
        loss: What to climb.
        surrogate: What supplies the gradient.

    Example:
        >>> pgd(restarts=5).restarts
        5
    """
    size = _step(step_size, steps)
    return GradientAttack(steps, size, start=UniformStart(), restarts=restarts, loss=loss, surrogate=surrogate)


def mim(
    steps: int = 40,
    *,
    step_size: float | None = None,
    decay: float = 1.0,
    loss: Loss = cross_entropy,
    surrogate: Surrogate = plain,
) -> GradientAttack:
    """Momentum iterative method, https://arxiv.org/abs/1710.06081: BIM along a running sum of scaled gradients.

    Args:
        steps: Gradient steps.
        step_size: In units of the image; 2.5 times the radius over the steps if left out, at most the radius.
        decay: What is kept of the sum at every step.
        loss: What to climb.
        surrogate: What supplies the gradient.

    Example:
        >>> mim().decay
        1.0
    """
    return GradientAttack(steps, _step(step_size, steps), decay=decay, loss=loss, surrogate=surrogate)


def rfgsm(*, ratio: float = 0.5, loss: Loss = cross_entropy, surrogate: Surrogate = plain) -> GradientAttack:
    """R+FGSM, https://arxiv.org/abs/1705.07204: a random step, then one along the gradient with what is left.

    Args:
        ratio: Share of the radius that goes into the random step.
        loss: What to climb.
        surrogate: What supplies the gradient.

    Example:
        >>> rfgsm().start
        DirectionStart(ratio=0.5)
    """
    return GradientAttack(1, StepOfEps(1 - ratio), start=DirectionStart(ratio), loss=loss, surrogate=surrogate)
