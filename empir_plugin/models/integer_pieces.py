"""Elementwise work in pieces that fit into a processor's cache.

Between two integer convolutions nothing but elementwise steps is left. On a whole batch each of them reads and writes
the main memory again, and fresh memory costs more still; on a piece, only the first and the last do.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_PIECE = 2**19
"""Elements: 2 MB of float32."""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of the same rows of each of some tensors, of the same length; all of each where it fits at once.

    Example:
        >>> [part.shape[0] for part, _ in pieces(torch.zeros(3, 2), torch.zeros(3))]
        [3]
    """
    first = tensors[0]
    # Several threads wait for each other after each step: on a busy machine that costs more than the memory does.
    if first.device.type != "cpu" or torch.get_num_threads() > 1 or first.numel() <= _PIECE:
        yield tensors
        return
    rows = max(1, len(first) * _PIECE // first.numel())
    yield from zip(*(tensor.split(rows) for tensor in tensors), strict=True)
