"""Forms of a quantized network between which agreement is measured: simulated or on integers, float32 or float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor, nn

from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.grid import weight_integers
from empir_plugin.models.integer.kernels import IntegerOp, OneDNN, Program
from empir_plugin.models.integer.layers import integer_layer
from empir_plugin.models.layers import quantized_layers

CPU = torch.device("cpu")


class InFloat64(nn.Module):
    """A network in float64, for images in float32, with its own weights.

    Args:
        network: In float32, on the CPU; it is not changed.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = prepare(network, CPU).double()
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float64 ``(N, K)``."""
        return self.network(x.double())


@dataclass(frozen=True)
class Float64After:
    """The CPU's integer kernel for the sums, then scale and bias in float64; for a network without folding."""

    name: str = "onednn, then float64"

    def unusable(self, device: torch.device) -> str | None:
        """Why oneDNN's kernel cannot be used; None if it can."""
        return OneDNN().unusable(device)

    def compile(self, op: IntegerOp) -> Program:
        """Prepare the weights."""
        sums = OneDNN().compile(replace(op, scale=torch.ones_like(op.scale), bias=None))
        shape = (-1,) if op.geometry is None else (-1, 1, 1)
        scale, bias = op.scale.view(shape), None if op.bias is None else op.bias.view(shape)

        def program(codes: Tensor) -> Tensor:
            scaled = sums(codes).double() * scale
            return scaled if bias is None else scaled + bias

        return program


def to_exact_levels(model: nn.Module) -> nn.Module:
    """A network in float64 whose quantized weights are integers times one step, not rounded to float32.

    Raises:
        StaysFloat: If the weights of a layer are on no grid of integers.
    """
    doubled = InFloat64(model)
    for (_, ready), (_, layer) in zip(
        quantized_layers(prepare(model, CPU)), quantized_layers(doubled.network), strict=True
    ):
        integers = weight_integers(ready)
        step = integers.scale.view(-1, *[1] * (integers.values.dim() - 1))
        layer.baked_weight = integers.values.double() * step
    return doubled


def to_integers_in_float64(model: nn.Module) -> nn.Module:
    """A network whose quantized layers sum integers, with float64 wherever the shipped form has float32.

    Raises:
        StaysFloat: If a layer cannot run on integers.
    """
    network = prepare(model, CPU)
    for name, layer in list(quantized_layers(network)):
        network.set_submodule(name, integer_layer(layer, Float64After()))
    return InFloat64(network)


def simulate(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """The network as it is evaluated, in a memory layout."""
    return prepare(model, CPU).to(memory_format=layout)  # type: ignore[call-overload]


EXACT = "simulated in float64, exact levels"
INTEGER = "on integers"
SIMULATED = "simulated in float32"
FORMS: Mapping[str, Callable[[nn.Module], nn.Module]] = MappingProxyType(
    {
        EXACT: to_exact_levels,
        "on integers, float64 between": to_integers_in_float64,
        INTEGER: lambda model: to_integer(copy.deepcopy(model)),
        SIMULATED: lambda model: simulate(model, torch.channels_last),
        "simulated in float32, NCHW": lambda model: simulate(model, torch.contiguous_format),
        "simulated in float64, levels of float32": InFloat64,
    }
)
"""Each form as a function of the model."""
