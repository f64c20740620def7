"""Kernels for convolutions and matrix products of small integers: oneDNN's on the CPU, ``torch._int_mm`` on CUDA.

Float32 computes the same sums on every device, more slowly: by convolutions on the CPU, by matrix products elsewhere.

The operators are private parts of PyTorch (Inductor lowers quantized graphs to oneDNN's). Each is therefore used only
where it exists, and only after :mod:`empir_plugin.models.integer.selftest` has verified that it is exact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from empir_plugin.models.integer.codes import Grid
from empir_plugin.models.layers import EXACT_IN_FLOAT32

_FAR_BELOW_INFINITY = 1e30

Program = Callable[[Tensor], Tensor]
"""From input codes, uint8 ``(N, C, H, W)`` or ``(N, F)``, to outputs: float32, or codes of the next layer."""


@dataclass(frozen=True)
class Geometry:
    """Stride, padding, dilation and groups of a convolution; pairs are (height, width), padding is symmetric."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True, eq=False)
class IntegerOp:
    """A layer's operation on codes: ``sum((code - zero) * weight) * scale + bias``, then a ReLU or rounding to codes.

    The product and the sum with the bias are each rounded to float32.

    Args:
        weight: int8, ``(K, C / groups, kh, kw)``, or ``(K, F)`` for a linear layer.
        zero: The code of the value 0; padding has this value.
        scale: float32 ``(K,)``.
        bias: float32 ``(K,)``, if any.
        geometry: Of a convolution; None for a linear layer.
        relu: Whether negative outputs become 0.
        emits: Grid of the output codes, the default one of its size; None for float32 outputs.
    """

    weight: Tensor
    zero: int
    scale: Tensor
    bias: Tensor | None
    geometry: Geometry | None
    relu: bool = False
    emits: Grid | None = None

    @property
    def is_bounded(self) -> bool:
        """Whether outputs stay far below infinity for all inputs, so that neither they nor sums of them are NaN."""
        largest = EXACT_IN_FLOAT32 * self.scale.abs() + (0 if self.bias is None else self.bias.abs())
        return bool((largest < _FAR_BELOW_INFINITY).all())


class Kernel(Protocol):
    """An implementation of :class:`IntegerOp`."""

    @property
    def name(self) -> str:
        """The kernel's name in reports."""
        ...

    def unusable(self, device: torch.device) -> str | None:
        """Why the kernel cannot be used on a device; None if it can."""
        ...

    def compile(self, op: IntegerOp) -> Program:
        """Prepare the weights and return a function of input codes."""
        ...


@dataclass(frozen=True)
class OneDNN:
    """int8 convolutions and linear layers of oneDNN, on x86 and ARM processors."""

    name: str = "onednn"

    def unusable(self, device: torch.device) -> str | None:
        """Reject other devices, and builds without these operators."""
        if device.type != "cpu":
            return f"oneDNN's int8 kernels run on the CPU, not on {device.type}"
        wanted = ("qconv2d_pointwise", "qconv_prepack", "qlinear_pointwise", "qlinear_prepack")
        missing = [name for name in wanted if not hasattr(torch.ops.onednn, name)]
        if missing or not torch.backends.mkldnn.is_available():
            return f"this build of PyTorch lacks oneDNN's int8 kernels ({', '.join(missing) or 'no oneDNN'})"
        return None

    def compile(self, op: IntegerOp) -> Program:
        """Pack the weights into the kernel's own layout."""
        return _onednn_linear(op) if op.geometry is None else _onednn_conv(op, op.geometry)


def _post_op(op: IntegerOp) -> tuple[float, torch.dtype, str, list[float]]:
    """Output step, output type, and the post-op with its arguments: DoReFa's clip is a hard tanh to [0, 1]."""
    if op.emits is not None:
        return 1 / op.emits.top, torch.uint8, "hardtanh", [0.0, 1.0]
    return 1.0, torch.float32, "relu" if op.relu else "none", []


def _onednn_conv(op: IntegerOp, geometry: Geometry) -> Program:
    where = [list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups]
    scale, bias, zeros = op.scale, op.bias, torch.zeros(len(op.scale), dtype=torch.int64)
    step, dtype, after, scalars = _post_op(op)
    packed = torch.ops.onednn.qconv_prepack(op.weight, scale, 1.0, op.zero, *where, None)
    run: Any = torch.ops.onednn.qconv2d_pointwise.default
    has_tiles = _has_tiles()

    def convolve(codes: Tensor) -> Tensor:
        codes = codes.contiguous(memory_format=torch.channels_last)
        tail = (step, 0, dtype, after, scalars, "")
        return run(codes, 1.0, op.zero, packed, scale, zeros, bias, *where, *tail)

    def program(codes: Tensor) -> Tensor:
        width = output_width(codes.shape[3], op.weight.shape[3], geometry)
        if has_tiles and len(codes) >= _MIN_ROW and op.weight.shape[3] > 1 and 0 < width <= _NARROW:
            return convolve_in_a_row(convolve, codes, width, op.zero, geometry)
        return convolve(codes)

    return program


_NARROW = 4
_MIN_ROW = 8
"""Narrow outputs, and images for which one row is faster; 64 images of 4x4 with 512 channels: 4.9 and 2.4 ms."""


def _has_tiles() -> bool:
    """Whether the processor multiplies matrices of bytes in tiles (AMX), as PyTorch sees it, from 2.6 on."""
    supported = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return supported is not None and bool(supported())


def output_width(width: int, kernel: int, geometry: Geometry) -> int:
    """Columns of a convolution's output, from those of its input and of its filters."""
    (_, stride), (_, padding), (_, dilation) = geometry.stride, geometry.padding, geometry.dilation
    return (width + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1


def convolve_in_a_row(convolve: Program, codes: Tensor, width: int, zero: int, geometry: Geometry) -> Tensor:
    """Convolve narrow images side by side, as one wide image: tiles are filled by the columns of one row.

    Args:
        convolve: The convolution of codes.
        codes: Its input ``(N, C, H, W)``.
        width: Columns of an image's output.
        zero: The code of the value 0, which separates the images.
        geometry: Of the convolution.
    """
    images, channels, height, columns = codes.shape
    (_, stride), (_, padding) = geometry.stride, geometry.padding
    step = max(-(-(columns + padding) // stride), width)  # columns of the output from one image to the next
    row = codes.new_full((1, height, images, step * stride, channels), zero)
    row[0, :, :, :columns] = codes.permute(2, 0, 3, 1)
    output = convolve(row.flatten(2, 3).permute(0, 3, 1, 2))
    each = output[0].unfold(2, width, step)[:, :, :images]  # (K, H, N, W)
    return each.permute(2, 0, 1, 3).contiguous(memory_format=torch.channels_last)


def _onednn_linear(op: IntegerOp) -> Program:
    scale, bias, zeros = op.scale, op.bias, torch.zeros(len(op.scale), dtype=torch.int64)
    step, dtype, after, scalars = _post_op(op)
    packed = torch.ops.onednn.qlinear_prepack(op.weight, None)
    run: Any = torch.ops.onednn.qlinear_pointwise.default

    def program(codes: Tensor) -> Tensor:
        tail = (step, 0, dtype, after, scalars, "")
        return run(codes.contiguous(), 1.0, op.zero, packed, scale, zeros, bias, *tail)

    return program


@dataclass(frozen=True)
class IntMM:
    """``torch._int_mm`` on unfolded images: the int8 matrix product PyTorch has for CUDA.

    It also runs on the CPU, slowly; tests use it there.
    """

    name: str = "int_mm"

    def unusable(self, device: torch.device) -> str | None:
        """Reject other devices, and builds without the operator."""
        if device.type not in ("cpu", "cuda"):
            return f"torch._int_mm does not run on {device.type}"
        square = torch.zeros(8, 8, dtype=torch.int8, device=device)
        try:  # older releases have the operator, but not for the CPU
            _product(square, square, filters=8)
        except (AttributeError, NotImplementedError):
            return f"this build of PyTorch lacks torch._int_mm for {device.type}"
        return None

    def compile(self, op: IntegerOp) -> Program:
        """Reshape the weights into matrices, one per group."""
        groups = 1 if op.geometry is None else op.geometry.groups
        matrices = [_pad(part.flatten(1).t(), 8, 8) for part in op.weight.chunk(groups)]
        product = partial(_product, filters=len(op.scale) // groups)
        return lambda codes: _by_matrices(codes.to(torch.int16).sub_(op.zero).to(torch.int8), matrices, op, product)


def _by_matrices(
    x: Tensor, matrices: list[Tensor], op: IntegerOp, product: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """The outputs for integers ``x`` by products with matrices, one per group, of a convolution's patches."""
    if op.geometry is None:
        return _finish(product(x, matrices[0]), op)
    columns = [_columns(part, op.weight.shape[2:], op.geometry) for part in x.chunk(op.geometry.groups, 1)]
    sums = [product(c.flatten(0, 2), matrix) for c, matrix in zip(columns, matrices, strict=True)]
    shape = columns[0].shape[:3]  # (N, H, W)
    return _finish(torch.cat(sums, 1), op).view(*shape, len(op.scale)).permute(0, 3, 1, 2)


def _columns(x: Tensor, kernel: torch.Size, geometry: Geometry) -> Tensor:
    """The patches ``(N, H, W, C * kh * kw)`` under a convolution's filters."""
    (sh, sw), (ph, pw), (dh, dw) = geometry.stride, geometry.padding, geometry.dilation
    x = F.pad(x, (pw, pw, ph, ph))
    height = (x.shape[2] - dh * (kernel[0] - 1) - 1) // sh + 1
    width = (x.shape[3] - dw * (kernel[1] - 1) - 1) // sw + 1
    shifted = [
        x[:, :, i * dh : i * dh + sh * (height - 1) + 1 : sh, j * dw : j * dw + sw * (width - 1) + 1 : sw]
        for i in range(kernel[0])
        for j in range(kernel[1])
    ]
    return torch.stack(shifted, 2).flatten(1, 2).permute(0, 2, 3, 1)


@dataclass(frozen=True)
class Float32:
    """Sums of integers in float32, which are exact below 2**24, on every device."""

    name: str = "float32"

    def unusable(self, device: torch.device) -> str | None:
        """None: it runs everywhere."""

    def compile(self, op: IntegerOp) -> Program:
        """Convert the weights to floats."""
        if op.geometry is None:
            weight = op.weight.float()
            return lambda codes: _finish(F.linear(_integers(codes, op.zero), weight), op)
        where, by_channel = op.geometry, replace(op, scale=op.scale.view(-1, 1, 1))
        by_channel = by_channel if op.bias is None else replace(by_channel, bias=op.bias.view(-1, 1, 1))
        filters = op.weight.float().contiguous(memory_format=torch.channels_last)
        settings = where.stride, where.padding, where.dilation, where.groups
        return lambda codes: _finish(F.conv2d(_integers(codes, op.zero), filters, None, *settings), by_channel)


@dataclass(frozen=True)
class Unfolded:
    """Sums of integers by float32 matrix products of unfolded images.

    A GPU's library may convolve by Winograd's or Fourier's algorithm, which round on the way, and it picks the
    algorithm by the shape of a batch. A matrix product adds up the products themselves, whatever the shape.
    """

    name: str = "float32, unfolded"

    def unusable(self, device: torch.device) -> str | None:
        """None: it runs everywhere."""

    def compile(self, op: IntegerOp) -> Program:
        """Convert the weights to matrices of floats, one per group."""
        groups = 1 if op.geometry is None else op.geometry.groups
        matrices = [part.flatten(1).t().float().contiguous() for part in op.weight.chunk(groups)]
        return lambda codes: _by_matrices(_integers(codes, op.zero), matrices, op, torch.matmul)


def _integers(codes: Tensor, zero: int) -> Tensor:
    return codes.float().sub_(zero) if zero else codes.float()


def _pad(x: Tensor, rows: int, columns: int, *, min_rows: int = 0) -> Tensor:
    """Pad with zeros to multiples of some rows and columns, as CUDA's kernel requires."""
    height = max(x.shape[0], min_rows)
    return F.pad(x, (0, -x.shape[1] % columns, 0, height + -height % rows - x.shape[0])).contiguous()


def _product(x: Tensor, matrix: Tensor, *, filters: int) -> Tensor:
    """Sums of products, int32 ``(rows of x, filters)``."""
    multiply: Any = torch._int_mm  # pyright: ignore[reportPrivateImportUsage]
    return multiply(_pad(x, 8, 8, min_rows=24), matrix)[: len(x), :filters]


def _finish(sums: Tensor, op: IntegerOp) -> Tensor:
    """Scale, bias, and ReLU or rounding to codes."""
    y = sums * op.scale
    y = y if op.bias is None else y + op.bias
    if op.emits is not None:
        return y.mul(op.emits.top).round_().clamp_(0, op.emits.top).to(torch.uint8)
    return y.relu() if op.relu else y


def kernel_for(device: torch.device) -> Kernel:
    """The default kernel of a device: oneDNN's on the CPU, ``torch._int_mm`` elsewhere.

    On a GPU the latter is chosen for its exactness, not its speed, which ``benchmarks/gpu.py`` measures: integers do
    not round for any shape of a batch, while the algorithm of a float32 convolution depends on it.
    """
    return OneDNN() if device.type == "cpu" else IntMM()


def float32_kernels(device: torch.device) -> tuple[Kernel, ...]:
    """Kernels in float32 in the order to try them; convolutions only where they do not depend on a batch's shape."""
    return (Float32(), Unfolded()) if device.type == "cpu" else (Unfolded(),)


def pool_codes(
    x: Tensor,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor:
    """Max pooling of codes, uint8 ``(N, C, H, W)``; the arguments are those of ``max_pool2d``, without indices."""
    if x.device.type == "cpu" and x.dim() == 4 and hasattr(torch.ops.quantized, "max_pool2d"):
        pairs = [_pair(value) for value in (kernel_size, stride or kernel_size, padding, dilation)]
        return torch.ops.quantized.max_pool2d(x, *pairs, ceil_mode)
    return F.max_pool2d(x.float(), kernel_size, stride, padding, dilation, ceil_mode).to(torch.uint8)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else list(value)
