"""Checks of integer execution, on this machine and with the network's own weights: every bit must be right.

Layers are compared with the quantized layers they replace. Without VNNI instructions, x86 kernels add pairs of 8-bit
products in 16 bits and saturate. Each filter that could overflow is therefore given its worst input: the largest code
wherever its weights have one sign.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.integer.codes import Grid, Inexact, StaysFloat
from empir_plugin.models.integer.kernels import Geometry, IntegerOp, Kernel
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.layers import EXACT_IN_FLOAT32, QuantizedLayer

_INT16 = 2**15 - 1
_CHUNK = 64


@torch.no_grad()
def check_layer(layer: QuantizedLayer, integer: IntegerLayer) -> None:
    """Compare an integer layer with exact sums, and with the quantized layer it stands for.

    Raises:
        Inexact: If a bit differs.
    """
    for codes in _extreme_codes(integer.op, integer.grid.top):
        _require_equal(_reference(integer.op, codes), integer(codes), integer.kernel)
    x = _inputs(integer, layer)
    _require_equal(_on_cpu(layer, x), integer(x), integer.kernel)


def _on_cpu(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """A layer's output as computed on the CPU, whose convolutions add up the products themselves."""
    if x.device.type == "cpu":
        return layer(x)
    return copy.deepcopy(layer).cpu()(x.cpu()).to(x.device)


def _require_equal(expected: Tensor, actual: Tensor, kernel: Kernel) -> None:
    if not torch.equal(expected, actual):
        difference = (actual.double() - expected.double()).abs().max().item()
        raise Inexact(f"the kernel {kernel.name} is not exact here: an output is off by {difference:.6g}")


@torch.no_grad()
def emitting(op: IntegerOp, grid: Grid, kernel: Kernel) -> IntegerOp:
    """An operation that emits codes, with a bias that makes the kernel emit exactly those of its float outputs.

    A kernel may multiply by the inverse of a step where the definition multiplies by the number of steps, so that
    floats next to the border between two codes get the wrong one. The sums are integers and reach few of these floats;
    where one does, the bias moves by a few units of the last place, and every sum next to a border is checked again.

    Args:
        op: An operation with float outputs.
        grid: Of the codes to emit.
        kernel: Its codes do not decrease as floats increase.

    Raises:
        StaysFloat: If no such bias is found.
    """
    exact = _borders(grid.codes, grid.top)
    found = _borders(lambda floats: _emitted(kernel, op, grid, floats), grid.top)
    wanted_bias = torch.zeros_like(op.scale) if op.bias is None else op.bias
    sums = _sums_at_borders(op.scale, wanted_bias, exact)
    wanted = _count(exact, sums * op.scale.unsqueeze(1) + wanted_bias.unsqueeze(1))
    bias, unmatched = wanted_bias.clone(), torch.ones_like(op.scale, dtype=torch.bool)
    for units in sorted(range(-_UNITS, _UNITS + 1), key=abs):
        moved = wanted_bias + units * 2.0**-25
        matches = (_count(found, sums * op.scale.unsqueeze(1) + moved.unsqueeze(1)) == wanted).all(1)
        bias = torch.where(unmatched & matches, moved, bias)
        unmatched &= ~matches
    if unmatched.any():
        raise StaysFloat(f"{int(unmatched.sum())} of its {len(bias)} filters emit other codes than their outputs have")
    return replace(op, emits=grid, bias=op.bias if torch.equal(bias, wanted_bias) else bias)


_UNITS = 8
"""By how many units of 2**-25, half the last place of numbers next to 1, a bias may move."""


def _borders(codes: Callable[[Tensor], Tensor], top: int) -> Tensor:
    """The smallest float of each code 1 .. ``top``, found by bisection: float32 ``(top,)``."""
    wanted = torch.arange(1, top + 1)
    low, high = (wanted - 1).float() / top, wanted.float() / top
    while not bool((torch.nextafter(low, high) == high).all()):
        middle = ((low.double() + high.double()) / 2).float()
        reached = codes(middle) >= wanted
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    return high


def _emitted(kernel: Kernel, op: IntegerOp, grid: Grid, floats: Tensor) -> Tensor:
    """The codes that a kernel emits for float outputs ``(n,)``."""
    weight = op.weight.new_zeros(len(floats), 1, 1, 1)
    ones, bias = op.scale.new_ones(len(floats)), floats.to(op.scale.device)
    run = kernel.compile(IntegerOp(weight, 0, ones, bias, Geometry((1, 1), (0, 0), (1, 1), 1), emits=grid))
    return run(torch.zeros(1, 1, 1, 1, dtype=torch.uint8, device=ones.device)).flatten().cpu()


def _sums_at_borders(scale: Tensor, bias: Tensor, borders: Tensor) -> Tensor:
    """For each filter the integers whose outputs are next to a border: ``(K, n)``."""
    nearest = ((borders.to(scale.device).double() - bias.double().unsqueeze(1)) / scale.double().unsqueeze(1)).round()
    around = nearest.unsqueeze(2) + torch.arange(-2, 3, device=scale.device)
    return around.clamp(-EXACT_IN_FLOAT32, EXACT_IN_FLOAT32).nan_to_num_().flatten(1).float()


def _count(borders: Tensor, floats: Tensor) -> Tensor:
    """The codes of floats, by the smallest float of each code."""
    return torch.bucketize(floats, borders.to(floats.device), right=True)


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


def _reference(op: IntegerOp, codes: Tensor) -> Tensor:
    """The outputs of an operation, by exact sums.

    They are added up in float64, where even algorithms that round on the way end nearest to the right integer.
    """
    x, weight = (codes.to(torch.int16) - op.zero).double(), op.weight.double()
    if op.geometry is None:
        sums, shape = F.linear(x, weight), (-1,)
    else:
        g, shape = op.geometry, (-1, 1, 1)
        sums = F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, g.groups)
    output = sums.round().float() * op.scale.view(shape)
    return output if op.bias is None else output + op.bias.view(shape)


def _inputs(integer: IntegerLayer, layer: QuantizedLayer) -> Tensor:
    """Float inputs over all levels of a layer and beyond both ends."""
    generator = torch.Generator().manual_seed(1)
    width = 1.0 if layer.activation_bound is None else float(layer.activation_bound)
    uniform = torch.rand((4, *_input_shape(integer.op)), generator=generator).to(integer.op.weight.device)
    return (4 * uniform - 2) * width
