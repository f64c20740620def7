"""Weights on a uniform grid that has zero in it, as for quantization after training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from empir_plugin.errors import InputError
from empir_plugin.models.quantize import in_float32


@dataclass(frozen=True)
class UniformWeightQuantizer:
    """Round to the nearest of ``2**bits - 1`` equally spaced levels from ``-max|w|`` to ``max|w|``; one of them is 0.

    It is ``max|w| round(m w / max|w|) / m`` with ``m = 2**(bits - 1) - 1``, ties to even. The maximum runs over the
    whole tensor. The gradient is the identity (straight-through).

    Args:
        bits: 2 to 8; with one bit nothing but zero would be left.

    Raises:
        InputError: If the number of bits is not in 2..8.

    Example:
        >>> UniformWeightQuantizer(3)(torch.tensor([-0.6, -0.29, 0.05, 0.35]))
        tensor([-0.6000, -0.2000,  0.0000,  0.4000])
    """

    bits: int

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise InputError(f"a uniform grid with zero in it has 2 to 8 bits, got {self.bits!r}")

    @property
    def _steps(self) -> int:
        """From zero to the largest level."""
        return 2 ** (self.bits - 1) - 1

    def __call__(self, w: Tensor) -> Tensor:
        """Quantize latent weights of any shape."""
        w = in_float32(w)
        levels = self._signed_codes(w.detach()) / self._steps * self.factor(w)
        return levels + (w - w.detach())

    def codes(self, w: Tensor) -> Tensor:
        """The integers 0 .. ``2**bits - 2`` behind the quantized weights, as uint8 of the same shape."""
        return (self._signed_codes(in_float32(w.detach())) + self._steps).to(torch.uint8)

    def factor(self, w: Tensor) -> Tensor:
        """The largest level, ``max|w|``: a detached scalar tensor."""
        return in_float32(w.detach()).abs().amax()

    def decode(self, codes: Tensor, factor: Tensor) -> Tensor:
        """Quantized weights from their codes: bit for bit what quantizing gave."""
        return (codes.to(torch.float32) - self._steps) / self._steps * factor

    def _signed_codes(self, w: Tensor) -> Tensor:
        largest = self.factor(w).clamp_min(torch.finfo(w.dtype).tiny)
        return torch.round(w / largest * self._steps)

    def __str__(self) -> str:
        return "uniform"
