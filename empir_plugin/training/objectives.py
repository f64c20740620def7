"""Training objectives: clean and adversarial, TRADES, gradient penalty, distillation, and weight perturbation.

An objective is called with a network in training mode and a :class:`~empir_plugin.training.batch.TrainingBatch`, and
returns the loss to minimize. A single network and an ensemble are treated alike: called with an
:class:`~empir_plugin.models.ensemble.Ensemble`, an adversarial objective attacks and trains all members together,
through their common decision, which is what makes an ensemble robust (https://arxiv.org/abs/1811.09300).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from empir_plugin._files.tables import check_not_negative, check_positive, read_with
from empir_plugin.errors import InputError
from empir_plugin.training.adversary import Adversary, attack_mode, parse_adversary
from empir_plugin.training.batch import LossOutput, TrainingBatch


class Objective(Protocol):
    """What the training loop needs of an objective."""

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Compute the loss of a network in training mode on one batch."""
        ...


class AdversarialObjective(Objective, Protocol):
    """An objective that attacks the images first and then computes the loss on the attacked images."""

    def attack(self, model: nn.Module, batch: TrainingBatch) -> Tensor:
        """Attack the images; returns ``(N, C, H, W)``."""
        ...

    def loss_on(self, model: nn.Module, batch: TrainingBatch, attacked: Tensor) -> LossOutput:
        """Compute the loss, given the attacked images ``(N, C, H, W)``."""
        ...


@dataclass(frozen=True)
class Clean:
    """Standard training: the criterion on the unmodified images.

    Args:
        temperature: Divisor of the logits, above 1 for the teacher of a defensive distillation.

    Raises:
        InputError: If the temperature is not above 0.

    Example:
        >>> batch = TrainingBatch(torch.zeros(2, 1, 1, 4), torch.tensor([0, 3]))
        >>> Clean()(nn.Flatten(), batch).loss
        tensor(1.3863)
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Compute the loss."""
        criterion = replace(batch.criterion, temperature=self.temperature)
        return criterion(model, batch.x, batch.y)


clean = Clean()


@dataclass(frozen=True)
class Adversarial:
    """Adversarial training, https://arxiv.org/abs/1706.06083: the criterion on attacked images.

    Args:
        adversary: The attack to train against.
        clean_share: Share of the loss that is computed on the unmodified images, in [0, 1); EMPIR's release uses 1/2.

    Raises:
        InputError: If the share is out of range.

    Example:
        >>> from empir_plugin.training.adversary import fgsm
        >>> batch = TrainingBatch(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]))
        >>> Adversarial(fgsm("Linf:0.1"))(nn.Flatten(), batch).logits
        tensor([[0.4000, 0.6000]])
    """

    adversary: Adversary = field(metadata=read_with(parse_adversary))
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean_share < 1:
            raise InputError(f"clean_share must lie in [0, 1), got {self.clean_share!r}")

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Attack the images, then compute the loss."""
        return self.loss_on(model, batch, self.attack(model, batch))

    def attack(self, model: nn.Module, batch: TrainingBatch) -> Tensor:
        """Attack the images; returns ``(N, C, H, W)``."""
        return self.adversary(model, batch)

    def loss_on(self, model: nn.Module, batch: TrainingBatch, attacked: Tensor) -> LossOutput:
        """Compute the loss, given the attacked images ``(N, C, H, W)``."""
        output = batch.criterion(model, attacked, batch.y)
        if not self.clean_share:
            return output
        clean_output = batch.criterion(model, batch.x, batch.y)
        return LossOutput(torch.lerp(output.loss, clean_output.loss, self.clean_share), output.logits)


@dataclass(frozen=True, eq=False)
class Divergence:
    """Kullback-Leibler divergence of an output from a reference, as a loss for an attack to maximize.

    Args:
        reference: Log-probabilities ``(N, K)``.
    """

    reference: Tensor

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Divergence of the reference from the logits' distribution, per image ``(N,)``."""
        return F.kl_div(logits.log_softmax(1), self.reference, reduction="none", log_target=True).sum(1)


@dataclass(frozen=True)
class Trades:
    """TRADES, https://arxiv.org/abs/1901.08573: the criterion on clean images plus a robustness penalty.

    The penalty is ``beta`` times the divergence of the clean output from the attacked one, which is also what the
    attack maximizes. At the image itself the divergence is 0 with gradient 0, so the attack must start from noise.

    Args:
        adversary: The attack to train against; the loss it maximizes is replaced by the divergence.
        beta: Weight of the divergence; 6 is usual for CIFAR-10, 1 for MNIST.

    Raises:
        InputError: If beta is negative.

    Example:
        >>> from empir_plugin.training.adversary import pgd
        >>> batch = TrainingBatch(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]))
        >>> Trades(pgd("Linf:0.1", steps=4), beta=1.0)(nn.Flatten(), batch).loss
        tensor(0.6981)
    """

    adversary: Adversary = field(metadata=read_with(parse_adversary))
    beta: float

    def __post_init__(self) -> None:
        check_not_negative("beta", self.beta)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Attack the images, then compute the loss."""
        return self.loss_on(model, batch, self.attack(model, batch))

    def attack(self, model: nn.Module, batch: TrainingBatch) -> Tensor:
        """Find images ``(N, C, H, W)`` whose output diverges from that of the batch's own images."""
        with torch.no_grad(), attack_mode(model):
            reference = model(batch.x).log_softmax(1)
        return self.adversary(model, batch, loss=Divergence(reference))

    def loss_on(self, model: nn.Module, batch: TrainingBatch, attacked: Tensor) -> LossOutput:
        """Compute the loss, given the attacked images ``(N, C, H, W)``."""
        logits = model(attacked)
        clean_output = batch.criterion(model, batch.x, batch.y)
        divergence = Divergence(clean_output.logits.log_softmax(1))(logits, batch.y).mean()
        return LossOutput(clean_output.loss + self.beta * divergence, logits)


@dataclass(frozen=True)
class GradientPenalty:
    """Input gradient regularisation by double backpropagation, https://arxiv.org/abs/1711.09404.

    The loss is ``L + weight / 2 * sum((dL/dx)**2)``, where L is the criterion's mean over the batch and the sum runs
    over the pixels of all its images, as in the authors' code. For N images the penalty is ``weight / (2 N)`` times
    the mean squared norm of the per-image gradients: 0.39 times it for the paper's weight of 100 and 128 images.

    Args:
        weight: Weight of the penalty, lambda in the paper.

    Raises:
        InputError: If the weight is negative.

    Example:
        >>> batch = TrainingBatch(torch.zeros(2, 1, 1, 4), torch.tensor([0, 3]))
        >>> round((GradientPenalty(8.0)(nn.Flatten(), batch).loss - clean(nn.Flatten(), batch).loss).item(), 4)
        1.5
    """

    weight: float

    def __post_init__(self) -> None:
        check_not_negative("weight", self.weight)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Compute the loss and the penalty on its input gradient."""
        x = batch.x.detach().clone().requires_grad_(True)
        output = batch.criterion(model, x, batch.y)
        (gradient,) = torch.autograd.grad(output.loss, x, create_graph=True)
        return LossOutput(output.loss + self.weight / 2 * gradient.square().sum(), output.logits)


@dataclass(frozen=True)
class Distilled:
    """Defensive distillation, https://arxiv.org/abs/1511.04508: match a teacher's probabilities at a temperature.

    The teacher is evaluated on the same augmented images as the student. (EMPIR's release stores the teacher's outputs
    in shuffled order and reads them in the original one, so they belong to other images.) The loss has no factor
    ``temperature**2``.

    Args:
        teacher: Network from images to logits ``(N, K)``; it is not trained.
        temperature: Divisor of the logits of both networks: 100 in EMPIR's paper.
        label_share: Share of the loss that is the criterion on the true labels, at temperature 1, in [0, 1). The
            release uses 1/2 on MNIST and 0.3 on CIFAR-10, the publication 0.

    Raises:
        InputError: If the temperature is not above 0 or the share is out of range.

    Example:
        >>> batch = TrainingBatch(torch.zeros(2, 1, 1, 4), torch.tensor([0, 3]))
        >>> Distilled(nn.Flatten(), temperature=100.0)(nn.Flatten(), batch).loss
        tensor(1.3863)
    """

    teacher: nn.Module
    temperature: float
    label_share: float = 0.0

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.label_share)

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        """Evaluate the teacher, then compute the loss."""
        with torch.no_grad(), attack_mode(self.teacher):
            soft_labels = (self.teacher(batch.x) / self.temperature).softmax(1)
        logits = model(batch.x)
        loss = F.cross_entropy(logits / self.temperature, soft_labels)
        if self.label_share:
            loss = torch.lerp(loss, batch.criterion(model, batch.x, batch.y).loss, self.label_share)
        return LossOutput(loss, logits)


@dataclass(frozen=True)
class DistilledFrom:
    """A distillation as a recipe states it, before its teacher is trained.

    Args:
        teacher: Name of an earlier member of the recipe.
        temperature: See :class:`Distilled`.
        label_share: See :class:`Distilled`.

    Raises:
        InputError: If the temperature is not above 0 or the share is out of range.

    Example:
        >>> DistilledFrom("big", temperature=100.0).with_teacher(nn.Flatten()).temperature
        100.0
    """

    teacher: str
    temperature: float
    label_share: float = 0.0

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.label_share)

    def with_teacher(self, teacher: nn.Module) -> Distilled:
        """The objective, given the trained teacher."""
        return Distilled(teacher, self.temperature, self.label_share)


def _check_distillation(temperature: float, label_share: float) -> None:
    check_positive("temperature", temperature)
    if not 0 <= label_share < 1:
        raise InputError(f"label_share must lie in [0, 1), got {label_share!r}")


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
