"""What a model costs, counted: operations and weights of every layer, the baseline, and the size of the weight file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from empir_plugin._files.tables import build, check_keys, read_with, table_of
from empir_plugin.errors import EmpirError, EvaluationError, InputError, cause
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantizedLayer, frozen_copy, input_of_call, is_full_precision, quantized_layers
from empir_plugin.models.packing import save_packed
from empir_plugin.models.quantize import FULL_BITS, ActivationQuantizer, Precision, WeightQuantizer

OUTSIDE = "(outside of layers)"
"""Name of the row for matrix products outside of layers, such as those of attention."""

_PLAIN = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)


def _read_precision(value: Any, where: str) -> Precision:
    bits = "weight_bits", "activation_bits"
    check_keys(table := table_of(value, where), required=bits, known=bits, where=where)  # Both are always written.
    return build(Precision, table, where)


@dataclass(frozen=True)
class LayerCost:
    """The cost of a convolution or linear layer.

    Args:
        name: Its name in the network.
        kind: The name of its class.
        weights: Number of elements of its weight tensor, without the bias.
        macs: Multiply-accumulate operations for one image, over all calls; 0 if it is never called.
        fan_in: Products summed for one output.
        precision: Bits of its weights and of its input.

    Example:
        >>> LayerCost("conv1", "QuantConv2d", 27, 900, 27, Precision.parse("w2a4")).bit_operations
        7200
    """

    name: str
    kind: str
    weights: int
    macs: int
    fan_in: int
    precision: Precision = field(metadata=read_with(_read_precision))

    @property
    def bit_operations(self) -> int:
        """Bit operations for one image: MACs times bits of the weights times bits of the input.

        As in van Baalen et al., "Bayesian Bits", https://arxiv.org/abs/2005.07093; floating point counts as 32 bits.
        """
        return self.macs * self.precision.weight_bits * self.precision.activation_bits

    @property
    def bit_operations_with_sums(self) -> float:
        """Bit operations for one image, including those of the accumulator.

        As in Baskin et al., "UNIQ", https://arxiv.org/abs/1804.10969: ``b_w b_a + b_w + b_a + log2(fan_in)`` for
        each MAC.
        """
        bits = self.precision.weight_bits + self.precision.activation_bits
        return self.bit_operations + self.macs * (bits + math.log2(self.fan_in))


@dataclass(frozen=True)
class NetworkCost:
    """The cost of a network.

    Args:
        layers: Its layers in order of registration; last, if there are any, the products outside of layers.
        parameters: Number of all its parameters: weights, biases and those of normalisations.
    """

    layers: tuple[LayerCost, ...]
    parameters: int

    @property
    def macs(self) -> int:
        """Multiply-accumulate operations for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def weights(self) -> int:
        """Number of elements of the weight tensors of all layers."""
        return sum(layer.weights for layer in self.layers)

    @property
    def quantized_macs(self) -> int:
        """MACs with both operands quantized."""
        widest = ((max(layer.precision.weight_bits, layer.precision.activation_bits), layer) for layer in self.layers)
        return sum(layer.macs for bits, layer in widest if bits < FULL_BITS)

    @property
    def quantized_weights(self) -> int:
        """Number of quantized weights, whether or not the input is quantized too."""
        return sum(layer.weights for layer in self.layers if layer.precision.weight_bits < FULL_BITS)


def count(network: nn.Module, image: Tensor) -> NetworkCost:
    """Run a network on one image and count its operations and weights.

    Convolutions (including grouped, depthwise and transposed ones) and linear layers are counted from the shapes of
    their weights, inputs and outputs. Matrix products elsewhere, as in attention, are counted by
    :class:`torch.utils.flop_counter.FlopCounterMode`, as full precision. Normalisation, activation functions and
    pooling have no matrix products and are not counted.

    Args:
        network: In evaluation mode; layers that are not :class:`~empir_plugin.models.layers.QuantizedLayer` count as
            full precision.
        image: ``(1, C, H, W)``, on the network's device. On the ``meta`` device nothing is computed.

    Raises:
        InputError: If the network is in training mode, there is not exactly one image, the network cannot take it, or
            a quantized layer has no weights, as after a conversion to integers.

    Example:
        >>> cost = count(nn.Conv2d(3, 8, 5).eval(), torch.zeros(1, 3, 32, 32))
        >>> cost.macs == 28 * 28 * 8 * 5 * 5 * 3, cost.parameters
        (True, 608)
    """
    if network.training:
        raise InputError("the network must be in evaluation mode, got training mode: call .eval() first")
    if image.ndim != 4 or len(image) != 1:
        raise InputError(f"image must be one image (1, C, H, W), got the shape {tuple(image.shape)}: pass x[:1]")
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (*_PLAIN, QuantizedLayer))}
    without_weights = [name for name, layer in layers.items() if not isinstance(getattr(layer, "weight", None), Tensor)]
    if without_weights:
        raise InputError(
            f"layer {without_weights[0]!r} has no weights to count: pass the network it was converted from"
        )
    with torch.no_grad(), _unfused_attention(), FlopCounterMode(display=False) as flops:
        with _count_calls(layers, flops) as tally:
            _run(network, image)
        outside = flops.get_total_flops() // 2 - tally.inside
    rows = [_layer_cost(name, layer, tally) for name, layer in layers.items()]
    if outside > 0:
        rows.append(LayerCost(OUTSIDE, "matmul", 0, outside, 1, Precision()))
    return NetworkCost(tuple(rows), sum(math.prod(parameter.shape) for parameter in network.parameters()))


def _run(network: nn.Module, image: Tensor) -> None:
    try:
        network(image)
    except EmpirError:
        raise
    except Exception as error:
        shape = "x".join(map(str, image.shape[1:]))
        cure = "pass its own shape, CxHxW, if that is another one"
        raise InputError(f"the model fails on an image of {shape} with {cause(error)}: {cure}") from error


@dataclass
class _Tally:
    """MACs and outputs of every layer during a run of the network, and the MACs inside all layers."""

    macs: dict[str, int] = field(default_factory=dict)
    outputs: dict[str, int] = field(default_factory=dict)
    inside: int = 0


@contextmanager
def _unfused_attention() -> Iterator[None]:
    """Compute attention by plain matrix products, which the counter sees on every device and release."""
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _count_calls(layers: Mapping[str, nn.Module], flops: FlopCounterMode) -> Iterator[_Tally]:
    """Count every call of the layers inside."""
    tally, flops_before = _Tally(), dict.fromkeys(layers, 0)

    def register_hooks(name: str, layer: Any) -> Iterator[Any]:
        def before_forward(module: nn.Module, args: Any) -> None:
            flops_before[name] = flops.get_total_flops()

        def after_forward(module: nn.Module, args: Any, kwargs: Any, output: Tensor) -> None:
            # Each element of the output, or of a transposed convolution's input, takes one slice of the weights.
            elements = input_of_call(args, kwargs) if getattr(layer, "transposed", False) else output
            tally.macs[name] = tally.macs.get(name, 0) + elements.numel() * layer.weight[0].numel()
            tally.outputs[name] = tally.outputs.get(name, 0) + output.numel()
            tally.inside += (flops.get_total_flops() - flops_before[name]) // 2

        yield layer.register_forward_pre_hook(before_forward)
        yield layer.register_forward_hook(after_forward, with_kwargs=True)

    handles = [handle for name, layer in layers.items() for handle in register_hooks(name, layer)]
    try:
        yield tally
    finally:
        for handle in handles:
            handle.remove()


def _layer_cost(name: str, layer: Any, tally: _Tally) -> LayerCost:
    macs, outputs = tally.macs.get(name, 0), tally.outputs.get(name, 1)
    precision = layer.precision if isinstance(layer, QuantizedLayer) else Precision()
    return LayerCost(name, type(layer).__name__, layer.weight.numel(), macs, max(1, macs // outputs), precision)


@dataclass(frozen=True)
class Baseline:
    """The full-precision network that a model's costs are relative to.

    Args:
        network: A network without quantized layers.
        description: Which network it is, for people to read.
    """

    network: nn.Module
    description: str


def members_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The members of an ensemble; for any other model, the model itself.

    Raises:
        InputError: If an ensemble is nested inside the model.

    Example:
        >>> len(members_of(Ensemble([nn.Flatten(), nn.Flatten()])))
        2
    """
    if isinstance(model, Ensemble):
        return tuple(model.members)
    if any(isinstance(module, Ensemble) for module in model.modules()):
        raise InputError(
            f"an ensemble must not be inside another module, got one inside {type(model).__name__}: "
            "pass the ensemble itself"
        )
    return (model,)


def baseline_of(model: nn.Module) -> Baseline:
    """The baseline of a model.

    For an ensemble, its first full-precision member or, if it has none, the float twin of its member with the most
    parameters. For any other model, its float twin.

    Raises:
        InputError: If an ensemble is nested inside the model.

    Example:
        >>> baseline_of(nn.Linear(2, 2)).description
        'the model itself, which is in full precision'
    """
    members = members_of(model)
    full = [index for index, member in enumerate(members) if is_full_precision(member)]
    if not isinstance(model, Ensemble):
        known = "the model itself, which is in full precision" if full else "the same network in full precision"
        return Baseline(float_twin(model), known)
    if full:
        return Baseline(float_twin(members[full[0]]), f"member {full[0]} of the ensemble, its full-precision one")
    sizes = [sum(parameter.numel() for parameter in member.parameters()) for member in members]
    largest = sizes.index(max(sizes))
    return Baseline(
        float_twin(members[largest]),
        f"member {largest} of the ensemble, its largest, in full precision (no member is)",
    )


def float_twin(network: nn.Module) -> nn.Module:
    """A copy of a network for evaluation, no layer of which quantizes its weights, or clips and quantizes its input.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.quantize import Precision
        >>> float_twin(QuantLinear(2, 2, precision=Precision.parse("w2a2"))).precision.is_full
        True
    """
    twin = frozen_copy(network)
    for _, layer in quantized_layers(twin):
        layer.use_quantizers_(WeightQuantizer(FULL_BITS), ActivationQuantizer(FULL_BITS))
    return twin


def packed_bytes(model: nn.Module) -> int:
    """Size of the file in which :func:`~empir_plugin.models.packing.save_packed` saves a model, including the header.

    Raises:
        EvaluationError: If the model cannot be packed.
        WeightsError: If the file cannot be written.

    Example:
        >>> packed_bytes(nn.Linear(100, 10, bias=False))
        4112
    """
    with TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        try:
            save_packed(model, path)
        except (RuntimeError, NotImplementedError) as error:
            raise EvaluationError(
                f"the model's weights cannot be packed ({cause(error)}): they need values, and to be dense tensors"
            ) from error
        return path.stat().st_size
