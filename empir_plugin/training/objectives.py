"""What training lowers: values to be called on a network and a lesson, and to be put together.

They treat a network alone and an ensemble alike: called on an :class:`~empir_plugin.models.ensemble.Ensemble`, an
adversarial objective attacks and teaches all members together, through their common decision, which is what makes
an ensemble robust (https://arxiv.org/abs/1811.09300).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from empir_plugin._files.tables import check_not_negative, check_positive
from empir_plugin.errors import InputError
from empir_plugin.training.adversary import Adversary, as_attacked
from empir_plugin.training.batch import Fit, Lesson


def _check_distillation(temperature: float, label_share: float) -> None:
    check_positive("temperature", temperature)
    if not 0 <= label_share < 1:
        raise InputError(f"label_share must lie in [0, 1), got {label_share!r}")


@dataclass(frozen=True)
class Distilled:
    """Defensive distillation, https://arxiv.org/abs/1511.04508: learn the probabilities of a teacher at a temperature.

    The teacher looks at the very images the student sees, augmentation included. (EMPIR's release stores its answers in
    shuffled order and reads them in the original one: they belong to other images.) No factor ``temperature**2``.

    Args:
        teacher: Network from images to logits ``(N, K)``; it is not trained.
        temperature: What the logits of both are divided by: 100 in EMPIR's paper.
        label_share: Share of the loss that is the criterion on the true labels, at temperature 1. The release has 1/2
            on MNIST and 0.3 on CIFAR-10, the publication 0.

    Raises:
        InputError: If the temperature is not above 0 or the share lies outside [0, 1).

    Example:
        >>> lesson = Lesson(torch.zeros(2, 1, 1, 4), torch.tensor([0, 3]))
        >>> Distilled(nn.Flatten(), temperature=100.0)(nn.Flatten(), lesson).loss
        tensor(1.3863)
    """

    teacher: nn.Module
    temperature: float
    label_share: float = 0.0

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.label_share)

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Ask the teacher, then take the loss."""
        with torch.no_grad(), as_attacked(self.teacher):
            soft = (self.teacher(lesson.x) / self.temperature).softmax(1)
        logits = model(lesson.x)
        loss = F.cross_entropy(logits / self.temperature, soft)
        if self.label_share:
            loss = torch.lerp(loss, lesson.criterion(model, lesson.x, lesson.y).loss, self.label_share)
        return Fit(loss, logits)


@dataclass(frozen=True)
class DistilledFrom:
    """A distillation in a recipe, before its teacher is trained.

    Args:
        teacher: Name of an earlier member of the recipe.
        temperature: See :class:`Distilled`.
        label_share: See :class:`Distilled`.

    Example:
        >>> DistilledFrom("big", temperature=100.0).by(nn.Flatten()).temperature
        100.0
    """

    teacher: str
    temperature: float
    label_share: float = 0.0

    def __post_init__(self) -> None:
        _check_distillation(self.temperature, self.label_share)

    def by(self, teacher: nn.Module) -> Distilled:
        """The objective, now that there is a teacher."""
        return Distilled(teacher, self.temperature, self.label_share)


class Objective(Protocol):
    """What an objective must offer."""

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Loss of a network in training mode on one batch, with the logits it was taken from."""
        ...


@dataclass(frozen=True)
class Clean:
    """Standard training: the criterion on the images as they are.

    Args:
        temperature: What the logits are divided by, as for the teacher of a defensive distillation.

    Example:
        >>> lesson = Lesson(torch.zeros(2, 1, 1, 4), torch.tensor([0, 3]))
        >>> Clean()(nn.Flatten(), lesson).loss
        tensor(1.3863)
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Take the loss."""
        criterion = replace(lesson.criterion, temperature=self.temperature)
        return criterion(model, lesson.x, lesson.y)


clean = Clean()


@dataclass(frozen=True)
class Adversarial:
    """Adversarial training, https://arxiv.org/abs/1706.06083: the criterion on attacked images.

    Args:
        adversary: Who attacks.
        clean_share: Share of the loss that is taken from the images as they are; EMPIR's release has 1/2.

    Example:
        >>> from empir_plugin.training.adversary import fgsm
        >>> lesson = Lesson(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]))
        >>> Adversarial(fgsm("Linf:0.1"))(nn.Flatten(), lesson).logits
        tensor([[0.4000, 0.6000]])
    """

    adversary: Adversary
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clean_share < 1:
            raise InputError(f"clean_share must lie in [0, 1), got {self.clean_share!r}")

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Attack, then take the loss."""
        return self.taught(model, lesson, self.attacked(model, lesson))

    def attacked(self, model: nn.Module, lesson: Lesson) -> Tensor:
        """Attacked images ``(N, C, H, W)``."""
        return self.adversary(model, lesson)

    def taught(self, model: nn.Module, lesson: Lesson, found: Tensor) -> Fit:
        """The loss, once the attacked images ``(N, C, H, W)`` are found."""
        attacked = lesson.criterion(model, found, lesson.y)
        if not self.clean_share:
            return attacked
        unharmed = lesson.criterion(model, lesson.x, lesson.y)
        return Fit(torch.lerp(attacked.loss, unharmed.loss, self.clean_share), attacked.logits)


@dataclass(frozen=True, eq=False)
class Divergence:
    """How far an output has moved from a reference: the Kullback-Leibler divergence, as a loss to climb.

    Args:
        reference: Log-probabilities ``(N, K)``.
    """

    reference: Tensor

    def __call__(self, logits: Tensor, y: Tensor, targets: Tensor | None = None) -> Tensor:
        """Divergence of the reference from the logits' distribution, per image ``(N,)``."""
        return F.kl_div(logits.log_softmax(1), self.reference, reduction="none", log_target=True).sum(1)


@dataclass(frozen=True)
class Trades:
    """TRADES, https://arxiv.org/abs/1901.08573: the criterion on clean images, plus a penalty.

    The penalty is ``beta`` times the divergence of the clean output from the attacked one, which is what the attack
    climbs. It is 0 with gradient 0 at the image itself, so the attack needs noise.

    Args:
        adversary: Who attacks; what it climbs is replaced.
        beta: Weight of the divergence; 6 is usual for CIFAR-10, 1 for MNIST.

    Raises:
        InputError: If beta is negative.

    Example:
        >>> from empir_plugin.training.adversary import pgd
        >>> lesson = Lesson(torch.full((1, 1, 1, 2), 0.5), torch.tensor([0]))
        >>> Trades(pgd("Linf:0.1", steps=4), beta=1.0)(nn.Flatten(), lesson).loss
        tensor(0.6981)
    """

    adversary: Adversary
    beta: float

    def __post_init__(self) -> None:
        check_not_negative("beta", self.beta)

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Attack the output, then take the loss."""
        return self.taught(model, lesson, self.attacked(model, lesson))

    def attacked(self, model: nn.Module, lesson: Lesson) -> Tensor:
        """Images ``(N, C, H, W)`` on which the output is another than on those of the lesson."""
        with torch.no_grad(), as_attacked(model):
            reference = model(lesson.x).log_softmax(1)
        return self.adversary(model, lesson, loss=Divergence(reference))

    def taught(self, model: nn.Module, lesson: Lesson, found: Tensor) -> Fit:
        """The loss, once the attacked images ``(N, C, H, W)`` are found."""
        attacked = model(found)
        unharmed = lesson.criterion(model, lesson.x, lesson.y)
        moved = Divergence(unharmed.logits.log_softmax(1))(attacked, lesson.y).mean()
        return Fit(unharmed.loss + self.beta * moved, attacked)


@dataclass(frozen=True)
class GradientPenalty:
    """Input gradient regularisation by double backpropagation, https://arxiv.org/abs/1711.09404.

    The loss is ``L + weight / 2 * sum((dL/dx)**2)`` with L the criterion's mean over the batch and the sum over the
    pixels of all its images, as in the authors' code: for N images that is ``weight / (2 N)`` times the mean squared
    length of the images' own gradients, 0.39 for the paper's weight of 100 and 128 images.

    Args:
        weight: Of the penalty, lambda.

    Raises:
        InputError: If the weight is negative.

    Example:
        >>> lesson = Lesson(torch.zeros(2, 1, 1, 4), torch.tensor([0, 3]))
        >>> round((GradientPenalty(8.0)(nn.Flatten(), lesson).loss - clean(nn.Flatten(), lesson).loss).item(), 4)
        1.5
    """

    weight: float

    def __post_init__(self) -> None:
        check_not_negative("weight", self.weight)

    def __call__(self, model: nn.Module, lesson: Lesson) -> Fit:
        """Take the loss, its gradient, and the loss of both."""
        x = lesson.x.detach().clone().requires_grad_(True)
        fit = lesson.criterion(model, x, lesson.y)
        (gradient,) = torch.autograd.grad(fit.loss, x, create_graph=True)
        return Fit(fit.loss + self.weight / 2 * gradient.square().sum(), fit.logits)


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
