"""Whether an integer kernel computes exactly what it should, on this machine, with these very weights.

Without VNNI instructions, x86 kernels add pairs of 8-bit products in 16 bits and saturate. So the check feeds every
filter that could overflow the input that is worst for it: the largest code wherever its weights have one sign.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from empir_plugin.models.integer.grid import Grid, StaysFloat
from empir_plugin.models.integer.kernels import IntegerOp
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.layers import QuantizedLayer

_INT16 = 2**15 - 1
_EXACT_IN_FLOAT32 = 2**24
_CHUNK = 64


@torch.no_grad()
def check_layer(layer: QuantizedLayer, integer: IntegerLayer) -> None:
    """Compare an integer layer with exact sums, and with the fake-quantized layer it stands for.

    Raises:
        StaysFloat: If a sum is wrong, or the outputs differ by more than the rounding of float32.
    """
    for codes in _demanding(integer.op, integer.grid.top):
        difference = _error_in_units(integer, codes)
        if difference >= 0.5:
            raise StaysFloat(f"the kernel {integer.kernel.name} is not exact here: a sum is off by {difference:.6g}")
    x = _inputs(integer)
    expected, found = layer(x), integer(x)
    size = expected.abs().max().item()
    difference = (found - expected).abs().max().item()
    if not difference <= 1e-5 * max(size, 1e-30):
        raise StaysFloat(f"its outputs differ by {difference:.3g} from the fake-quantized layer's, of size {size:.3g}")


@torch.no_grad()
def check_folded(plain: IntegerLayer, folded: IntegerLayer, after: torch.nn.Module) -> None:
    """Compare a layer into which a following module was folded with the two of them.

    Raises:
        StaysFloat: If they differ by more than the rounding of float32.
    """
    codes = _random_codes(plain)
    expected, found = after(plain(codes)), folded(codes)
    difference, size = (found - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= 1e-5 * max(size, 1e-30):
        raise StaysFloat(f"the outputs differ by {difference:.3g}, of size {size:.3g}")


@torch.no_grad()
def check_emitted(plain: IntegerLayer, emitting: IntegerLayer, grid: Grid) -> None:
    """Compare the codes a layer emits with the codes of its float outputs.

    Raises:
        StaysFloat: If a code differs although its value is not on the edge between two levels.
    """
    codes = _random_codes(plain)
    values, found = plain(codes), emitting(codes)
    steps = values.double() / grid.scale
    on_edge = (steps - steps.floor() - 0.5).abs() < 1e-4 + 1e-6 * steps.abs()
    wrong = (found != grid.codes(values)) & ~on_edge
    if wrong.any():
        raise StaysFloat(f"{int(wrong.sum())} of {wrong.numel()} emitted codes are wrong")


def _demanding(op: IntegerOp, top: int) -> list[Tensor]:
    """Codes that drive the filters' sums to their extremes, in batches, and random ones with padding and stride."""
    weight = op.weight
    strongest = weight.flatten(1).int().abs().sum(1).argsort(descending=True)
    if 2 * top * int(weight.int().abs().max()) <= _INT16:
        strongest = strongest[:8]  # no pair of products overflows, so that a few show whether the kernel works
    filters = _in_every_group(weight[strongest], op)
    extremes = torch.cat([filters > 0, filters < 0]).to(torch.uint8) * top
    return [*extremes.split(_CHUNK), _noise(op, top)]


def _in_every_group(filters: Tensor, op: IntegerOp) -> Tensor:
    """Filters ``(n, C / groups, ...)`` over all input channels ``(n, C, ...)``: every group sees the same."""
    groups = 1 if op.geometry is None else op.geometry.groups
    spread = torch.cat([filters] * groups, 1)
    if op.geometry is None or op.geometry.dilation == (1, 1):
        return spread
    (dh, dw), (kh, kw) = op.geometry.dilation, filters.shape[2:]
    dilated = spread.new_zeros(*spread.shape[:2], dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    dilated[:, :, ::dh, ::dw] = spread
    return dilated


def _noise(op: IntegerOp, top: int) -> Tensor:
    shape = (8, *_input_shape(op))
    return torch.randint(0, top + 1, shape, generator=torch.Generator().manual_seed(0)).to(
        op.weight.device, torch.uint8
    )


def _input_shape(op: IntegerOp) -> tuple[int, ...]:
    """Of one input, large enough for every filter to lie twice on it."""
    if op.geometry is None:
        return (op.weight.shape[1],)
    sides = [
        dilation * (kernel - 1) + 1 + stride + 1
        for dilation, kernel, stride in zip(op.geometry.dilation, op.weight.shape[2:], op.geometry.stride, strict=True)
    ]
    return (op.weight.shape[1] * op.geometry.groups, *sides)


def _random_codes(layer: IntegerLayer) -> Tensor:
    return _noise(layer.op, layer.grid.top)


def _inputs(layer: IntegerLayer) -> Tensor:
    """Float inputs over all levels of a layer and beyond both ends."""
    generator = torch.Generator().manual_seed(1)
    low, high = layer.grid.values(torch.tensor([0, layer.grid.top])).tolist()
    uniform = torch.rand((4, *_input_shape(layer.op)), generator=generator).to(layer.op.weight.device)
    return low + (1.5 * uniform - 0.25) * (high - low)


def _error_in_units(layer: IntegerLayer, codes: Tensor) -> float:
    """The largest error of an output, in units of one product of integers; 0.5 is a wrong sum.

    Sums beyond 2**24 come out rounded to float32, which is no error of the kernel and is left out.
    """
    exact = _exact_sums(layer.op, codes)
    op = layer.op
    shape = (-1, *[1] * (exact.dim() - 2))
    scale = op.scale.view(shape)
    bias = 0 if op.bias is None else op.bias.view(shape)
    found = (layer(codes).double() - bias) / scale
    rounding = 2**-22 * (exact.abs() + (bias / scale).abs() if op.bias is not None else exact.abs())
    return ((found - exact).abs() - rounding).max().item()


def _exact_sums(op: IntegerOp, codes: Tensor) -> Tensor:
    """The integer sums, float64, of a kernel's work without scale and bias."""
    reach = int(op.weight.flatten(1).int().abs().sum(1).max()) * int(codes.max())
    dtype = torch.float32 if reach < _EXACT_IN_FLOAT32 else torch.float64  # both exact; the first is far quicker
    x, weight = (codes.to(torch.int16) - op.zero).to(dtype), op.weight.to(dtype)
    if op.geometry is None:
        return F.linear(x, weight).double()
    g = op.geometry
    return F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups).double()
