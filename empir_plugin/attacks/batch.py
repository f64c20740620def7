"""The images under attack, and what every attack does with them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from empir_plugin.attacks.surrogates import Model
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError


class Attack(Protocol):
    """What every attack offers: settings bound, ready to be called on any model."""

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """Adversarial images ``(N, C, H, W)``; an image that withstood is returned unchanged.

        Args:
            model: Its decision is what has to be changed.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: True labels ``(N,)``.
            threat: How far the attack may go.
            seed: Of everything random.
            indices: Numbers of the images in the data set ``(N,)``, 0 to N - 1 if left out: randomness belongs to them.
        """
        ...


@dataclass(frozen=True, eq=False)
class Batch:
    """Images under attack, with all that belongs to them, cut down together.

    Args:
        x: Clean images ``(N, C, H, W)``.
        y: True labels ``(N,)``.
        targets: Classes to reach ``(N,)``, if the attack is targeted.
        indices: Numbers of the images in the data set ``(N,)``.
        rows: Their places in the caller's batch ``(N,)``.
        classes: How many classes the labels and targets speak of, at least.

    Example:
        >>> batch = Batch.of(torch.rand(3, 1, 2, 2), torch.tensor([0, 1, 2]))
        >>> batch.keep(torch.tensor([True, False, True])).rows
        tensor([0, 2])
    """

    x: Tensor
    y: Tensor
    targets: Tensor | None
    indices: Tensor
    rows: Tensor
    classes: int

    @classmethod
    def of(cls, x: Tensor, y: Tensor, *, indices: Tensor | None = None, targets: Tensor | None = None) -> Batch:
        """Check what the caller brought.

        Raises:
            InputError: If a tensor has another shape, type or range than it must have.
        """
        _check_images(x)
        rows = torch.arange(len(x), device=x.device)
        indices = rows if indices is None else _labels("indices", indices, x)
        y = _labels("y", y, x)
        targets = None if targets is None else _labels("targets", targets, x)
        classes = 1 + max((int(labels.amax()) for labels in (y, targets) if labels is not None and len(x)), default=0)
        return cls(x.detach(), y, targets, indices, rows, classes)

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, wanted: Tensor) -> Batch:
        """The images where ``wanted`` ``(N,)`` is true."""
        targets = None if self.targets is None else self.targets[wanted]
        return Batch(self.x[wanted], self.y[wanted], targets, self.indices[wanted], self.rows[wanted], self.classes)

    def fooled(self, decision: Tensor) -> Tensor:
        """Where ``decision`` ``(N,)`` is what the attack wants."""
        return decision != self.y if self.targets is None else decision == self.targets

    def check_logits(self, logits: Tensor) -> None:
        """Refuse what are no logits for these images.

        Raises:
            InputError: If the shape is not ``(N, K)`` or a label has no class.
            EvaluationError: If a logit is NaN.
        """
        if logits.ndim != 2 or len(logits) != len(self):
            raise InputError(f"a model must return logits (N, K) with N = {len(self)}, got {tuple(logits.shape)}")
        if logits.shape[1] < self.classes:
            raise InputError(f"labels up to {self.classes - 1} need more than K = {logits.shape[1]}: another data set?")
        if torch.isnan(logits).any():
            raise EvaluationError("the model returned NaN: no verdict on it means anything; check its weights")


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"x must be floating-point images (N, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    if not len(x):
        return
    low, high = (float(end) for end in x.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(f"x must lie in [0, 1], got [{low:g}, {high:g}]: divide by 255 and normalise in the model")


def _labels(name: str, labels: Tensor, x: Tensor) -> Tensor:
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise InputError(f"{name} must be integers (N,) with N = {len(x)}, got {labels.dtype} {tuple(labels.shape)}")
    if len(labels) and int(labels.amin()) < 0:
        raise InputError(f"{name} must not be negative, got {int(labels.amin())}")
    return labels.to(x.device, torch.int64)


@contextmanager
def parameters_frozen(model: object) -> Iterator[None]:
    """Spare the parameters' part of every graph; what required a gradient before does so again afterwards.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with parameters_frozen(layer):
        ...     print(layer.weight.requires_grad)
        False
        >>> layer.weight.requires_grad
        True
    """
    found = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in found:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in found:
            parameter.requires_grad_(True)
