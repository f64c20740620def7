"""What all attacks share: the ``Attack`` interface, the checked batch of images, and frozen model parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from empir_plugin.attacks.surrogates import Model
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError


class Attack(Protocol):
    """The interface of an attack: settings are already bound, and it can be called on any model."""

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """Adversarial images ``(N, C, H, W)``; images the attack does not break are returned unchanged.

        Args:
            model: The model whose decision the attack tries to change.
            x: Images ``(N, C, H, W)`` in [0, 1].
            y: True labels ``(N,)``.
            threat: Norm and radius the perturbations must respect.
            seed: Seed of all random numbers.
            indices: Indices of the images in the data set ``(N,)``, which random numbers depend on; 0 to N - 1 if
                left out.
        """
        ...


class GradientAttackResult(NamedTuple):
    """What a gradient attack returns, and where it had nothing to follow.

    Args:
        images: Adversarial images ``(N, C, H, W)``.
        zero_gradient: Which images ``(N,)`` had a gradient of exactly zero in every pixel at the attack's first step.
            The attack cannot move those, so their robustness may be masked.
    """

    images: Tensor
    zero_gradient: Tensor


def is_zero(grad: Tensor) -> Tensor:
    """Which gradients ``(N, C, H, W)`` are exactly zero in every pixel, ``(N,)``.

    Example:
        >>> is_zero(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1))
        tensor([ True, False])
    """
    return (grad == 0).flatten(1).all(1)


@dataclass(frozen=True, eq=False)
class Batch:
    """The active batch of an attack: images with their labels and indices, filtered together.

    Args:
        x: Clean images ``(N, C, H, W)``.
        y: True labels ``(N,)``.
        targets: Target classes ``(N,)`` of a targeted attack.
        indices: Indices of the images in the data set ``(N,)``.
        rows: Rows of the images in the caller's batch ``(N,)``.
        classes: Smallest number of classes that includes all labels and targets.

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
        """Check an attack's arguments and make a batch of them.

        Raises:
            InputError: If a tensor has the wrong shape, type or range.
        """
        if torch.is_inference_mode_enabled():
            raise InputError("an attack needs gradients, got torch.inference_mode(): call it outside of that block")
        _check_images(x)
        rows = torch.arange(len(x), device=x.device)
        indices = rows if indices is None else _check_labels("indices", indices, x)
        y = _check_labels("y", y, x)
        targets = None if targets is None else _check_labels("targets", targets, x)
        classes = 1 + max((int(labels.amax()) for labels in (y, targets) if labels is not None and len(x)), default=0)
        return cls(x.detach(), y, targets, indices, rows, classes)

    def __len__(self) -> int:
        return len(self.rows)

    def keep(self, wanted: Tensor) -> Batch:
        """The batch of the images for which ``wanted`` ``(N,)`` is true."""
        targets = None if self.targets is None else self.targets[wanted]
        return Batch(self.x[wanted], self.y[wanted], targets, self.indices[wanted], self.rows[wanted], self.classes)

    def fooled(self, decision: Tensor) -> Tensor:
        """Where ``decision`` ``(N,)`` is a success of the attack: a wrong class or, if targeted, the target class."""
        return decision != self.y if self.targets is None else decision == self.targets

    def check_logits(self, logits: object) -> None:
        """Check that ``logits`` are logits of these images.

        Raises:
            InputError: If it is not a floating-point tensor ``(N, K)`` or a label has no class.
            EvaluationError: If a logit is NaN.
        """
        logits = check_is_tensor(logits)
        if logits.ndim != 2 or len(logits) != len(self):
            raise InputError(f"a model must return logits (N, K) with N = {len(self)}, got {tuple(logits.shape)}")
        if logits.shape[1] < self.classes:
            raise InputError(f"labels up to {self.classes - 1} need more than K = {logits.shape[1]}: another data set?")
        if not logits.is_floating_point():
            raise InputError(
                f"a model must return floating-point logits, got {logits.dtype}: return real scores, before they are "
                "rounded or made into classes"
            )
        if torch.isnan(logits).any():
            raise EvaluationError("the model returned NaN: no verdict on it means anything; check its weights")


def check_is_tensor(logits: object) -> Tensor:
    """The output of a model, if it is a tensor.

    Raises:
        InputError: If it is not, as some models return a tuple or a dictionary.
    """
    if not isinstance(logits, Tensor):
        got = type(logits).__name__
        raise InputError(f"a model must return logits (N, K), got a {got}: wrap the model and return its logits")
    return logits


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or not x.is_floating_point():
        raise InputError(f"x must be floating-point images (N, C, H, W), got {x.dtype} of shape {tuple(x.shape)}")
    if not len(x):
        return
    low, high = (float(end) for end in x.detach().aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(f"x must lie in [0, 1], got [{low:g}, {high:g}]: divide by 255 and normalise in the model")


def _check_labels(name: str, labels: Tensor, x: Tensor) -> Tensor:
    """The labels as int64, on the device of the images."""
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise InputError(f"{name} must be integers (N,) with N = {len(x)}, got {labels.dtype} {tuple(labels.shape)}")
    if len(labels) and int(labels.amin()) < 0:
        raise InputError(f"{name} must not be negative, got {int(labels.amin())}")
    return labels.to(x.device, torch.int64)


@contextmanager
def freeze_parameters(model: object) -> Iterator[None]:
    """Compute no gradients with respect to the model's parameters inside; ``requires_grad`` is restored afterwards.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> with freeze_parameters(layer):
        ...     print(layer.weight.requires_grad)
        False
        >>> layer.weight.requires_grad
        True
    """
    trainable = [p for p in model.parameters() if p.requires_grad] if isinstance(model, nn.Module) else []
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
