"""Quantized layers in ONNX: ``operation(A, W) * scale + bias`` on integers, as our own layers compute it.

The factor stays behind the sum, also in QONNX, whose quantizers have the scale 1: a scale of ``1 / n`` would divide
where the definition multiplies, and send some activations to the neighbouring level.
"""

from __future__ import annotations

from enum import Enum
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from empir_plugin._files.tables import choice
from empir_plugin.errors import InputError
from empir_plugin.export.graph import Graph
from empir_plugin.models.activations import SignActivationQuantizer, SignedActivationQuantizer, learned_width
from empir_plugin.models.layers import IntegerWeights, QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.quantize import FULL_BITS, ActivationQuantizer

FLOAT = 1
"""ONNX's number of the type float32."""
_OFF_GRID = 1e-4
"""Largest distance of a weight from its level, in units of the largest level, that rounding explains."""


class Format(Enum):
    """Kind of file: ``ONNX`` has only standard operators, ``QONNX`` has Quant and BipolarQuant nodes.

    Example:
        >>> Format.parse("qonnx")
        <Format.QONNX: 'qonnx'>
    """

    ONNX = "onnx"
    QONNX = "qonnx"

    @classmethod
    def parse(cls, value: Format | str) -> Format:
        """Parse the text form; a member of this class is returned as it is.

        Raises:
            InputError: If the text names no member.
        """
        return choice(cls, "format", value)


def refuse(graph: Graph, what: str) -> InputError:
    """The error about a part that cannot be exported; it names the layer."""
    return InputError(f"{graph.where or 'the model'} cannot be exported: {what}")


def convolution_attributes(graph: Graph, layer: nn.Conv2d) -> dict[str, Any]:
    """The geometry of a convolution as ONNX takes it."""
    if layer.padding_mode != "zeros":
        raise refuse(graph, f"its padding is {layer.padding_mode!r}, and only zeros are supported")
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return {
        "kernel_shape": list(layer.kernel_size),
        "strides": list(layer.stride),
        "dilations": list(layer.dilation),
        "group": layer.groups,
        "pads": [top, left, bottom, right],
    }


def write_quantized(graph: Graph, x: str, layer: QuantizedLayer, form: Format) -> str:
    """Add a quantized layer.

    Args:
        graph: It is changed.
        x: Name of the layer's input.
        layer: In evaluation mode, on the CPU.
        form: Of the file.

    Returns:
        The name of its output.

    Raises:
        InputError: If it cannot be exported.
    """
    forwards = {QuantConv2d: QuantConv2d.forward, QuantLinear: QuantLinear.forward}
    if type(layer).forward is not forwards.get(type(layer)):
        raise refuse(graph, f"a {type(layer).__name__} computes its weights or its padding in a way of its own")
    bits = layer.precision
    inputs = x if bits.activation_bits == FULL_BITS else _write_input(graph, x, layer, form)
    if bits.weight_bits == FULL_BITS:
        found, weight = None, graph.constant(_for_operation(layer, _numpy(layer.weight)))
    else:
        found = weight_integers(graph, layer)
        weight = _write_weight(graph, _for_operation(layer, _numpy(found.values)), layer, form)
    if isinstance(layer, nn.Conv2d):
        output = graph.add("Conv", inputs, weight, **convolution_attributes(graph, layer))
    else:
        output = graph.add("MatMul", inputs, weight)
    if form is Format.ONNX and not layer.inexact_reason:
        # The sums are integers. Rounding them changes none, and keeps optimizers from multiplying the scale into the
        # weights, after which sums depend on the order of adding; it also repairs kernels that round on the way.
        output = graph.add("Round", output)
    scale, bias = _scale_and_bias(layer, found)
    output = output if scale is None else graph.add("Mul", output, graph.constant(_numpy(scale)))
    return output if bias is None else graph.add("Add", output, graph.constant(_numpy(bias)))


def weight_integers(graph: Graph, layer: QuantizedLayer) -> IntegerWeights:
    """The integers of a layer's quantized weights and their unit, also where the layer itself multiplies levels."""
    exact = layer.integer_weights()
    if exact is not None:
        return exact
    quantized, steps = layer.quantized_weight().detach(), layer.weight_quantizer.steps
    unit = layer.weight_quantizer.unit(quantized)
    divisor = torch.where(unit == 0, torch.ones_like(unit), unit)
    values = (quantized.double() / divisor * steps).round().float()
    if (values / steps * divisor - quantized).abs().max() > _OFF_GRID * divisor.max() or values.abs().max() > steps:
        raise refuse(
            graph, f"its {layer.precision.weight_bits}-bit weights are no integers times one number per filter"
        )
    return IntegerWeights(values, unit)


def _scale_and_bias(layer: QuantizedLayer, found: IntegerWeights | None) -> tuple[Tensor | None, Tensor | None]:
    if found is not None and layer.precision.activation_bits != FULL_BITS:
        return layer.scale_and_bias(found)
    bias = None if layer.bias is None else layer._for_channels(layer.bias)
    if found is not None:
        scale = found.unit / layer.weight_quantizer.steps
        return layer._for_channels(scale) if scale.dim() else scale, bias
    if layer.precision.activation_bits == FULL_BITS:
        return None, bias
    width = torch.ones(()) if layer.activation_bound is None else learned_width(layer.activation_bound)
    return width / layer.activation_quantizer.steps, bias


def _write_input(graph: Graph, x: str, layer: QuantizedLayer, form: Format) -> str:
    """Add the quantization of a layer's input to integers."""
    if layer.activation_bound is not None:
        x = graph.add("Div", x, graph.constant(_numpy(learned_width(layer.activation_bound))))
    quantizer = layer.activation_quantizer
    if isinstance(quantizer, SignActivationQuantizer):
        return _write_sign(graph, x, form)
    if isinstance(quantizer, SignedActivationQuantizer):
        x = graph.add("Div", graph.add("Add", x, graph.constant(1.0)), graph.constant(2.0))
        codes = _write_codes(graph, x, quantizer.bits, form)
        return graph.add("Sub", graph.add("Mul", codes, graph.constant(2.0)), graph.constant(quantizer.steps))
    if isinstance(quantizer, ActivationQuantizer):
        return _write_codes(graph, x, quantizer.bits, form)
    raise refuse(graph, f"no ONNX form of its {type(quantizer).__name__} is known")


def _write_codes(graph: Graph, x: str, bits: int, form: Format) -> str:
    """Add ``round(clip(x) * n)``, ties to even, for ``n = 2**bits - 1``."""
    n = graph.constant(2**bits - 1)
    if form is Format.QONNX:  # Quant rounds before it clips, which is the same for integer bounds.
        return _quant(graph, graph.add("Mul", x, n), bits, signed=0, narrow=0)
    clipped = graph.add("Clip", x, graph.constant(0.0), graph.constant(1.0))
    return graph.add("Round", graph.add("Mul", clipped, n))


def _write_sign(graph: Graph, x: str, form: Format) -> str:
    if form is Format.QONNX:
        return graph.quant("BipolarQuant", x, graph.constant(1.0))
    return graph.add("Where", graph.add("Less", x, graph.constant(0.0)), graph.constant(-1.0), graph.constant(1.0))


def _write_weight(graph: Graph, integers: np.ndarray, layer: QuantizedLayer, form: Format) -> str:
    steps = layer.weight_quantizer.steps
    if form is Format.QONNX:
        stored = graph.constant(integers, np.int8 if steps <= 127 else np.int16)
        values = graph.add("Cast", stored, to=FLOAT)
        if (np.abs(integers) == 1).all():
            return graph.quant("BipolarQuant", values, graph.constant(1.0))
        return _quant(graph, values, steps.bit_length() + 1, signed=1, narrow=1)
    # DoReFa's integers are odd; half of their distance to the lowest has as many bits as the weights.
    distance = integers.astype(np.int64) + steps
    spacing = 1 if (distance % 2).any() else 2
    values = graph.add("Cast", graph.codes(distance // spacing), to=FLOAT)
    values = values if spacing == 1 else graph.add("Mul", values, graph.constant(spacing))
    return graph.add("Sub", values, graph.constant(steps))


def _quant(graph: Graph, x: str, bits: int, *, signed: int, narrow: int) -> str:
    scale, zero = graph.constant(1.0), graph.constant(0.0)
    return graph.quant(
        "Quant", x, scale, zero, graph.constant(bits), signed=signed, narrow=narrow, rounding_mode="ROUND"
    )


def _for_operation(layer: nn.Module, weight: np.ndarray) -> np.ndarray:
    """The weight of a convolution as it is, that of a linear layer transposed for a matrix product."""
    return weight if isinstance(layer, nn.Conv2d) else weight.T


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()
