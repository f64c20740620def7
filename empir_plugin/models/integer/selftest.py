"""Checks of integer execution, on this machine and with the network's own weights.

Layers are compared with exact sums and with the fake-quantized layers, whole networks with the simulated ones. Without
VNNI instructions, x86 kernels add pairs of 8-bit products in 16 bits and saturate. Each filter that could overflow is
therefore given its worst input: the largest code wherever its weights have one sign.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.integer.grid import Grid, StaysFloat
from empir_plugin.models.integer.kernels import IntegerOp
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.layers import QuantizedLayer

_INT16 = 2**15 - 1
_EXACT_IN_FLOAT32 = 2**24
_CHUNK = 64


@torch.no_grad()
def check_layer(layer: QuantizedLayer, integer: IntegerLayer) -> None:
    """Compare an integer layer with exact sums, and with its fake-quantized layer.

    Raises:
        StaysFloat: If a sum is wrong, or the outputs differ by more than the rounding of float32.
    """
    for codes in _extreme_codes(integer.op, integer.grid.top):
        difference = _error_in_units(integer, codes)
        if difference >= 0.5:
            raise StaysFloat(f"the kernel {integer.kernel.name} is not exact here: a sum is off by {difference:.6g}")
    x = _inputs(integer)
    expected, actual = layer(x), integer(x)
    size = expected.abs().max().item()
    difference = (actual - expected).abs().max().item()
    if not difference <= 1e-5 * max(size, 1e-30):
        raise StaysFloat(f"its outputs differ by {difference:.3g} from the fake-quantized layer's, of size {size:.3g}")


@torch.no_grad()
def check_folded(plain: IntegerLayer, folded: IntegerLayer, after: torch.nn.Module) -> None:
    """Compare a layer, into which the module after it was folded, with the two of them.

    Raises:
        StaysFloat: If they differ by more than the rounding of float32.
    """
    codes = _random_codes(plain.op, plain.grid.top)
    expected, actual = after(plain(codes)), folded(codes)
    difference, size = (actual - expected).abs().max().item(), expected.abs().max().item()
    if not difference <= 1e-5 * max(size, 1e-30):
        raise StaysFloat(f"the outputs differ by {difference:.3g}, of size {size:.3g}")


@torch.no_grad()
def check_emitted(plain: IntegerLayer, emitting: IntegerLayer, grid: Grid) -> None:
    """Compare the codes a layer emits with the codes of its float outputs.

    Raises:
        StaysFloat: If a code differs although its value is not on the edge between two levels.
    """
    codes = _random_codes(plain.op, plain.grid.top)
    values, emitted = plain(codes), emitting(codes)
    steps = values.double() / grid.scale
    on_edge = (steps - steps.floor() - 0.5).abs() < 1e-4 + 1e-6 * steps.abs()
    wrong = (emitted != grid.codes(values)) & ~on_edge
    if wrong.any():
        raise StaysFloat(f"{int(wrong.sum())} of {wrong.numel()} emitted codes are wrong")


@dataclass(frozen=True)
class Agreement:
    """How far the outputs of two models are apart on some images.

    Args:
        max_logit_difference: The largest difference between two logits.
        median_logit_difference: Median over the images of the largest difference on each. In a network with batch
            normalisation a rare activation moves to the neighbouring level, which shows in the maximum only.
        differing_decisions: Images on which the decisions differ.
        images: N.
    """

    max_logit_difference: float
    median_logit_difference: float
    differing_decisions: int
    images: int


@torch.no_grad()
def agree(model: nn.Module, integer: nn.Module, images: Tensor, *, batch_size: int = 64) -> Agreement:
    """Compare the logits and decisions of a model with those of its integer form.

    Args:
        model: In evaluation mode.
        integer: Its form by :func:`~empir_plugin.models.integer.convert.to_integer`, or any other model.
        images: ``(N, C, H, W)`` in [0, 1].
        batch_size: Images per forward pass.

    Raises:
        InputError: If the model is in training mode or there are no images.

    Example:
        >>> agree(nn.Flatten().eval(), nn.Flatten().eval(), torch.rand(3, 1, 1, 2)).differing_decisions
        0
    """
    if model.training:
        raise InputError("the model is in training mode, in which it may compute something else: call eval() first")
    if not len(images):
        raise InputError("comparing two models takes at least one image, got none")
    pairs = [(model(batch), integer(batch)) for batch in images.split(batch_size)]
    gaps = torch.cat([(own - other).abs().flatten(1).amax(1) for own, other in pairs])
    differing = sum(int((own.argmax(1) != other.argmax(1)).sum()) for own, other in pairs)
    return Agreement(gaps.max().item(), gaps.median().item(), differing, len(images))


def _extreme_codes(op: IntegerOp, top: int) -> list[Tensor]:
    """Batches of codes that drive the filters' sums to their extremes, and random ones with padding and stride."""
    weight = op.weight
    strongest = weight.flatten(1).int().abs().sum(1).argsort(descending=True)
    if 2 * top * int(weight.int().abs().max()) <= _INT16:
        strongest = strongest[:8]  # no pair of products overflows, so that a few show whether the kernel works
    filters = _spread_over_groups(weight[strongest], op)
    extremes = torch.cat([filters > 0, filters < 0]).to(torch.uint8) * top
    return [*extremes.split(_CHUNK), _random_codes(op, top)]


def _spread_over_groups(filters: Tensor, op: IntegerOp) -> Tensor:
    """Filters ``(n, C / groups, ...)`` repeated for each group and dilated: inputs ``(n, C, ...)``."""
    groups = 1 if op.geometry is None else op.geometry.groups
    spread = torch.cat([filters] * groups, 1)
    if op.geometry is None or op.geometry.dilation == (1, 1):
        return spread
    (dh, dw), (kh, kw) = op.geometry.dilation, filters.shape[2:]
    dilated = spread.new_zeros(*spread.shape[:2], dh * (kh - 1) + 1, dw * (kw - 1) + 1)
    dilated[:, :, ::dh, ::dw] = spread
    return dilated


def _random_codes(op: IntegerOp, top: int) -> Tensor:
    shape = (8, *_input_shape(op))
    codes = torch.randint(0, top + 1, shape, generator=torch.Generator().manual_seed(0))
    return codes.to(op.weight.device, torch.uint8)


def _input_shape(op: IntegerOp) -> tuple[int, ...]:
    """Shape of one input, large enough for two positions of every filter."""
    if op.geometry is None:
        return (op.weight.shape[1],)
    g = op.geometry
    sides = [
        dilation * (kernel - 1) + 1 + stride + 1
        for dilation, kernel, stride in zip(g.dilation, op.weight.shape[2:], g.stride, strict=True)
    ]
    return (op.weight.shape[1] * g.groups, *sides)


def _inputs(layer: IntegerLayer) -> Tensor:
    """Float inputs over all levels of a layer and beyond both ends."""
    generator = torch.Generator().manual_seed(1)
    low, high = layer.grid.values(torch.tensor([0, layer.grid.top])).tolist()
    uniform = torch.rand((4, *_input_shape(layer.op)), generator=generator).to(layer.op.weight.device)
    return low + (1.5 * uniform - 0.25) * (high - low)


def _error_in_units(layer: IntegerLayer, codes: Tensor) -> float:
    """The largest error of an output, in units of one product of integers; 0.5 is a wrong sum.

    Sums beyond 2**24 come out rounded to float32, which is no error of the kernel and does not count.
    """
    op, exact = layer.op, _exact_sums(layer.op, codes)
    shape = (-1, *[1] * (exact.dim() - 2))
    scale = op.scale.view(shape)
    bias = 0 if op.bias is None else op.bias.view(shape)
    sums = (layer(codes).double() - bias) / scale
    rounding = 2**-22 * (exact.abs() + (bias / scale).abs() if op.bias is not None else exact.abs())
    return ((sums - exact).abs() - rounding).max().item()


def _exact_sums(op: IntegerOp, codes: Tensor) -> Tensor:
    """The integer sums of an operation, float64, without scale and bias."""
    reach = int(op.weight.flatten(1).int().abs().sum(1).max()) * int(codes.max())
    dtype = torch.float32 if reach < _EXACT_IN_FLOAT32 else torch.float64  # both exact; the first is far quicker
    x, weight = (codes.to(torch.int16) - op.zero).to(dtype), op.weight.to(dtype)
    if op.geometry is None:
        return F.linear(x, weight).double()
    g = op.geometry
    return F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups).double()
