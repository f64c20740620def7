"""The integers behind a quantized layer: small codes of its inputs and weights, and the float steps between them.

DoReFa (https://arxiv.org/abs/1606.06160) puts activations on ``c / n`` and weights on ``(2c - n) / n``, so that a
layer is a sum of products of small integers times one number. The grids are derived from the outputs of the quantizers,
not from their formulas; a layer whose outputs fit no grid stays in float.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from empir_plugin.errors import InputError
from empir_plugin.models.layers import QuantizedLayer
from empir_plugin.models.quantize import FULL_BITS, in_float32

_PIECE = 2**19
"""Elements: 2 MB of float32."""


def pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of equal length into views of the same rows, small enough for the cache; one piece if they fit.

    Example:
        >>> [part.shape[0] for part, _ in pieces(torch.zeros(3, 2), torch.zeros(3))]
        [3]
    """
    first = tensors[0]
    # Several threads wait for each other after each step; on a busy machine this costs more than the memory.
    if first.device.type != "cpu" or torch.get_num_threads() > 1 or first.numel() <= _PIECE:
        yield tensors
        return
    rows = max(1, len(first) * _PIECE // first.numel())
    yield from zip(*(tensor.split(rows) for tensor in tensors), strict=True)


NO_GRADIENT = "integers have no gradient: differentiate the fake-quantized model instead"

_FAR = 1e6
_PROBES = 4097
_LARGEST_INT8 = 127
_LARGEST_UINT8 = 255


class StaysFloat(Exception):  # noqa: N818 - an ordinary outcome, not an error; its text is the reason in a report
    """Why a layer cannot run on integers."""


@dataclass(frozen=True)
class Grid:
    """The levels of a layer's input: ``scale * (code - zero)`` for the codes 0 .. ``top``.

    Args:
        scale: The step between two codes, in units of the input.
        zero: The code of the value 0.
        top: The largest code, at most 255.
        quantizer: Rounds an input to its level; by default inputs are rounded directly, as DoReFa does on [0, 1].

    Example:
        >>> Grid(1 / 3, 0, 3).codes(torch.tensor([-1.0, 0.3, 0.7, 2.0]))
        tensor([0, 1, 2, 3], dtype=torch.uint8)
    """

    scale: float
    zero: int
    top: int
    quantizer: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)

    def codes(self, x: Tensor) -> Tensor:
        """The codes, uint8, of inputs of any shape.

        Raises:
            InputError: If a gradient is required.
        """
        codes = self.empty_codes(x)
        for values, out in pieces(x, codes):
            self.round_into(values, out)
        return codes.view(torch.uint8)

    def empty_codes(self, x: Tensor) -> Tensor:
        """Uninitialised memory for the codes of some inputs, to be viewed as uint8.

        Raises:
            InputError: If a gradient is required.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(NO_GRADIENT)
        # The bytes are the same, and PyTorch converts floats to int8 in half the time.
        return torch.empty_like(x, dtype=torch.int8 if self.top <= _LARGEST_INT8 else torch.uint8)

    def round_into(self, x: Tensor, out: Tensor) -> None:
        """Write the codes of some inputs into their part of :meth:`empty_codes`."""
        if self.quantizer is None:
            # The same steps as in quantize_unit, so that a value on the edge goes to the same side.
            out.copy_(in_float32(x).mul(self.top).round_().clamp_(0, self.top))
        else:
            out.copy_(self.quantizer(x).div(self.scale).add_(self.zero).round_())

    def values(self, codes: Tensor) -> Tensor:
        """The levels, float32, that codes stand for."""
        return (codes.float() - self.zero) * self.scale

    @property
    def starts_at_zero(self) -> bool:
        """Whether all levels are 0 or more, as after a ReLU."""
        return self.zero == 0


def input_grid(layer: QuantizedLayer) -> Grid:
    """The levels to which a layer rounds its input.

    Raises:
        StaysFloat: If the input is not quantized, or its levels are not small integers times one step.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.quantize import Precision
        >>> input_grid(QuantLinear(1, 1, precision=Precision.parse("w2a4"))).top
        15
    """
    bits = layer.precision.activation_bits
    if bits == FULL_BITS:
        raise StaysFloat("its input has full precision")
    quantizer, n = layer.quantized_input, 2**bits - 1
    with torch.no_grad():
        low, high = quantizer(layer.weight.new_tensor([-_FAR, _FAR])).tolist()
    for grid in _candidates(low, high, n, quantizer):
        if _fits(grid, quantizer, low, high, layer.weight.device):
            return grid
    raise StaysFloat(f"its {bits}-bit input levels from {low:g} to {high:g} are no integers of one byte times one step")


def _candidates(low: float, high: float, n: int, quantizer: Callable[[Tensor], Tensor]) -> list[Grid]:
    if low == 0 and high == 1:
        return [Grid(1 / n, 0, n), Grid(1 / n, 0, n, quantizer)]
    if low == 0 < high:
        return [Grid(high / n, 0, n, quantizer)]
    if low == -high < 0:  # levels (2c - n) / n: every other one of 2n + 1 codes
        return [Grid(high / n, n, 2 * n, quantizer)]
    return []


def _fits(grid: Grid, quantizer: Callable[[Tensor], Tensor], low: float, high: float, device: torch.device) -> bool:
    """Whether a grid has the quantizer's levels, inside the clip and beyond it."""
    if grid.top > _LARGEST_UINT8:
        return False
    width = high - low
    probe = torch.linspace(low - width / 2, high + width / 2, _PROBES, device=device)
    with torch.no_grad():
        difference = (grid.values(grid.codes(probe)) - quantizer(probe)).abs().max().item()
    return difference <= 1e-3 * grid.scale


@dataclass(frozen=True, eq=False)
class Integers:
    """Quantized weights as integers: ``scale * values``.

    Args:
        values: int8, of the weights' shape ``(out, ...)``.
        scale: One positive float64 number per output channel.
    """

    values: Tensor
    scale: Tensor


def weight_integers(layer: QuantizedLayer) -> Integers:
    """The integers behind a layer's quantized weights.

    Raises:
        StaysFloat: If the weights are not quantized, not float32, or on no grid of int8.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.quantize import Precision
        >>> layer = QuantLinear(3, 1, bias=False, precision=Precision.parse("w2a4"))
        >>> _ = layer.weight.data.copy_(torch.tensor([[-1.0, 0.1, 1.0]]))
        >>> weight_integers(layer).values
        tensor([[-3,  1,  3]], dtype=torch.int8)
    """
    bits = layer.precision.weight_bits
    if bits == FULL_BITS:
        raise StaysFloat("its weights have full precision")
    if layer.weight.dtype != torch.float32:
        raise StaysFloat(f"its weights are {layer.weight.dtype}, and the kernels give float32")
    n = 2**bits - 1
    if n > _LARGEST_INT8:
        raise StaysFloat(f"{bits}-bit weights are the integers -{n} to {n}, more than int8 holds")
    with torch.no_grad():
        weight = layer.quantized_weight().double().flatten(1)
    per_filter = weight.abs().amax(1, keepdim=True)
    for unit in (per_filter.amax().expand_as(per_filter), per_filter):
        unit = torch.where(unit == 0, torch.ones_like(unit), unit)  # filters of zeros
        exact = weight / unit * n
        if (exact - exact.round()).abs().max() < 1e-3:
            values = exact.round().to(torch.int8).view(layer.weight.shape)
            return Integers(values, (unit / n).flatten())
    raise StaysFloat(f"its {bits}-bit weights are no integers times one number per filter")
