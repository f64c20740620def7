"""The model under evaluation: a private copy made ready, and a fingerprint of what it computes with."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.layers import bake_, quantized_layers


def parse_device(text: str) -> torch.device:
    """A device by name, if it is there.

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
    """Refuse a model that says it carries no weights.

    Raises:
        EvaluationError: If its ``weights_loaded`` is false.
    """
    if not getattr(model, "weights_loaded", True):
        raise EvaluationError(f"{name} has no weights, and numbers of random weights mean nothing: pass a checkpoint")


def prepared(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model for evaluation: weights quantized once, no parameter gradients, the faster memory layout.

    The model itself is left as it is.

    Example:
        >>> prepared(nn.Conv2d(3, 8, 3), torch.device("cpu")).weight.requires_grad
        False
    """
    subject = copy.deepcopy(model).eval().requires_grad_(False)
    bake_(subject)
    return subject.to(device, memory_format=torch.channels_last)


@contextmanager
def exact_float32() -> Iterator[None]:
    """Switch TF32 off inside: its rounding moves activations to other levels, so it is another quantized network."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    found = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = found


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over structure and weights, as hexadecimal text.

    Quantized layers count with their quantized weights: what they compute with, whatever latent weights lie behind.

    Example:
        >>> len(model_fingerprint(nn.Linear(2, 2)))
        64
    """
    quantized = {f"{name}.weight": layer for name, layer in quantized_layers(model)}
    digest = hashlib.sha256(repr(model).encode())
    for key, value in sorted(model.state_dict().items()):
        tensor = quantized[key].quantized_weight() if key in quantized else value
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{key}|{array.dtype.str}|{array.shape}|".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
