"""What stands between integer layers: sums, roundings and poolings, on codes or in memory that is already there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.models.integer_grid import Grid
from empir_plugin.models.integer_kernels import pool_codes
from empir_plugin.models.integer_pieces import pieces


class Codes(nn.Module):
    """Round float inputs of any shape to codes, once for all layers that take the same."""

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """Codes, uint8, of the same shape."""
        return self.grid.codes(x)


class PoolCodes(nn.Module):
    """Max pooling of codes, uint8 ``(N, C, H, W)``; the arguments are those of ``max_pool2d`` after the first."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.args, self.kwargs = args, kwargs

    def forward(self, codes: Tensor) -> Tensor:
        """Pool."""
        return pool_codes(codes, *self.args, **self.kwargs)


class AddInto(nn.Module):
    """The sum of two tensors, or its ReLU, in the memory of the first, which nothing else needs."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        self.relu = relu

    def forward(self, fresh: Tensor, other: Tensor) -> Tensor:
        """Add; where the shapes differ, in new memory."""
        fresh, other = _alike(fresh, other)
        for total, term in pieces(fresh, other):
            _add_(total, term, self.relu)
        return fresh


class AddAndRound(nn.Module):
    """The same sum and its codes, for layers that take it in either form."""

    def __init__(self, relu: bool, grid: Grid) -> None:
        super().__init__()
        self.relu, self.grid = relu, grid

    def forward(self, fresh: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """The sum; and its codes, uint8, of the same shape."""
        fresh, other = _alike(fresh, other)
        codes = self.grid.room(fresh)
        for total, term, room in pieces(fresh, other, codes):
            _add_(total, term, self.relu)
            self.grid.round_into(total, room)
        return fresh, codes.view(torch.uint8)


def _alike(fresh: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two terms of one shape and type, of which the first may be overwritten."""
    if fresh.shape == other.shape and fresh.dtype == other.dtype:
        return fresh, other
    total = fresh + other
    return total, torch.zeros_like(total)


def _add_(total: Tensor, term: Tensor, relu: bool) -> None:
    total.add_(term)
    if relu:
        total.relu_()
