"""Arithmetic of networks in training: float32, or bfloat16 where matrix products are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.training.averages import parts_of

Compute = Literal["float32", "bfloat16"]
"""What networks are trained in. Evaluation is always in float32."""


def check_compute(compute: str, of: str) -> None:
    """Refuse an arithmetic there is none of.

    Raises:
        InputError: If it is neither float32 nor bfloat16.
    """
    if compute not in get_args(Compute):
        raise InputError(f"compute of {of} must be one of {', '.join(get_args(Compute))}, got {compute!r}")


@contextmanager
def computing(model: nn.Module, compute: Compute) -> Iterator[None]:
    """Inside, a network, or every member of an ensemble, computes in this arithmetic and still returns float32.

    Weights, decisions and losses stay in float32; with bfloat16, inputs and weights of convolutions and linear layers
    are rounded to 8 bits of mantissa (``torch.autocast``). A processor with instructions for that is up to twice as
    fast, another one slower.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with computing(model, "bfloat16"):
        ...     print(model(torch.ones(1, 1)).dtype)
        torch.float32
    """
    parts = parts_of(model) if compute == "bfloat16" else []
    for part in parts:
        part.forward = _in_bfloat16(part.forward)
    try:
        yield
    finally:
        for part in parts:
            del part.forward  # What shadowed the class's own.


def _in_bfloat16(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = forward(x)
        return logits.float()

    return run
