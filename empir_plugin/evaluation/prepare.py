"""Prepare a model for evaluation: a private copy, its device, exact float32 arithmetic."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.identity import model_fingerprint as model_fingerprint
from empir_plugin.models.layers import bake_, frozen_copy


def parse_device(text: str) -> torch.device:
    """A device by name, if this machine has it.

    Raises:
        InputError: If the text names no device, or one this machine does not have.

    Example:
        >>> parse_device("cpu")
        device(type='cpu')
    """
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise InputError(f"a device is written 'cpu', 'cuda' or 'cuda:1', got {text!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"no device {text} here ({torch.cuda.device_count()} CUDA devices): use --device cpu")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"evaluation runs on 'cpu' or 'cuda', got {text!r}")
    return device


def require_weights(model: nn.Module, name: str) -> None:
    """Refuse a model whose weights were not loaded.

    Raises:
        EvaluationError: If its ``weights_loaded`` is false.
    """
    if not getattr(model, "weights_loaded", True):
        raise EvaluationError(f"{name} has no weights, and results with random weights mean nothing: pass a checkpoint")


def prepare(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model for evaluation: weights quantized once, no parameter gradients, channels last.

    The model itself is left unchanged.

    Raises:
        InputError: If it is not a module.
        EvaluationError: If it cannot be copied.

    Example:
        >>> prepare(nn.Conv2d(3, 8, 3), torch.device("cpu")).weight.requires_grad
        False
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"a model must be a torch.nn.Module, got {type(model).__name__}: wrap it in one")
    subject = frozen_copy(model)
    bake_(subject)
    return subject.to(device).to(memory_format=torch.channels_last)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32 inside the block: its rounding moves activations to other levels of a quantized network."""
    matmul: Any = torch.backends.cuda.matmul
    cudnn: Any = torch.backends.cudnn
    found = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = found
