"""Defensive distillation, and how a recipe names its teacher."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.training.adversary import as_attacked
from empir_plugin.training.lesson import Fit, Lesson
from empir_plugin.training.ranges import check_positive


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
