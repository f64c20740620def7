"""Carlini and Wagner's L2 attack: the smallest adversarial perturbation, found by Adam in tanh space."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from empir_plugin.attacks.batch import NO_GRADIENT, Batch, GradientAttackResult, freeze_parameters, is_zero, view
from empir_plugin.attacks.losses import margin
from empir_plugin.attacks.surrogates import Model, Surrogate, plain
from empir_plugin.attacks.threat import Threat, check_threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.backward import clamp_min

# Keeps arctanh finite at black and white pixels; the constant of the authors' code and of EMPIR's release.
_INSIDE = 0.999999
_DECAYS = 0.9, 0.999
_ADAM_EPS = 1e-8


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner's L2 attack, https://arxiv.org/abs/1608.04644.

    Minimises ``|delta|^2 + c * max(0, margin + confidence)`` over images in tanh space, with a binary search for ``c``
    per image. The attack itself has no budget: adversarial images beyond the threat's radius are discarded, and
    ``Threat.parse("L2:inf")`` gives the attack as published.

    Args:
        search_steps: Binary search steps: values of ``c`` tried per image.
        iterations: Adam steps per value of ``c``.
        learning_rate: Learning rate of Adam, in tanh space.
        initial_const: The first ``c``.
        confidence: By how much the wrong class must win, in units of the logits.
        abort_checks: How many times per search step to drop images whose objective stopped decreasing; 0 for never.
        abort_together: Drop all images or none, by their summed objective, as the release does in batches of 100.
        surrogate: Supplies logits and gradients. Success is the model's own decision.

    Raises:
        InputError: If a setting is out of range.

    Example:
        >>> x, y = torch.tensor([[[[0.6, 0.4]]]]), torch.tensor([0])
        >>> adv = CarliniWagner(iterations=100)(lambda x: x.flatten(1), x, y, Threat.parse("L2:inf"))
        >>> round(float((adv - x).norm()), 2)
        0.14
    """

    kind: ClassVar[str] = "carlini-wagner"
    algorithm_version: ClassVar[int] = 1

    search_steps: int = 9
    iterations: int = 1000
    learning_rate: float = 0.01
    initial_const: float = 1e-3
    confidence: float = 0.0
    abort_checks: int = 10
    abort_together: bool = False
    surrogate: Surrogate = plain

    def __post_init__(self) -> None:
        if self.search_steps < 1 or self.iterations < 1 or self.abort_checks < 0:
            raise InputError(
                "search_steps and iterations must be 1 or more and abort_checks not negative, got "
                f"{self.search_steps}, {self.iterations} and {self.abort_checks}"
            )
        if not (self.learning_rate > 0 and self.initial_const > 0 and self.confidence >= 0):
            raise InputError(
                "learning_rate and initial_const must be above 0 and confidence not negative, got "
                f"{self.learning_rate}, {self.initial_const} and {self.confidence}"
            )

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
        """Attack a batch; the attack is deterministic.

        Args:
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``; the attack tries to change its argmax.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: True labels ``(N,)``.
            threat: Norm and radius the returned perturbations must respect.
            seed: No effect.
            indices: No effect.
            targets: Target classes ``(N,)``; the attack is untargeted if left out.

        Returns:
            The nearest adversarial images found ``(N, C, H, W)``; an image is returned unchanged if none was found, or
            none within the threat.

        Raises:
            InputError: If a tensor is invalid.
            EvaluationError: If there is no gradient, or a logit is NaN.
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
        batch = Batch.of(x, y, indices=indices, targets=targets)
        best, zero_gradient = x.detach().clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        if not len(batch):
            return GradientAttackResult(best, zero_gradient)
        best_distance = x.new_full((len(x),), float("inf"))
        const = x.new_full((len(x),), self.initial_const)
        low, high = torch.zeros_like(const), torch.full_like(const, 1e10)
        with freeze_parameters(model):
            for _ in range(self.search_steps):
                succeeded = self._descend(model, batch, const, best, best_distance, zero_gradient)
                high = torch.where(succeeded, torch.minimum(high, const), high)
                low = torch.where(succeeded, low, torch.maximum(low, const))
                const = torch.where(high < 1e9, (low + high) / 2, const * 10)
        within = threat.norm.size(best - x) <= threat.eps
        return GradientAttackResult(torch.where(within.view(-1, 1, 1, 1), best, batch.x), zero_gradient)

    def _descend(
        self,
        model: Model,
        batch: Batch,
        const: Tensor,
        best: Tensor,
        best_distance: Tensor,
        zero_gradient: Tensor,
    ) -> Tensor:
        """One search step: improve ``best`` and ``best_distance``, and return which images ``(N,)`` succeeded."""
        succeeded = torch.zeros_like(batch.rows, dtype=torch.bool)
        adam = _Adam.start(batch.x, const)
        every = max(self.iterations // self.abort_checks, 1) if self.abort_checks else self.iterations
        for step in range(self.iterations):
            adv, objective, grad, fooled = self._evaluate(model, batch, adam)
            if step == 0:  # at the clean images, where the distance has no gradient of its own
                zero_gradient[batch.rows] = is_zero(grad)
            check = step % every == 0 and self.abort_checks > 0
            decreasing = self._is_decreasing(objective, adam.last_objective) if check else None
            if self.abort_together and decreasing is not None and not decreasing.any():
                break  # before this step's images are recorded, as in the authors' code and the release
            succeeded[batch.rows[fooled]] = True
            _record_nearest(batch, adv, adam.distance(adv), fooled, best, best_distance)
            adam = adam.step(grad, self.learning_rate, step)
            if decreasing is not None:
                adam = replace(adam, last_objective=objective).keep(decreasing)
                batch = batch.keep(decreasing)
            if not len(batch):
                break
        return succeeded

    def _evaluate(self, model: Model, batch: Batch, adam: _Adam) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The images, their objective ``(N,)``, its gradient, and where ``(N,)`` the model is fooled."""
        with torch.enable_grad():
            w = adam.w.detach().requires_grad_(True)
            adv = _to_image(w)
            found = view(self.surrogate, model, adv)
            batch.check_logits(found.logits)
            if not found.logits.requires_grad:
                raise EvaluationError(NO_GRADIENT)
            shortfall = clamp_min(self.confidence - margin(found.logits, batch.y, batch.targets), 0)
            objective = adam.distance(adv) + adam.const * shortfall
            (grad,) = torch.autograd.grad(objective.sum(), w)
        fooled = batch.fooled(found.decide())
        if self.confidence:
            fooled &= shortfall.detach() == 0
        return adv.detach(), objective.detach(), grad, fooled

    def _is_decreasing(self, objective: Tensor, last: Tensor) -> Tensor:
        if self.abort_together:
            return (objective.sum() <= 0.9999 * last.sum()).expand_as(objective)
        return objective <= 0.9999 * last


@dataclass(frozen=True, eq=False)
class _Adam:
    """Adam's state for every image, with the constant ``c`` and the objective at the last check."""

    w: Tensor
    mean: Tensor
    square: Tensor
    origin: Tensor
    const: Tensor
    last_objective: Tensor

    @classmethod
    def start(cls, x: Tensor, const: Tensor) -> _Adam:
        w = torch.atanh((2 * x - 1) * _INSIDE)
        return cls(w, torch.zeros_like(w), torch.zeros_like(w), _to_image(w), const, torch.full_like(const, math.inf))

    def distance(self, adv: Tensor) -> Tensor:
        return (adv - self.origin).square().sum((1, 2, 3))

    def step(self, grad: Tensor, learning_rate: float, step: int) -> _Adam:
        first, second = _DECAYS
        mean = self.mean * first + grad * (1 - first)
        square = self.square * second + grad.square() * (1 - second)
        scale = (square / (1 - second ** (step + 1))).sqrt_().add_(_ADAM_EPS)
        w = self.w - (learning_rate / (1 - first ** (step + 1))) * mean / scale
        return replace(self, w=w, mean=mean, square=square)

    def keep(self, wanted: Tensor) -> _Adam:
        return _Adam(*(getattr(self, part.name)[wanted] for part in fields(self)))


def _to_image(w: Tensor) -> Tensor:
    return (torch.tanh(w) + 1) / 2


def _record_nearest(
    batch: Batch, adv: Tensor, distance: Tensor, fooled: Tensor, best: Tensor, best_distance: Tensor
) -> None:
    nearer = fooled & (distance < best_distance[batch.rows])
    best_distance[batch.rows[nearer]] = distance[nearer]
    best[batch.rows[nearer]] = adv[nearer]


def carlini_wagner_of_empir(*, abort_together: bool = False, surrogate: Surrogate = plain) -> CarliniWagner:
    """The settings of EMPIR's paper and release, https://openreview.net/forum?id=HJem3yHKwH: one constant, 50 steps.

    Args:
        abort_together: Stop the whole batch by its summed objective, as the release does.
        surrogate: Supplies logits and gradients.

    Example:
        >>> carlini_wagner_of_empir().initial_const
        10.0
    """
    return CarliniWagner(1, 50, 0.1, 10.0, abort_together=abort_together, surrogate=surrogate)
