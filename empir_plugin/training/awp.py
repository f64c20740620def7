"""Adversarial weight perturbation: training at weights that are themselves moved against the network.

Source: Wu, Xia and Wang, NeurIPS 2020, https://arxiv.org/abs/2004.05884.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from empir_plugin.errors import InputError
from empir_plugin.training.lesson import Fit, Lesson
from empir_plugin.training.objectives import Objective
from empir_plugin.training.ranges import check_not_negative


class InTwoSteps(Objective, Protocol):
    """An objective that attacks first, and then takes its loss."""

    def attacked(self, model: nn.Module, lesson: Lesson) -> Tensor:
        """Attacked images ``(N, C, H, W)``."""
        ...

    def taught(self, model: nn.Module, lesson: Lesson, found: Tensor) -> Fit:
        """The loss on them."""
        ...


@dataclass(frozen=True)
class WeightPerturbed:
    """Adversarial weight perturbation (AWP), https://arxiv.org/abs/2004.05884, around an adversarial objective.

    Images are attacked at the weights w as they are. Then every layer's weights are moved up the loss on those images,
    by ``gamma`` times their own length, and the loss and its gradient are taken there:
    ``v = gamma * |w| * g / |g|`` with g the gradient at w and Frobenius norms. The gradient counts as one at w, which
    never changes: there is nothing to undo. Biases, normalisations and learned ranges, parameters of fewer than two
    dimensions, are not moved, as in the authors' code, and the trial step leaves running statistics alone.

    An ensemble is moved as a whole, each layer of each member by its own length. Of a quantized layer the *latent*
    weights are moved. They are rounded afterwards, so that most low-precision weights stay where they are: the fewer
    bits, the less a small ``gamma`` does.

    Args:
        objective: Whose loss is climbed and then lowered.
        gamma: Length of the perturbation as a share of the weights'; the authors have 5e-3 with TRADES and 1e-2
            without. With 0 this is the objective itself, bit for bit.
        warmup: Share of the training before the first perturbation.

    Raises:
        InputError: If gamma is negative or the warmup lies outside [0, 1).

    Example:
        >>> from empir_plugin.training.adversary import fgsm
        >>> from empir_plugin.training.objectives import Adversarial
        >>> objective, model = Adversarial(fgsm("Linf:0.1")), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> lesson = Lesson(torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))
        >>> bool(WeightPerturbed(objective, gamma=0.1)(model, lesson).loss > objective(model, lesson).loss)
        True
    """

    objective: InTwoSteps
    gamma: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("gamma", self.gamma)
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup of a weight perturbation must lie in [0, 1), got {self.warmup!r}")

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Attack the images, then the weights, then take the loss."""
        if not self.gamma or lesson.progress <= self.warmup:
            return self.objective(model, lesson)
        taught = _Taught(self.objective, model)
        arguments = (lesson, self.objective.attacked(model, lesson))
        weights = {name: weight for name, weight in taught.named_parameters() if weight.dim() > 1}
        moves = _moves(taught, weights, arguments, self.gamma)
        moved = {name: weights[name] + move for name, move in moves.items()}
        return functional_call(taught, moved, arguments)


class _Taught(nn.Module):
    """The second step of an objective, as a function of a network's weights."""

    def __init__(self, objective: InTwoSteps, model: nn.Module) -> None:
        super().__init__()
        self.objective, self.model = objective, model

    def forward(self, lesson: Lesson, found: Tensor) -> Fit:
        return self.objective.taught(self.model, lesson, found)


def _moves(
    taught: _Taught, weights: dict[str, nn.Parameter], arguments: tuple[Lesson, Tensor], gamma: float
) -> dict[str, Tensor]:
    """How each of the weights is moved; those the loss does not depend on are left out."""
    learned = {name: weight for name, weight in weights.items() if weight.requires_grad}
    spare = {name: buffer.clone() for name, buffer in taught.named_buffers()}
    trial: Fit = functional_call(taught, spare, arguments)
    gradients = torch.autograd.grad(trial.loss, list(learned.values()), allow_unused=True)
    pairs = zip(learned.items(), gradients, strict=True)
    return {name: _move(weight.detach(), g, gamma) for (name, weight), g in pairs if g is not None}


def _move(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    length = gradient.norm()
    return torch.where(length > 0, gamma * weight.norm() / length, 0.0) * gradient
