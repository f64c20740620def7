"""Adversarial weight perturbation: an adversarial objective, minimized at weights that are moved to raise its loss."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from empir_plugin._files.tables import check_not_negative
from empir_plugin.errors import InputError
from empir_plugin.training.batch import LossOutput, TrainingBatch
from empir_plugin.training.objectives import AdversarialObjective


@dataclass(frozen=True)
class WeightPerturbed:
    """Adversarial weight perturbation (AWP), https://arxiv.org/abs/2004.05884, around an adversarial objective.

    The images are attacked at the current weights w. Then each layer's weights are moved in the direction that raises
    the loss on those images, by ``gamma`` times their own norm, and the loss and its gradient are computed there:
    ``v = gamma * |w| * g / |g|``, where g is the gradient at w and norms are Frobenius norms. The optimizer applies
    that gradient to w itself, which is never modified, so nothing has to be restored. Parameters with fewer than two
    dimensions (biases, normalisations, learned ranges) are not perturbed, as in the authors' code, and computing g
    leaves the running statistics unchanged.

    An ensemble is perturbed as a whole, each layer of each member by its own norm. In a quantized layer the *latent*
    weights are perturbed and rounded afterwards, so most low-precision weights do not change: the fewer the bits, the
    smaller the effect of a small ``gamma``.

    Args:
        objective: The objective whose loss is first raised and then minimized.
        gamma: Norm of the perturbation as a share of the weights' norm; the authors use 5e-3 with TRADES and 1e-2
            without. With 0 this is the objective itself, bit for bit.
        warmup: Share of the training before the first perturbation, in [0, 1).

    Raises:
        InputError: If gamma is negative or the warmup is out of range.

    Example:
        >>> from empir_plugin.training.adversary import fgsm
        >>> from empir_plugin.training.objectives import Adversarial
        >>> objective, model = Adversarial(fgsm("Linf:0.1")), nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> batch = TrainingBatch(torch.rand(8, 1, 2, 2), torch.zeros(8, dtype=torch.int64))
        >>> bool(WeightPerturbed(objective, gamma=0.1)(model, batch).loss > objective(model, batch).loss)
        True
    """

    objective: AdversarialObjective
    gamma: float
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_not_negative("gamma", self.gamma)
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup of a weight perturbation must lie in [0, 1), got {self.warmup!r}")

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Attack the images, perturb the weights, then compute the loss."""
        if not self.gamma or batch.progress <= self.warmup:
            return self.objective(model, batch)
        loss = _LossOfWeights(self.objective, model)
        arguments = (batch, self.objective.attack(model, batch))
        weights = {name: weight for name, weight in loss.named_parameters() if weight.dim() > 1}
        steps = _perturbations(loss, weights, arguments, self.gamma)
        perturbed = {name: weights[name] + step for name, step in steps.items()}
        return functional_call(loss, perturbed, arguments)


class _LossOfWeights(nn.Module):
    """The loss of an objective on attacked images, as a function of a network's weights."""

    def __init__(self, objective: AdversarialObjective, model: nn.Module) -> None:
        super().__init__()
        self.objective, self.model = objective, model

    def forward(self, batch: TrainingBatch, attacked: Tensor) -> LossOutput:
        return self.objective.loss_on(self.model, batch, attacked)


def _perturbations(
    loss: _LossOfWeights, weights: dict[str, nn.Parameter], arguments: tuple[TrainingBatch, Tensor], gamma: float
) -> dict[str, Tensor]:
    """Perturbation of each weight tensor; those the loss does not depend on are left out."""
    trainable = {name: weight for name, weight in weights.items() if weight.requires_grad}
    buffers = {name: buffer.clone() for name, buffer in loss.named_buffers()}
    output: LossOutput = functional_call(loss, buffers, arguments)
    gradients = torch.autograd.grad(output.loss, list(trainable.values()), allow_unused=True)
    pairs = zip(trainable.items(), gradients, strict=True)
    return {name: _perturbation(weight.detach(), g, gamma) for (name, weight), g in pairs if g is not None}


def _perturbation(weight: Tensor, gradient: Tensor, gamma: float) -> Tensor:
    norm = gradient.norm()
    return torch.where(norm > 0, gamma * weight.norm() / norm, 0.0) * gradient
