"""Quantized layers on integer kernels: in integer form, for inference, and with a gradient, for attacks.

The integer form takes codes, or floats that it rounds to codes, and gives float32 or codes. With a gradient, only the
forward pass runs on the kernel; the backward pass is a float convolution and the rule of the clip.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.models.backward import BackwardRule, is_transformed
from empir_plugin.models.integer.codes import Grid, NotANumber, StaysFloat, input_grid
from empir_plugin.models.integer.kernels import Geometry, IntegerOp, Kernel, Program
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.quantize import ActivationQuantizer, Precision

_LARGEST_INT8 = 127


class IntegerLayer(QuantizedLayer):
    """A quantized convolution or linear layer, run by an integer kernel; for inference, on the device it was made for.

    Its input is either float, which it rounds to codes first, or codes already. It counts as a quantized layer, so that
    an ensemble does not mistake its network for the full-precision one.

    Args:
        precision: Bits of the quantized layer it replaces.
        grid: Codes of its input.
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
        if self.op.geometry is None:
            output = self._program(codes.reshape(-1, codes.shape[-1]))
            return output.view(*codes.shape[:-1], output.shape[-1])
        return self._program(codes) if codes.dim() == 4 else self._program(codes.unsqueeze(0)).squeeze(0)

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


class _ForwardOnKernel(torch.autograd.Function):
    """Forward: an integer layer. Backward: that of the quantized layer, whose weights are constants."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kernel: WithGradient, rule: BackwardRule) -> Tensor:
        ctx.kernel, ctx.rule = kernel, rule
        ctx.save_for_backward(x)
        with torch.no_grad():
            output = kernel.integer(x)
        # Autograd lets nobody write to a view that a function returns, as a ReLU in place does: return it as no view.
        return output.new_empty(0).set_(output) if output._is_view() else output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        return ctx.rule.backward(ctx.kernel.gradient(grads[0], x.shape), x), None, None


@dataclass(frozen=True, eq=False)
class WithGradient:
    """Runs the forward pass of a quantized layer with constant weights on an integer kernel, for attacks.

    Gradients are the same bit for bit on every kernel.

    Args:
        integer: The layer in integer form.
        weight: By which a gradient of the output is multiplied, of the weights' shape. Its type, float32 or bfloat16,
            is that of the operands; sums are float32.
        source: The integers of the layer's baked weights from which both were made.
        bias: The values of the layer's bias then, if it has one.
        of_squares: For :func:`gradient_of_squares`, where that is faster.
    """

    integer: IntegerLayer
    weight: Tensor
    source: Tensor
    bias: Tensor | None
    of_squares: Tensor | None = None

    def __call__(self, layer: QuantizedLayer, input: Tensor) -> Tensor | None:
        """The layer's output; None where the kernel does not compute it, or not its gradient.

        That is: where the layer has changed or its parameters need a gradient, in training mode, for inputs of another
        type or in autocast, which rounds the layer's sums, for inputs with a NaN, under transforms of functions and in
        traced graphs.
        """
        asked = torch.is_grad_enabled()
        if input.dtype != torch.float32 or is_transformed() or torch.is_autocast_enabled(input.device.type):
            return None
        if torch.compiler.is_compiling() or torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return None
        if asked and any(each.requires_grad for each in layer.parameters(recurse=False)):
            return None
        if not self._is_current(layer):
            return None
        try:
            if not (input.requires_grad and asked):
                return self.integer(input)
            return _ForwardOnKernel.apply(input, self, layer.activation_quantizer.clip)  # type: ignore[no-any-return]
        except NotANumber:
            return None

    def _is_current(self, layer: QuantizedLayer) -> bool:
        """Whether a layer still computes what it did when the kernel got its numbers."""
        integers, rule = layer.integer_weights(), layer.activation_quantizer
        if integers is None or integers.values is not self.source:  # Not in training mode, where weights are not baked.
            return False
        known = isinstance(rule, ActivationQuantizer) and callable(getattr(rule.clip, "backward", None))
        if not known or rule.steps != self.integer.grid.top or layer.activation_bound is not None:
            return False
        if self.bias is None or layer.bias is None:
            return self.bias is layer.bias
        return torch.equal(layer.bias, self.bias)

    def gradient(self, output: Tensor, shape: torch.Size) -> Tensor:
        """The gradient of a layer's levels, float32 of its input's shape, from that of its output."""
        geometry, output = self.integer.op.geometry, output.to(self.weight.dtype)
        if geometry is None:
            return (output @ self.weight).float()
        if output.dim() == 3:
            return self.gradient(output.unsqueeze(0), torch.Size((1, *shape))).squeeze(0)
        if self.of_squares is not None and shape[2] % 2 == shape[3] % 2 == 0:
            return gradient_of_squares(output, self.of_squares, self.weight.shape, geometry).float()
        where = list(geometry.stride), list(geometry.padding), list(geometry.dilation)
        like = output.new_empty(1).expand(shape)
        return torch.ops.aten.convolution_backward(
            output, like, self.weight, None, *where, False, [0, 0], geometry.groups, [True, False, False]
        )[0].float()


_FEW_CHANNELS = 4


def filters_of_squares(weight: Tensor) -> Tensor:
    """Filters that map a gradient of a convolution's output to that of its input, for 2x2 pixels at once.

    They compute more channels than the image has, which fill a vector register of the processor: for images of three
    channels in float32 the gradient takes half the time.

    Args:
        weight: Of a convolution without stride, dilation and groups, ``(K, C, kh, kw)``.

    Returns:
        Filters ``(4 C, K, kh + 1, kw + 1)`` of a convolution of stride 2.
    """
    filters, channels, height, width = weight.shape
    back = weight.flip(2, 3).transpose(0, 1)
    squares = weight.new_zeros(channels, 2, 2, filters, height + 1, width + 1)
    for i in range(2):
        for j in range(2):
            squares[:, i, j, :, i : i + height, j : j + width] = back
    return squares.flatten(0, 2).contiguous(memory_format=torch.channels_last)


def gradient_of_squares(output: Tensor, filters: Tensor, weight: torch.Size, geometry: Geometry) -> Tensor:
    """The gradient of a convolution's input ``(N, C, H, W)``, H and W even, by :func:`filters_of_squares`.

    Args:
        output: The gradient of its output.
        filters: From its weights.
        weight: Shape of its weights.
        geometry: Its padding, smaller than the filters.
    """
    padding = weight[2] - 1 - geometry.padding[0], weight[3] - 1 - geometry.padding[1]
    return F.pixel_shuffle(F.conv2d(output, filters, None, 2, padding), 2)


def _has_squares(op: IntegerOp, weight: Tensor) -> bool:
    geometry = op.geometry
    if geometry is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    simple = (geometry.stride, geometry.dilation, geometry.groups) == ((1, 1), (1, 1), 1)
    narrower = all(padding < size for padding, size in zip(geometry.padding, weight.shape[2:], strict=True))
    return simple and narrower and weight.shape[1] <= _FEW_CHANNELS


def use_kernels_(layer: QuantizedLayer, integer: IntegerLayer, gradients: torch.dtype = torch.float32) -> None:
    """Run a layer's forward pass on an integer kernel from now on, with the same bits and a gradient.

    Args:
        layer: In evaluation mode, with baked weights that need no gradient.
        integer: Its integer form; its input has DoReFa's levels, or nothing is changed.
        gradients: The type of the operands in the backward pass: float32, or bfloat16, which rounds them to 8 bits.
    """
    integers = layer.integer_weights()
    if integers is None or not integer.grid.is_default:
        return
    scale, _ = layer.scale_and_bias(integers)
    by_filter = scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
    weight = integers.values.detach() * by_filter.detach() * layer.activation_quantizer.steps
    weight = weight.to(gradients)
    bias = None if layer.bias is None else layer.bias.detach().clone()
    squares = filters_of_squares(weight) if _has_squares(integer.op, weight) else None
    layer.on_integers = WithGradient(integer, weight, integers.values, bias, squares)


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
    if layer.inexact_reason:
        raise StaysFloat(layer.inexact_reason)
    if layer.weight.dtype != torch.float32:
        raise StaysFloat(f"its weights are {layer.weight.dtype}, and the kernels give float32")
    geometry, grid = _geometry(layer), input_grid(layer)
    integers = layer.integer_weights()
    if integers is None:
        raise StaysFloat(f"its {layer.precision.weight_bits}-bit weights are no integers times one number per filter")
    if layer.weight_quantizer.steps > _LARGEST_INT8:
        bits, steps = layer.precision.weight_bits, layer.weight_quantizer.steps
        raise StaysFloat(f"{bits}-bit weights are the integers -{steps} to {steps}, more than int8 holds")
    scale, bias = layer.scale_and_bias(integers)
    op = IntegerOp(
        integers.values.detach().to(torch.int8),
        grid.zero,
        scale.detach().flatten().expand(len(layer.weight)).contiguous(),
        None if bias is None else bias.detach().flatten().clone(),  # not the memory of a parameter
        geometry,
    )
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
