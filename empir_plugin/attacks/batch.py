"""What all attacks share: the ``Attack`` interface, the checked batch of images, and the checked use of a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from empir_plugin.attacks.surrogates import Model, Surrogate, View
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError, cause
from empir_plugin.models.layers import WRITES_TO_INPUT, is_inference_tensor


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
        x = _check_images(x)
        rows = torch.arange(len(x), device=x.device)
        indices = rows if indices is None else _check_labels("indices", indices, x)
        y = _check_labels("y", y, x)
        targets = None if targets is None else _check_labels("targets", targets, x)
        classes = 1 + max((int(labels.amax()) for labels in (y, targets) if labels is not None and len(x)), default=0)
        return cls(x, y, targets, indices, rows, classes)

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
        logits = _check_is_numbers(logits)
        if logits.ndim != 2 or len(logits) != len(self):
            got = f"{tuple(logits.shape)}: one row per image, one column per class"
            raise InputError(f"a model must return logits (N, K) with N = {len(self)}, got {got}")
        if logits.shape[1] < self.classes:
            raise InputError(f"labels up to {self.classes - 1} need more than K = {logits.shape[1]}: another data set?")
        if not logits.is_floating_point():
            raise InputError(
                f"a model must return floating-point logits, got {logits.dtype}: return real scores, before they are "
                "rounded or made into classes"
            )
        if torch.isnan(logits).any():
            raise EvaluationError("the model returned NaN: no verdict on it means anything; check its weights")


NO_GRADIENT = (
    "the model gives no gradient with respect to the images, as a hard vote, a detached output, or a forward pass "
    "inside torch.no_grad() or torch.inference_mode() gives none: attack it through a surrogate, such as voters or "
    "mean_probability, or remove what cuts the gradient"
)


def view(surrogate: Surrogate, model: Model, x: Tensor) -> View:
    """What a surrogate gives for images ``(N, C, H, W)``, or the cause why it can give nothing.

    Raises:
        InputError: If the model does not return a tensor of real numbers, or was made inside inference mode.
        EvaluationError: If the model writes to the images.

    Example:
        >>> from empir_plugin.attacks.surrogates import plain
        >>> view(plain, nn.Flatten(), torch.ones(2, 1, 1, 3)).logits.shape
        torch.Size([2, 3])
    """
    given = x.detach().clone()
    try:
        found = surrogate(model, x)
    except RuntimeError as error:
        if "leaf Variable" in str(error):
            raise EvaluationError(f"{WRITES_TO_INPUT} ({cause(error)})") from error
        if "Inference tensors cannot be saved" in str(error):
            raise InputError(
                "the model, or a part of it, was made inside torch.inference_mode(), and no gradient passes it: build "
                "or load it outside of that block, or attack a copy.deepcopy() of it made outside"
            ) from error
        raise
    if not torch.equal(x, given) and not torch.equal(x.nan_to_num(), given.nan_to_num()):
        x.detach().copy_(given)
        raise EvaluationError(WRITES_TO_INPUT)
    return View(_check_is_numbers(found.logits), found.decide)


def _check_is_numbers(logits: object) -> Tensor:
    """The output of a model, if it is a tensor of real numbers."""
    if not isinstance(logits, Tensor):
        got = type(logits).__name__
        raise InputError(f"a model must return logits (N, K), got a {got}: wrap the model and return its logits")
    if logits.is_complex() or logits.dtype == torch.bool:
        raise InputError(f"a model must return logits (N, K) of real numbers, got {logits.dtype}: return its scores")
    return logits


def _check_images(x: object) -> Tensor:
    """The images, detached."""
    if not isinstance(x, Tensor):
        raise InputError(f"x must be a torch.Tensor, got {type(x).__name__}: convert it with torch.as_tensor")
    if x.ndim != 4 or not x.is_floating_point():
        cure = "divide by 255" if x.dtype == torch.uint8 else "convert or reshape them"
        got = f"{x.dtype} of shape {tuple(x.shape)}"
        raise InputError(f"x must be floating-point images (N, C, H, W), got {got}: {cure}")
    if len(x):
        low, high = (float(end) for end in x.detach().aminmax())
        if not (low >= 0 and high <= 1):
            got = f"[{low:g}, {high:g}]"
            raise InputError(f"x must lie in [0, 1], got {got}: divide by 255 and normalise in the model")
    return _differentiable(x.detach())


def _check_labels(name: str, labels: object, x: Tensor) -> Tensor:
    """The labels as int64, on the device of the images."""
    if not isinstance(labels, Tensor):
        got = type(labels).__name__
        raise InputError(f"{name} must be a torch.Tensor, got {got}: convert it with torch.as_tensor")
    if labels.shape != x.shape[:1] or labels.is_floating_point():
        raise InputError(f"{name} must be integers (N,) with N = {len(x)}, got {labels.dtype} {tuple(labels.shape)}")
    if len(labels) and int(labels.amin()) < 0:
        raise InputError(f"{name} must not be negative, got {int(labels.amin())}")
    return _differentiable(labels.to(x.device, torch.int64))


def _differentiable(tensor: Tensor) -> Tensor:
    """The tensor, or a copy of one made inside inference mode, which autograd would refuse."""
    return tensor.clone() if is_inference_tensor(tensor) else tensor


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
    parameters = model.parameters() if isinstance(model, nn.Module) else ()
    # Those made inside inference mode have no gradient, and could not be set back.
    trainable = [p for p in parameters if p.requires_grad and not is_inference_tensor(p)]
    try:
        for parameter in trainable:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
