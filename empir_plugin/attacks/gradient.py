"""Projected gradient attacks: the loop, with FGSM, BIM, PGD, MIM, R+FGSM and random noise as its settings.

:class:`GradientAttack` is the only gradient loop of this package; ``GradientAttack._step`` is the PGD step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from empir_plugin.attacks.batch import NO_GRADIENT, Batch, GradientAttackResult, freeze_parameters, is_zero, view
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
from empir_plugin.attacks.threat import Threat, check_threat
from empir_plugin.errors import EvaluationError, InputError


@dataclass(frozen=True)
class GradientAttack:
    """Projected gradient ascent, https://arxiv.org/abs/1706.06083, as a value: call it on a model.

    Broken images are dropped from the active batch at once, so later steps cost less. One forward pass per step serves
    both the gradient and the decision.

    Args:
        steps: Gradient steps; with 0, only the starting points are tried.
        step_size: Length of one step.
        start: Starting points.
        restarts: How often to start; each restart attacks the images that are still robust.
        loss: The loss to maximise.
        surrogate: Supplies the gradient where the model has none, or a misleading one.
        decay: Momentum factor of MIM; 0 for no momentum.
        start_in_box: Clip the starting points to [0, 1]. (EMPIR's release does not.)
        return_last: Return the last iterate of every image, adversarial or not, as in most publications, instead of
            the first that fools the model. The model's decision is then never computed.

    Raises:
        InputError: If a setting is out of range, or settings contradict each other.

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
            raise InputError(
                f"steps must be 0 or more and restarts 1 or more, got steps={self.steps} and restarts={self.restarts}"
            )
        if self.restarts > 1 and self.start == at_image:
            raise InputError(f"restarts from the clean image are all the same, got {self.restarts}: use a random start")
        if self.restarts > 1 and self.return_last:
            raise InputError(f"return_last keeps one iterate per image, got {self.restarts} restarts: use a single one")

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
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``; the attack tries to change its argmax.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: True labels ``(N,)``.
            threat: Norm and radius the perturbations must respect.
            seed: Seed of the random starts.
            indices: Indices of the images in the data set ``(N,)``, which random starts depend on; 0 to N - 1 if left
                out.
            targets: Target classes ``(N,)``; the attack is untargeted if left out.

        Returns:
            Adversarial images ``(N, C, H, W)``; images the attack does not break are returned unchanged.

        Raises:
            InputError: If a tensor is invalid, the surrogate does not fit the model, or eps is infinite.
            EvaluationError: If there is no gradient, or a logit, loss or gradient is NaN.
        """
        return self.run(model, x, y, threat, seed=seed, indices=indices, targets=targets).images

    def run(
        self,
        model: Model,
        x: Tensor,
        y: Tensor,
        threat: Threat,
        *,
        seed: int = 0,
        indices: Tensor | None = None,
        targets: Tensor | None = None,
    ) -> GradientAttackResult:
        """Attack a batch as a call does, and report where the gradient was exactly zero."""
        check_threat(threat)
        if math.isinf(threat.eps):
            raise InputError(f"gradient ascent needs a budget, got {threat}: name a finite eps, or use CarliniWagner")
        active = Batch.of(x, y, indices=indices, targets=targets)
        result = GradientAttackResult(x.detach().clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device))
        with freeze_parameters(model):
            for restart in range(self.restarts):
                if not len(active):
                    break
                draw = Draw(seed, active.indices, restart)
                active = self._ascend(model, active, threat, draw, result)
        return result

    def _ascend(self, model: Model, batch: Batch, threat: Threat, draw: Draw, result: GradientAttackResult) -> Batch:
        """One restart: write adversarial images into ``result``, and return the batch of images still robust."""
        adv = batch.x + self.start(threat.norm, batch.x, threat.eps, draw)
        adv = adv.clamp_(0, 1) if self.start_in_box else adv
        momentum = torch.zeros_like(adv) if self.decay else None
        for step in range(self.steps):
            with torch.enable_grad():
                found = view(self.surrogate, model, adv.requires_grad_(True))
            robust = self._record_broken(found, batch, adv, result.images)
            if robust is not None and not robust.any():
                return batch.keep(robust)
            grad = self._gradient(found, batch, adv)
            adv = adv.detach()
            if step == 0 and draw.number == 0:
                result.zero_gradient[batch.rows] = is_zero(grad)
            if robust is not None and not robust.all():  # drop broken images from the active batch
                batch, adv, grad = batch.keep(robust), adv[robust], grad[robust]
                momentum = None if momentum is None else momentum[robust]
            if momentum is not None:
                momentum = grad = momentum * self.decay + _scale_to_mean_one(grad)
            adv = self._step(batch, adv, grad, threat)
        return self._finish(model, batch, adv, result.images)

    def _gradient(self, found: View, batch: Batch, adv: Tensor) -> Tensor:
        """Gradient of the loss with respect to the images."""
        with torch.enable_grad():
            loss = self.loss(found.logits, batch.y, batch.targets).sum()
        if not loss.requires_grad:
            raise EvaluationError(NO_GRADIENT)
        (grad,) = torch.autograd.grad(loss, adv, allow_unused=True)
        if grad is None:
            raise EvaluationError(NO_GRADIENT)
        if not torch.isfinite(grad).all():
            raise EvaluationError(f"the gradient of {self.loss} is not finite: the model's logits may overflow")
        return grad

    def _step(self, batch: Batch, adv: Tensor, grad: Tensor, threat: Threat) -> Tensor:
        """The PGD step: move along the gradient, project onto the ball around the clean image, clip to [0, 1]."""
        step = threat.norm.ascent(grad).mul_(self.step_size.at(threat.eps))
        delta = step.add_(adv).sub_(batch.x)
        return threat.norm.project(delta, threat.eps).add_(batch.x).clamp_(0, 1)

    def _finish(self, model: Model, batch: Batch, adv: Tensor, result: Tensor) -> Batch:
        """Write the last iterate into ``result``: of broken images or, with ``return_last``, of all."""
        if self.return_last:
            result[batch.rows] = adv
            return batch
        with torch.no_grad():
            robust = self._record_broken(view(plain, model, adv), batch, adv, result)
        return batch if robust is None else batch.keep(robust)

    def _record_broken(self, found: View, batch: Batch, adv: Tensor, result: Tensor) -> Tensor | None:
        """Write the images that fool the model into ``result``.

        Returns:
            Which images ``(N,)`` are still robust; None if the attack returns last iterates, whatever they achieve.
        """
        batch.check_logits(found.logits)
        if self.return_last:
            return None
        broken = batch.fooled(found.decide())
        result[batch.rows[broken]] = adv.detach()[broken]
        return ~broken


def _scale_to_mean_one(grad: Tensor) -> Tensor:
    """Each image's gradient divided by its mean absolute value."""
    mean = grad.abs().mean((1, 2, 3), keepdim=True)
    return grad / mean.clamp_min(torch.finfo(grad.dtype).tiny)


def fgsm(*, loss: Loss = cross_entropy, surrogate: Surrogate = plain) -> GradientAttack:
    """Fast gradient sign method, https://arxiv.org/abs/1412.6572: one step of length eps.

    Args:
        loss: The loss to maximise.
        surrogate: Supplies the gradient.

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
    """Basic iterative method, https://arxiv.org/abs/1607.02533: projected gradient ascent from the clean image.

    Args:
        steps: Gradient steps.
        step_size: In units of the image; ``min(eps, 2.5 * eps / steps)`` if left out.
        loss: The loss to maximise.
        surrogate: Supplies the gradient.

    Example:
        >>> bim(10, step_size=2 / 255).step_size
        FixedStep(size=0.00784313725490196)
    """
    return GradientAttack(steps, _step_size(step_size, steps), loss=loss, surrogate=surrogate)


def pgd(
    steps: int = 40,
    *,
    step_size: float | None = None,
    restarts: int = 1,
    loss: Loss = cross_entropy,
    surrogate: Surrogate = plain,
) -> GradientAttack:
    """Projected gradient descent, https://arxiv.org/abs/1706.06083: BIM from a random point of the ball.

    Args:
        steps: Gradient steps.
        step_size: In units of the image; ``min(eps, 2.5 * eps / steps)`` if left out.
        restarts: How often to start; each restart attacks the images that are still robust.
        loss: The loss to maximise.
        surrogate: Supplies the gradient.

    Example:
        >>> pgd(restarts=5).restarts
        5
    """
    size = _step_size(step_size, steps)
    return GradientAttack(steps, size, start=UniformStart(), restarts=restarts, loss=loss, surrogate=surrogate)


def mim(
    steps: int = 40,
    *,
    step_size: float | None = None,
    decay: float = 1.0,
    loss: Loss = cross_entropy,
    surrogate: Surrogate = plain,
) -> GradientAttack:
    """Momentum iterative method, https://arxiv.org/abs/1710.06081: BIM along an accumulated gradient.

    Args:
        steps: Gradient steps.
        step_size: In units of the image; ``min(eps, 2.5 * eps / steps)`` if left out.
        decay: Momentum factor: how much of the accumulated gradient is kept at every step.
        loss: The loss to maximise.
        surrogate: Supplies the gradient.

    Example:
        >>> mim().decay
        1.0
    """
    return GradientAttack(steps, _step_size(step_size, steps), decay=decay, loss=loss, surrogate=surrogate)


def rfgsm(*, ratio: float = 0.5, loss: Loss = cross_entropy, surrogate: Surrogate = plain) -> GradientAttack:
    """R+FGSM, https://arxiv.org/abs/1705.07204: a random step, then a gradient step.

    Args:
        ratio: Length of the random step, relative to eps; the gradient step takes the rest.
        loss: The loss to maximise.
        surrogate: Supplies the gradient.

    Example:
        >>> rfgsm().start
        DirectionStart(ratio=0.5)
    """
    return GradientAttack(1, StepOfEps(1 - ratio), start=DirectionStart(ratio), loss=loss, surrogate=surrogate)


def _step_size(step_size: float | None, steps: int) -> StepSize:
    if step_size is not None:
        return FixedStep(step_size)
    return StepOfEps(min(1.0, 2.5 / max(steps, 1)))


def uniform_noise(trials: int = 1) -> GradientAttack:
    """Uniform noise: points drawn uniformly from the ball, without any gradient step.

    Args:
        trials: Points per image; only images that are still robust are tried again.

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
    """Gaussian noise on every pixel, projected to the ball, without any gradient step.

    Args:
        trials: Points per image; only images that are still robust are tried again.
        deviation: Standard deviation, relative to the change that eps allows if all pixels change alike: for Linf, to
            eps itself.

    Example:
        >>> gaussian_noise(10).restarts
        10
    """
    return GradientAttack(0, StepOfEps(0.0), start=GaussianStart(deviation), restarts=trials)
