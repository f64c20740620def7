"""Modules and functions of PyTorch as ONNX operators; what is not in the tables here is refused, never approximated."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.export.graph import Graph
from empir_plugin.export.quantized import convolution_attributes, refuse


@dataclass(frozen=True)
class Call:
    """One operation of a network's graph.

    Args:
        graph: The ONNX graph it is added to.
        inputs: Names of its tensor inputs; numbers stand for themselves.
        before: Shape of the first input, for the batch that was traced.
        after: Shape of the output.
        named: Arguments by keyword.
    """

    graph: Graph
    inputs: Sequence[Any]
    before: tuple[int, ...]
    after: tuple[int, ...]
    named: Mapping[str, Any]

    def value(self, position: int, name: str, default: Any = None) -> Any:
        """An argument that is no tensor, by position or by keyword."""
        return self.inputs[position] if len(self.inputs) > position else self.named.get(name, default)

    def operand(self, position: int) -> str:
        """An input's name; a number becomes a constant."""
        value = self.inputs[position]
        return value if isinstance(value, str) else self.graph.constant(value)


def _unary(op: str, **attributes: Any) -> Callable[[Call], str]:
    return lambda call: call.graph.add(op, call.inputs[0], **attributes)


def _binary(op: str) -> Callable[[Call], str]:
    def write(call: Call) -> str:
        if call.named.get("alpha", 1) != 1 or call.named.get("rounding_mode") is not None:
            raise refuse(call.graph, f"{op} with alpha or rounding_mode is not supported")
        return call.graph.add(op, call.operand(0), call.operand(1))

    return write


def _same(call: Call) -> str:
    return call.inputs[0]


def _clip(call: Call, low: float | None, high: float | None) -> str:
    bounds = ["" if bound is None else call.graph.constant(bound) for bound in (low, high)]
    return call.graph.add("Clip", call.inputs[0], *bounds)


def _silu(call: Call) -> str:
    return call.graph.add("Mul", call.inputs[0], call.graph.add("Sigmoid", call.inputs[0]))


def _reshape(call: Call) -> str:
    if not call.before or not call.after or call.before[0] != call.after[0]:
        raise refuse(call.graph, f"a reshape from {call.before} to {call.after} mixes the images of a batch")
    shape = call.graph.constant([0, *call.after[1:]], np.int64)
    return call.graph.add("Reshape", call.inputs[0], shape)


def _pair(value: Any) -> list[int]:
    return [value, value] if isinstance(value, int) else [int(each) for each in value]


def _max_pool(call: Call, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> str:
    sides, (top, left) = _pair(kernel), _pair(padding)
    steps, spread = _pair(stride) if stride else sides, _pair(dilation)
    _require_floor(call, sides, steps, (top, left), spread, ceil)
    pads = [top, left, top, left]
    return call.graph.add("MaxPool", call.inputs[0], kernel_shape=sides, strides=steps, dilations=spread, pads=pads)


def _average_pool(call: Call, kernel: Any, stride: Any, padding: Any, ceil: bool, count: bool, divisor: Any) -> str:
    sides, (top, left) = _pair(kernel), _pair(padding)
    steps = _pair(stride) if stride else sides
    _require_floor(call, sides, steps, (top, left), [1, 1], ceil)
    if divisor is not None:
        raise refuse(call.graph, "an average pooling with a divisor of its own is not supported")
    pads = [top, left, top, left]
    return call.graph.add(
        "AveragePool", call.inputs[0], kernel_shape=sides, strides=steps, pads=pads, count_include_pad=int(count)
    )


def _require_floor(
    call: Call, kernel: list[int], stride: list[int], padding: tuple[int, int], dilation: list[int], ceil: bool
) -> None:
    """Refuse windows that end outside of the image, which libraries count differently."""
    sizes = zip(call.before[2:], kernel, stride, padding, dilation, strict=True)
    whole = all((size + 2 * pad - spread * (side - 1) - 1) % step == 0 for size, side, step, pad, spread in sizes)
    if ceil and not whole:
        raise refuse(call.graph, "a pooling with ceil_mode has windows that end outside of the image")


def _adaptive_average_pool(call: Call) -> str:
    before, after = call.before[-2:], call.after[-2:]
    if any(size % wanted for size, wanted in zip(before, after, strict=True)):
        raise refuse(call.graph, f"an adaptive pooling from {before} to {after} has windows of several sizes")
    kernel = [size // wanted for size, wanted in zip(before, after, strict=True)]
    return call.graph.add("AveragePool", call.inputs[0], kernel_shape=kernel, strides=kernel)


def _mean(call: Call) -> str:
    axes, keep = call.value(1, "dim"), call.value(2, "keepdim", False)
    if axes is None or call.named.get("dtype") is not None:
        raise refuse(call.graph, "a mean over all dimensions, or of another type, is not supported")
    axes = [axes] if isinstance(axes, int) else list(axes)
    return call.graph.add("ReduceMean", call.inputs[0], call.graph.constant(axes, np.int64), keepdims=int(keep))


def _concatenate(call: Call) -> str:
    return call.graph.add("Concat", *call.inputs[0], axis=call.value(1, "dim", 0))


def _pad(call: Call, padding: Sequence[int], mode: str, value: float | None) -> str:
    if mode != "constant":
        raise refuse(call.graph, f"padding of mode {mode!r} is not supported, only constants")
    pairs = [(0, 0)] * (len(call.before) - len(padding) // 2) + [
        (padding[i], padding[i + 1]) for i in range(len(padding) - 2, -1, -2)
    ]
    pads = [before for before, _ in pairs] + [after for _, after in pairs]
    graph = call.graph
    return graph.add("Pad", call.inputs[0], graph.constant(pads, np.int64), graph.constant(value or 0.0))


def _permute(call: Call) -> str:
    axes = call.value(1, "dims")
    axes = list(call.inputs[1:]) if isinstance(axes, int) else list(axes)
    return call.graph.add("Transpose", call.inputs[0], perm=[axis % len(axes) for axis in axes])


def _transpose(call: Call) -> str:
    axes = list(range(len(call.before)))
    first, second = call.value(1, "dim0"), call.value(2, "dim1")
    axes[first], axes[second] = axes[second], axes[first]
    return call.graph.add("Transpose", call.inputs[0], perm=axes)


def _batch_norm_function(call: Call) -> str:
    mean, variance, gain, shift = (call.value(1 + i, n) for i, n in enumerate(_NORM_ARGUMENTS))
    if call.value(5, "training", False) or not all(isinstance(each, str) for each in (mean, variance, gain, shift)):
        raise refuse(call.graph, "a batch normalization by the batch, or without weights, is not supported")
    constants = gain, shift, mean, variance
    return call.graph.add("BatchNormalization", call.inputs[0], *constants, epsilon=call.value(7, "eps", 1e-5))


_NORM_ARGUMENTS = ("running_mean", "running_var", "weight", "bias")


def _write_layer_norm(call: Call, norm: nn.LayerNorm) -> str:
    parameters = [call.graph.constant(_numpy(each)) for each in (norm.weight, norm.bias) if each is not None]
    if not parameters:
        raise refuse(call.graph, "a layer normalization without weights is not supported")
    axis = -len(norm.normalized_shape)
    return call.graph.add("LayerNormalization", call.inputs[0], *parameters, axis=axis, epsilon=norm.eps)


def _linear(call: Call, weight: str, bias: str | None) -> str:
    product = call.graph.add("MatMul", call.inputs[0], call.graph.add("Transpose", weight, perm=[1, 0]))
    return product if bias is None else call.graph.add("Add", product, bias)


def _write_convolution(call: Call, layer: nn.Conv2d) -> str:
    graph = call.graph
    parameters = [graph.constant(_numpy(each)) for each in (layer.weight, layer.bias) if each is not None]
    return graph.add("Conv", call.inputs[0], *parameters, **convolution_attributes(graph, layer))


def _write_linear(call: Call, layer: nn.Linear) -> str:
    graph = call.graph
    product = graph.add("MatMul", call.inputs[0], graph.constant(_numpy(layer.weight).T))
    return product if layer.bias is None else graph.add("Add", product, graph.constant(_numpy(layer.bias)))


def _write_norm(call: Call, norm: nn.modules.batchnorm._BatchNorm) -> str:
    mean, variance = norm.running_mean, norm.running_var
    if mean is None or variance is None:
        raise refuse(call.graph, "its statistics are those of the batch")
    gain = torch.ones_like(mean) if norm.weight is None else norm.weight
    shift = torch.zeros_like(mean) if norm.bias is None else norm.bias
    constants = [call.graph.constant(_numpy(each)) for each in (gain, shift, mean, variance)]
    return call.graph.add("BatchNormalization", call.inputs[0], *constants, epsilon=norm.eps)


def _write_gelu(call: Call, approximate: str) -> str:
    return call.graph.add("Gelu", call.inputs[0], approximate=approximate)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


MODULES: Mapping[type[nn.Module], Callable[[Call, Any], str]] = MappingProxyType(
    {
        nn.Identity: lambda call, _: _same(call),
        nn.Dropout: lambda call, _: _same(call),
        nn.Dropout2d: lambda call, _: _same(call),
        nn.Flatten: lambda call, _: _reshape(call),
        nn.Conv2d: _write_convolution,
        nn.Linear: _write_linear,
        nn.BatchNorm1d: _write_norm,
        nn.BatchNorm2d: _write_norm,
        nn.LayerNorm: _write_layer_norm,
        nn.Hardswish: lambda call, _: call.graph.add("HardSwish", call.inputs[0]),
        nn.Hardsigmoid: lambda call, _: call.graph.add("HardSigmoid", call.inputs[0], alpha=1 / 6, beta=0.5),
        nn.ReLU: lambda call, _: call.graph.add("Relu", call.inputs[0]),
        nn.ReLU6: lambda call, _: _clip(call, 0.0, 6.0),
        nn.Hardtanh: lambda call, m: _clip(call, m.min_val, m.max_val),
        nn.LeakyReLU: lambda call, m: call.graph.add("LeakyRelu", call.inputs[0], alpha=m.negative_slope),
        nn.Sigmoid: lambda call, _: call.graph.add("Sigmoid", call.inputs[0]),
        nn.Tanh: lambda call, _: call.graph.add("Tanh", call.inputs[0]),
        nn.SiLU: lambda call, _: _silu(call),
        nn.GELU: lambda call, m: _write_gelu(call, m.approximate),
        nn.MaxPool2d: lambda call, m: _max_pool(call, m.kernel_size, m.stride, m.padding, m.dilation, m.ceil_mode),
        nn.AvgPool2d: lambda call, m: _average_pool(
            call, m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, m.divisor_override
        ),
        nn.AdaptiveAvgPool2d: lambda call, _: _adaptive_average_pool(call),
        nn.ZeroPad2d: lambda call, m: _pad(call, m.padding, "constant", 0.0),
    }
)
"""How each class of modules is written; a subclass may compute something else and is not meant."""

_RELU, _ADD, _SUB, _MUL, _DIV = _unary("Relu"), _binary("Add"), _binary("Sub"), _binary("Mul"), _binary("Div")


def _max_pool_function(call: Call) -> str:
    kernel, stride = call.value(1, "kernel_size"), call.value(2, "stride")
    padding, dilation = call.value(3, "padding", 0), call.value(4, "dilation", 1)
    return _max_pool(call, kernel, stride, padding, dilation, call.value(5, "ceil_mode", False))


def _average_pool_function(call: Call) -> str:
    kernel, stride, padding = call.value(1, "kernel_size"), call.value(2, "stride"), call.value(3, "padding", 0)
    ceil, count = call.value(4, "ceil_mode", False), call.value(5, "count_include_pad", True)
    return _average_pool(call, kernel, stride, padding, ceil, count, call.value(6, "divisor_override"))


def _clamp_function(call: Call) -> str:
    low, high = call.value(1, "min"), call.value(2, "max")
    if isinstance(low, str) or isinstance(high, str):
        raise refuse(call.graph, "a clamp whose bounds are tensors is not supported")
    return _clip(call, low, high)


def _dropout_function(call: Call) -> str:
    if call.value(2, "training", True):
        raise refuse(call.graph, "it applies dropout in evaluation mode")
    return _same(call)


FUNCTIONS: Mapping[Any, Callable[[Call], str]] = MappingProxyType(
    {
        **dict.fromkeys((torch.relu, F.relu, "relu", "relu_"), _RELU),
        **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _ADD),
        **dict.fromkeys((operator.sub, torch.sub, "sub"), _SUB),
        **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul"), _MUL),
        **dict.fromkeys((operator.truediv, torch.div, "div"), _DIV),
        **dict.fromkeys((operator.neg, torch.neg, "neg"), _unary("Neg")),
        **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), _unary("Sigmoid")),
        **dict.fromkeys((torch.tanh, "tanh"), _unary("Tanh")),
        **dict.fromkeys((torch.flatten, torch.reshape, "flatten", "view", "reshape", "squeeze"), _reshape),
        **dict.fromkeys((torch.mean, "mean"), _mean),
        **dict.fromkeys(("contiguous", "float", "detach"), _same),
        **dict.fromkeys((torch.permute, "permute"), _permute),
        **dict.fromkeys((torch.transpose, "transpose"), _transpose),
        F.batch_norm: _batch_norm_function,
        F.hardswish: _unary("HardSwish"),
        F.hardsigmoid: _unary("HardSigmoid", alpha=1 / 6, beta=0.5),
        F.silu: _silu,
        F.gelu: lambda call: _write_gelu(call, call.named.get("approximate", "none")),
        F.hardtanh: lambda call: _clip(call, call.value(1, "min_val", -1.0), call.value(2, "max_val", 1.0)),
        F.relu6: lambda call: _clip(call, 0.0, 6.0),
        F.leaky_relu: lambda call: call.graph.add(
            "LeakyRelu", call.inputs[0], alpha=call.value(1, "negative_slope", 0.01)
        ),
        F.max_pool2d: _max_pool_function,
        F.avg_pool2d: _average_pool_function,
        F.adaptive_avg_pool2d: _adaptive_average_pool,
        F.dropout: _dropout_function,
        F.pad: lambda call: _pad(call, call.value(1, "pad"), call.value(2, "mode", "constant"), call.value(3, "value")),
        F.linear: lambda call: _linear(call, call.value(1, "weight"), call.value(2, "bias")),
        torch.cat: _concatenate,
        **dict.fromkeys((torch.clamp, torch.clip, "clamp", "clip"), _clamp_function),
    }
)
"""How each function, and each method by its name, is written."""
