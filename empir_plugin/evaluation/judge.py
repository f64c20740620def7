"""The judge: what counts is the real model's decision on an image that keeps to the budget, and nothing an attack says."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError

_TOLERANCE = 1e-5
"""Share of eps that rounding may add: about a hundred units in the last place of a float32 pixel."""


@torch.no_grad()
def withstood(
    model: nn.Module, x: Tensor, y: Tensor, adversarial: Tensor, threat: Threat, *, batch_size: int = 500
) -> Tensor:
    """Which images ``(N,)`` the model still classifies correctly after an attack.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        x: Clean images ``(N, C, H, W)`` in [0, 1].
        y: True labels ``(N,)``.
        adversarial: What the attack made of ``x``.
        threat: The budget every image is checked against.
        batch_size: Images per forward pass.

    Raises:
        EvaluationError: If an image leaves the budget or [0, 1], or a logit is NaN.

    Example:
        >>> x = torch.tensor([[[[0.2, 0.8]]]])
        >>> withstood(nn.Flatten(), x, torch.tensor([1]), x, Threat.parse("Linf:0.1"))
        tensor([True])
    """
    check_budget(x, adversarial, threat)
    return correct(model, adversarial, y, batch_size=batch_size)


def check_budget(x: Tensor, adversarial: Tensor, threat: Threat) -> None:
    """Refuse adversarial images ``(N, C, H, W)`` that are not within the threat of ``x``.

    Raises:
        EvaluationError: If shape or type differ, a pixel is not a number in [0, 1], or a perturbation is too large.
    """
    if adversarial.shape != x.shape or adversarial.dtype != x.dtype:
        got = f"{adversarial.dtype} {tuple(adversarial.shape)}"
        raise EvaluationError(f"an attack must return images like it was given, {x.dtype} {tuple(x.shape)}, got {got}")
    if len(x) == 0:
        return
    low, high = (end.item() for end in adversarial.aminmax())
    if not (low >= 0 and high <= 1):
        raise EvaluationError(f"an attack left [0, 1]: pixels from {low:g} to {high:g}; its result is void")
    largest = threat.norm.size(adversarial - x).max().item()
    if not largest <= threat.eps * (1 + _TOLERANCE):
        raise EvaluationError(f"an attack left its budget {threat}: a perturbation of {largest:g}; its result is void")


@torch.no_grad()
def correct(model: nn.Module, images: Tensor, y: Tensor, *, batch_size: int = 500) -> Tensor:
    """Which images ``(N,)`` the model classifies correctly.

    Raises:
        EvaluationError: If the model does not return logits ``(N, K)`` with a class for each label, or returns NaN.
    """
    parts = [
        _decide(model, part, labels) == labels
        for part, labels in zip(images.split(batch_size), y.split(batch_size), strict=True)
    ]
    return torch.cat(parts)


def _decide(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    logits = model(images)
    if logits.ndim != 2 or len(logits) != len(images) or (len(labels) and logits.shape[1] <= int(labels.max())):
        needed = f"({len(images)}, K > {int(labels.max()) if len(labels) else 0})"
        raise EvaluationError(f"the model must return logits of shape {needed}, got {tuple(logits.shape)}")
    if torch.isnan(logits).any():
        raise EvaluationError("the model returned NaN: no verdict on it means anything; check its weights")
    return logits.argmax(1)
