"""Carlini and Wagner's L2 attack: the smallest perturbation that fools, found by Adam in tanh space."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from empir_plugin.attacks.batch import Batch, parameters_frozen
from empir_plugin.attacks.gradient import NO_GRADIENT
from empir_plugin.attacks.losses import margin
from empir_plugin.attacks.surrogates import Model, Surrogate, plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError

# Keeps arctanh finite at black and white pixels; the constant of the authors' code and of EMPIR's release.
_INSIDE = 0.999999
_DECAYS = 0.9, 0.999
_ADAM_EPS = 1e-8


@dataclass(frozen=True)
class CarliniWagner:
    """Carlini and Wagner's L2 attack, https://arxiv.org/abs/1608.04644.

    Minimises ``|delta|^2 + c * max(0, margin + confidence)`` over images in tanh space, with a binary search for ``c``
    per image. It knows no budget: under a finite threat it returns what lies within it, and ``Threat.parse("L2:inf")``
    is the attack as published.

    Args:
        search_steps: Values of ``c`` tried per image.
        iterations: Adam steps per value.
        learning_rate: Of Adam, in tanh space.
        initial_const: First ``c``.
        confidence: By how much the wrong class must win, in units of the logits.
        abort_checks: How often per search step an image whose objective stopped falling is given up; 0 for never.
        abort_together: Give up on all images or none, by their summed objective, as the release does in batches of 100.
        surrogate: What supplies logits and gradients; what counts as success is the model's own decision.

    Raises:
        InputError: If a setting makes no sense.

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
            raise InputError("learning_rate and initial_const must be above 0, and confidence not below")

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
        """Attack a batch; nothing about it is random.

        Args:
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``; its argmax has to be changed.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: True labels ``(N,)``.
            threat: What is near enough to be returned.
            seed: Without effect.
            indices: Without effect.
            targets: Classes ``(N,)`` to reach; the images are pushed away from ``y`` if left out.

        Returns:
            The nearest adversarial images found ``(N, C, H, W)``; an image is returned unchanged where none was found
            or none lies within the threat.

        Raises:
            InputError: If a tensor is not what it must be.
            EvaluationError: If there is no gradient, or a logit is NaN.
        """
        batch = Batch.of(x, y, indices=indices, targets=targets)
        found = x.detach().clone()
        if not len(batch):
            return found
        nearest = x.new_full((len(x),), float("inf"))
        const = x.new_full((len(x),), self.initial_const)
        low, high = torch.zeros_like(const), torch.full_like(const, 1e10)
        with parameters_frozen(model):
            for _ in range(self.search_steps):
                succeeded = self._descend(model, batch, const, found, nearest)
                high = torch.where(succeeded, torch.minimum(high, const), high)
                low = torch.where(succeeded, low, torch.maximum(low, const))
                const = torch.where(high < 1e9, (low + high) / 2, const * 10)
        within = threat.norm.size(found - x) <= threat.eps
        return torch.where(within.view(-1, 1, 1, 1), found, batch.x)

    def _descend(self, model: Model, batch: Batch, const: Tensor, found: Tensor, nearest: Tensor) -> Tensor:
        """One search step; improve ``found`` and ``nearest`` and return who succeeded ``(N,)``."""
        succeeded = torch.zeros_like(batch.rows, dtype=torch.bool)
        descent = _Descent.at(batch.x, const)
        every = max(self.iterations // self.abort_checks, 1) if self.abort_checks else self.iterations
        for step in range(self.iterations):
            adv, objective, grad, fooled = self._look(model, batch, descent)
            checked = step % every == 0 and self.abort_checks > 0
            falling = self._falling(objective, descent.reached) if checked else None
            if self.abort_together and falling is not None and not falling.any():
                break  # before this step's images are looked at, as in the authors' code and the release
            succeeded[batch.rows[fooled]] = True
            _keep_nearest(batch, adv, descent.distance(adv), fooled, found, nearest)
            descent = descent.stepped(grad, self.learning_rate, step)
            if falling is not None:
                descent = replace(descent, reached=objective).keep(falling)
                batch = batch.keep(falling)
            if not len(batch):
                break
        return succeeded

    def _look(self, model: Model, batch: Batch, descent: _Descent) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, objective ``(N,)``, its gradient, and where ``(N,)`` the model is fooled."""
        with torch.enable_grad():
            w = descent.w.detach().requires_grad_(True)
            adv = _to_image(w)
            view = self.surrogate(model, adv)
            batch.check_logits(view.logits)
            shortfall = (self.confidence - margin(view.logits, batch.y, batch.targets)).clamp_min(0)
            if not shortfall.requires_grad:
                raise EvaluationError(NO_GRADIENT)
            objective = descent.distance(adv) + descent.const * shortfall
            (grad,) = torch.autograd.grad(objective.sum(), w)
        fooled = batch.fooled(view.decide())
        if self.confidence:
            fooled &= shortfall.detach() == 0
        return adv.detach(), objective.detach(), grad, fooled

    def _falling(self, objective: Tensor, before: Tensor) -> Tensor:
        if self.abort_together:
            return (objective.sum() <= 0.9999 * before.sum()).expand_as(objective)
        return objective <= 0.9999 * before


@dataclass(frozen=True, eq=False)
class _Descent:
    """Where Adam is with every image, the constant ``c`` and the objective at the last check."""

    w: Tensor
    mean: Tensor
    square: Tensor
    origin: Tensor
    const: Tensor
    reached: Tensor

    @classmethod
    def at(cls, x: Tensor, const: Tensor) -> _Descent:
        w = torch.atanh((2 * x - 1) * _INSIDE)
        return cls(w, torch.zeros_like(w), torch.zeros_like(w), _to_image(w), const, torch.full_like(const, math.inf))

    def distance(self, adv: Tensor) -> Tensor:
        return (adv - self.origin).square().sum((1, 2, 3))

    def stepped(self, grad: Tensor, learning_rate: float, step: int) -> _Descent:
        first, second = _DECAYS
        mean = self.mean * first + grad * (1 - first)
        square = self.square * second + grad.square() * (1 - second)
        scale = (square / (1 - second ** (step + 1))).sqrt_().add_(_ADAM_EPS)
        w = self.w - (learning_rate / (1 - first ** (step + 1))) * mean / scale
        return replace(self, w=w, mean=mean, square=square)

    def keep(self, wanted: Tensor) -> _Descent:
        return _Descent(*(getattr(self, part.name)[wanted] for part in fields(self)))


def _to_image(w: Tensor) -> Tensor:
    return (torch.tanh(w) + 1) / 2


def _keep_nearest(batch: Batch, adv: Tensor, distance: Tensor, fooled: Tensor, found: Tensor, nearest: Tensor) -> None:
    better = fooled & (distance < nearest[batch.rows])
    nearest[batch.rows[better]] = distance[better]
    found[batch.rows[better]] = adv[better]


def carlini_wagner_of_empir(*, abort_together: bool = False, surrogate: Surrogate = plain) -> CarliniWagner:
    """The setting of EMPIR's paper and release, https://openreview.net/forum?id=HJem3yHKwH: one constant, 50 steps.

    Args:
        abort_together: Stop whole batches by their summed objective, as the release does.
        surrogate: What supplies logits and gradients.

    Example:
        >>> carlini_wagner_of_empir().initial_const
        10.0
    """
    return CarliniWagner(1, 50, 0.1, 10.0, abort_together=abort_together, surrogate=surrogate)
