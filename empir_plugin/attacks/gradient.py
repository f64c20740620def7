"""FGSM, BIM, PGD, MIM and R+FGSM: settings of the one gradient loop."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from empir_plugin.attacks.batch import Batch, parameters_frozen
from empir_plugin.attacks.losses import Loss, cross_entropy
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.starts import (
    DirectionStart,
    FixedStep,
    GaussianStart,
    Start,
    StepOfEps,
    StepSize,
    UniformStart,
    at_image,
)
from empir_plugin.attacks.surrogates import Model, Surrogate, View, plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError


@dataclass(frozen=True)
class GradientAttack:
    """Projected gradient ascent, https://arxiv.org/abs/1706.06083, as a value: call it on a model.

    An image that fools the model leaves the running batch at once, so each further step costs only the survivors. One
    pass per step serves the gradient and the decision alike.

    Args:
        steps: Gradient steps; with 0, only the start is tried.
        step_size: Length of one step.
        start: Where to begin.
        restarts: How often to begin, each time with the images that still withstand.
        loss: What to climb.
        surrogate: What supplies the gradient where the model has none, or a misleading one.
        decay: Momentum factor of MIM; 0 for none.
        start_in_box: Whether the start is clipped to [0, 1]. (EMPIR's release does not clip it.)
        return_last: Return the last iterate of every image, fooled or not, as most publications do, instead of the
            first that fools the model. The model's decision is then never asked for.

    Raises:
        InputError: If a setting makes no sense.

    Example:
        >>> from empir_plugin.attacks.starts import StepOfEps
        >>> weak = GradientAttack(steps=10, step_size=StepOfEps(0.25))
        >>> x, y = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
        >>> weak(lambda x: x.flatten(1), x, y, Threat.parse("Linf:0.1"))
        tensor([[[[0.4750, 0.5250]]]])
    """

    kind: ClassVar[str] = "gradient"
    algorithm_version: ClassVar[int] = 1

    steps: int
    step_size: StepSize
    start: Start = at_image
    restarts: int = 1
    loss: Loss = cross_entropy
    surrogate: Surrogate = plain
    decay: float = 0.0
    start_in_box: bool = True
    return_last: bool = False

    def __post_init__(self) -> None:
        if self.steps < 0 or self.restarts < 1:
            raise InputError(f"an attack has 0 or more steps and a restart, got {self.steps} and {self.restarts}")
        if self.restarts > 1 and self.start == at_image:
            raise InputError(f"{self.restarts} restarts from the same point are one: use a random start")
        if self.restarts > 1 and self.return_last:
            raise InputError("return_last keeps one iterate per image: use a single restart")

    def __call__(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        indices: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> Tensor:
        """Attack a batch.

        Args:
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``; its argmax has to be changed.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: True labels ``(N,)``.
            threat: How far to go.
            seed: Of the random starts.
            indices: Numbers of the images in the data set ``(N,)``, 0 to N - 1 if left out: randomness belongs to them.
            targets: Classes ``(N,)`` to reach; the images are pushed away from ``y`` if left out.

        Returns:
            Adversarial images ``(N, C, H, W)``; an image that withstood is returned unchanged.

        Raises:
            InputError: If a tensor is not what it must be, the surrogate does not fit the model, or eps is infinite.
            EvaluationError: If there is no gradient, or a logit, loss or gradient is NaN.
        """
        if math.isinf(threat.eps):
            raise InputError(f"gradient ascent needs a budget, got {threat}: name a finite eps, or use CarliniWagner")
        survivors = Batch.of(x, y, indices=indices, targets=targets)
        found = x.detach().clone()
        with parameters_frozen(model):
            for restart in range(self.restarts):
                if not len(survivors):
                    break
                draw = Draw(seed, survivors.indices, restart)
                survivors = self._run(model, survivors, threat, draw, found)
        return found

    def _run(self, model: Model, batch: Batch, threat: Threat, draw: Draw, found: Tensor) -> Batch:
        """Climb once; write what fools into ``found`` and return what withstood."""
        adv = batch.x + self.start(threat.norm, batch.x, threat.eps, draw)
        adv = adv.clamp_(0, 1) if self.start_in_box else adv
        velocity = torch.zeros_like(adv) if self.decay else None
        for _ in range(self.steps):
            with torch.enable_grad():
                view = self.surrogate(model, adv.requires_grad_(True))
            withstood = self._record(view, batch, adv, found)
            if withstood is not None and not withstood.any():
                return batch.keep(withstood)
            grad = self._gradient(view, batch, adv)
            adv = adv.detach()
            if withstood is not None and not withstood.all():
                batch, adv, grad = batch.keep(withstood), adv[withstood], grad[withstood]
                velocity = None if velocity is None else velocity[withstood]
            if velocity is not None:
                velocity = grad = velocity * self.decay + _scaled_to_mean_one(grad)
            adv = self._stepped(batch, adv, grad, threat)
        return self._finish(model, batch, adv, found)

    def _record(self, view: View, batch: Batch, adv: Tensor, found: Tensor) -> Tensor | None:
        """Write what fools into ``found``; where the others are, ``(N,)``, or None if nobody asked."""
        batch.check_logits(view.logits)
        if self.return_last:
            return None
        fooled = batch.fooled(view.decide())
        found[batch.rows[fooled]] = adv.detach()[fooled]
        return ~fooled

    def _gradient(self, view: View, batch: Batch, adv: Tensor) -> Tensor:
        with torch.enable_grad():
            loss = self.loss(view.logits, batch.y, batch.targets).sum()
        if not loss.requires_grad:
            raise EvaluationError(NO_GRADIENT)
        (grad,) = torch.autograd.grad(loss, adv, allow_unused=True)
        if grad is None:
            raise EvaluationError(NO_GRADIENT)
        if not torch.isfinite(grad).all():
            raise EvaluationError(f"the gradient of {self.loss} is not finite: the model's logits may overflow")
        return grad

    def _stepped(self, batch: Batch, adv: Tensor, grad: Tensor, threat: Threat) -> Tensor:
        delta = threat.norm.ascent(grad).mul_(self.step_size.at(threat.eps)).add_(adv).sub_(batch.x)
        return threat.norm.project(delta, threat.eps).add_(batch.x).clamp_(0, 1)

    def _finish(self, model: Model, batch: Batch, adv: Tensor, found: Tensor) -> Batch:
        """Judge the last iterate."""
        if self.return_last:
            found[batch.rows] = adv
            return batch
        with torch.no_grad():
            withstood = self._record(plain(model, adv), batch, adv, found)
        return batch if withstood is None else batch.keep(withstood)


NO_GRADIENT = (
    "the model gives no gradient with respect to the images, as a hard vote or a detached output gives none: "
    "attack it through a surrogate, such as voters or mean_probability"
)


def _scaled_to_mean_one(grad: Tensor) -> Tensor:
    mean = grad.abs().mean((1, 2, 3), keepdim=True)
    return grad / mean.clamp_min(torch.finfo(grad.dtype).tiny)


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
