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

from empir_plugin.errors import InputError
from empir_plugin.training.adversary import Adversary, as_attacked
from empir_plugin.training.lesson import Fit, Lesson
from empir_plugin.training.ranges import check_not_negative, check_positive


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
