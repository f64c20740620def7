"""Quantized layers in integer form: codes in, an integer kernel, float32 or codes out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.models.integer.grid import Grid, StaysFloat, input_grid, weight_integers
from empir_plugin.models.integer.kernels import Geometry, IntegerOp, Kernel, Program
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.quantize import Precision


class IntegerLayer(QuantizedLayer):
    """A quantized convolution or linear layer, run by an integer kernel; for inference, on the device it was made for.

    Its input is either float, which it rounds to codes first, or codes already. It counts as a quantized layer, so that
    an ensemble does not mistake its network for the full-precision one.

    Args:
        precision: Bits of the quantized layer it replaces.
        grid: Levels of its input.
        op: The operation on codes.
        kernel: Its implementation.
    """

    def __init__(self, precision: Precision, grid: Grid, op: IntegerOp, kernel: Kernel) -> None:
        super().__init__()
        self._precision, self.grid, self.op, self.kernel = precision, grid, op, kernel
        self._program: Program = kernel.compile(op)
        self.eval()

    @property
    def precision(self) -> Precision:
        """Bits of this layer's weights and input."""
        return self._precision

    def bake_(self) -> None:
        """Do nothing: the weights are integers already."""

    def with_changes(self, **changes: Any) -> IntegerLayer:
        """A copy of the layer with some fields of its :class:`IntegerOp` changed."""
        return IntegerLayer(self.precision, self.grid, replace(self.op, **changes), self.kernel)

    def forward(self, input: Tensor) -> Tensor:
        """Map inputs, float or codes, ``(N, C, H, W)`` or ``(..., F)``."""
        codes = input if input.dtype == torch.uint8 else self.grid.codes(input)
        if self.op.geometry is not None:
            return self._program(codes)
        return self._program(codes.reshape(-1, codes.shape[-1])).view(*codes.shape[:-1], -1)

    def extra_repr(self) -> str:
        """Shape, precision and kernel."""
        out = "float32" if self.op.emits is None else "codes"
        return f"{tuple(self.op.weight.shape)}, precision={self.precision}, kernel={self.kernel.name}, out={out}"

    def __getstate__(self) -> dict[str, Any]:
        # The kernel's packed weights can be neither copied nor pickled; they are packed again instead.
        return {key: value for key, value in self.__dict__.items() if key != "_program"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._program = self.kernel.compile(self.op)


def integer_layer(layer: QuantizedLayer, kernel: Kernel) -> IntegerLayer:
    """The integer form of a quantized layer, not yet checked.

    Raises:
        StaysFloat: If it has none, the kernel cannot run on its device, or the kernel rejects it.
    """
    reason = kernel.unusable(layer.weight.device)
    if reason is not None:
        raise StaysFloat(reason)
    if layer._forward_hooks or layer._forward_pre_hooks:
        raise StaysFloat("it has forward hooks, which an integer layer would not call")
    geometry = _geometry(layer)
    grid, integers = input_grid(layer), weight_integers(layer)
    bias = getattr(layer, "bias", None)
    offset = None if bias is None else bias.detach().double()
    op = IntegerOp(integers.values, grid.zero, integers.scale * grid.scale, offset, geometry)
    try:
        return IntegerLayer(layer.precision, grid, op, kernel)
    except (RuntimeError, NotImplementedError) as error:
        raise StaysFloat(f"the kernel {kernel.name} refuses it: {str(error).splitlines()[0]}") from error


def _geometry(layer: QuantizedLayer) -> Geometry | None:
    """Geometry of a convolution; None for a linear layer."""
    forward = type(layer).forward
    if isinstance(layer, QuantLinear) and forward is QuantLinear.forward:
        return None
    plain = type(layer)._conv_forward is nn.Conv2d._conv_forward if isinstance(layer, QuantConv2d) else False
    if not isinstance(layer, QuantConv2d) or forward is not QuantConv2d.forward or not plain:
        raise StaysFloat(f"no integer form of a {type(layer).__name__} is known")
    if layer.padding_mode != "zeros" and any(layer._reversed_padding_repeated_twice):
        raise StaysFloat(f"its padding is {layer.padding_mode!r}, the kernels pad with zeros")
    before, after = layer._reversed_padding_repeated_twice[::2], layer._reversed_padding_repeated_twice[1::2]
    if before != after:
        raise StaysFloat("its padding differs between the two sides")
    padding = (int(before[1]), int(before[0]))
    return Geometry(_pair(layer.stride), padding, _pair(layer.dilation), layer.groups)


def _pair(pair: tuple[int, ...]) -> tuple[int, int]:
    return int(pair[0]), int(pair[1])
