"""Run a quantized network on the integers it consists of.

A DoReFa network (https://arxiv.org/abs/1606.06160) is integer arithmetic, usually simulated in float32. Here its
convolutions and linear layers run on int8 kernels, with the same logits up to the rounding of float32 and the same
decisions. Layers without an exact integer kernel stay in float, and the report says why.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.integer.fuse import fuse
from empir_plugin.models.integer.grid import NO_GRADIENT, StaysFloat
from empir_plugin.models.integer.kernels import Kernel, kernel_for
from empir_plugin.models.integer.layers import IntegerLayer, integer_layer
from empir_plugin.models.integer.selftest import Agreement, agree, check_layer
from empir_plugin.models.layers import QuantizedLayer, frozen_copy, quantized_layers

_TOLERANCE = 0.01
"""Largest accepted median difference of logits, relative to their range: a few activations may change their level."""


@dataclass(frozen=True)
class LayerOutcome:
    """Report on one convolution or linear layer.

    Args:
        name: As in ``named_modules``.
        precision: ``"w2a4"``, or ``"fp"``.
        on_integers: Whether it runs on integers.
        reason: The kernel's name, or why the layer stays in float.
    """

    name: str
    precision: str
    on_integers: bool
    reason: str

    def __str__(self) -> str:
        where = "integers" if self.on_integers else "float"
        return f"{self.name} ({self.precision}): {where}, {self.reason}"


@dataclass(frozen=True)
class IntegerReport:
    """Report on the conversion of a network.

    Args:
        layers: In order of registration.
        notes: Optimizations that could not be applied, such as passing codes from layer to layer.
        agreement: With the fake-quantized model on the images given for a check, if any were.
    """

    layers: tuple[LayerOutcome, ...]
    notes: tuple[str, ...] = ()
    agreement: Agreement | None = None

    @property
    def on_integers(self) -> tuple[str, ...]:
        """Names of the layers that run on integers."""
        return tuple(layer.name for layer in self.layers if layer.on_integers)

    @property
    def in_float(self) -> tuple[str, ...]:
        """Names of the layers that stay in floating point."""
        return tuple(layer.name for layer in self.layers if not layer.on_integers)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.layers), *self.notes])


class IntegerModel(nn.Module):
    """A network that runs on integers where it can: for inference, without gradients, on one device.

    Args:
        network: The converted network.
        report: Which layers run on integers and which do not, and why.
    """

    def __init__(self, network: nn.Module, report: IntegerReport) -> None:
        super().__init__()
        self.network = network
        self.report = report
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)`` in [0, 1].

        Raises:
            InputError: If a gradient is required.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(NO_GRADIENT)
        with torch.no_grad():
            return self.network(x)


def to_integer(model: nn.Module, *, like: Tensor | None = None, kernel: Kernel | None = None) -> IntegerModel:
    """Return the integer form of a model; the model itself is not changed.

    Every layer is checked against exact sums and against the fake-quantized layer before it is used; a layer that fails
    stays in float. Layers pass each other codes of one byte where the network's graph can be traced.

    Args:
        model: A network of quantized layers, or an ensemble of such networks. It is converted in evaluation mode.
        like: Images ``(N, C, H, W)`` on which to compare the whole network as well; if it fails, it stays in float.
        kernel: The kernel that computes the layers; the device's own by default.

    Raises:
        InputError: If it runs on integers already.
        EvaluationError: If it cannot be copied.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.quantize import Precision
        >>> model = nn.Sequential(nn.Flatten(), QuantLinear(4, 2, precision=Precision.parse("w2a4"))).eval()
        >>> integer = to_integer(model)
        >>> integer.report.on_integers
        ('1',)
        >>> agree(model, integer, torch.rand(8, 1, 2, 2)).differing_decisions
        0
    """
    if any(isinstance(module, (IntegerModel, IntegerLayer)) for module in model.modules()):
        raise InputError("the model runs on integers already: convert the one it was made from")
    base = _copy_baked(model)
    swapped, outcomes = _swap_layers(base, kernel)
    linked, notes = fuse(copy.deepcopy(swapped))
    report = IntegerReport(tuple(_all_outcomes(base, outcomes)), tuple(notes))
    return IntegerModel(linked, report) if like is None else _first_in_agreement(base, [linked, swapped], report, like)


def _copy_baked(model: nn.Module) -> nn.Module:
    base = frozen_copy(model)
    for _, layer in quantized_layers(base):
        if layer.baked_weight is None:
            layer.bake_()
    return base.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _swap_layers(base: nn.Module, kernel: Kernel | None) -> tuple[nn.Module, dict[str, LayerOutcome]]:
    """A copy with integer layers in place of quantized ones where possible, and the outcome of each layer by name."""
    root = nn.Sequential(copy.deepcopy(base))  # a parent for a model that is itself one layer
    converted: dict[QuantizedLayer, IntegerLayer | StaysFloat] = {}
    outcomes: dict[str, LayerOutcome] = {}
    for path, layer in list(root.named_modules(remove_duplicate=False)):
        if not isinstance(layer, QuantizedLayer):
            continue
        if layer not in converted:
            converted[layer] = _convert_layer(layer, kernel or kernel_for(layer.weight.device))
        name = path.partition(".")[2]
        outcomes[name] = _outcome(name, layer, converted[layer])
        if isinstance(integer := converted[layer], IntegerLayer):
            root.set_submodule(path, integer)
    return root[0], outcomes


def _convert_layer(layer: QuantizedLayer, kernel: Kernel) -> IntegerLayer | StaysFloat:
    try:
        integer = integer_layer(layer, kernel)
        check_layer(layer, integer)
    except StaysFloat as reason:
        return reason
    return integer


def _outcome(name: str, layer: QuantizedLayer, result: IntegerLayer | StaysFloat) -> LayerOutcome:
    on_integers = isinstance(result, IntegerLayer)
    return LayerOutcome(name, str(layer.precision), on_integers, result.kernel.name if on_integers else str(result))


def _all_outcomes(network: nn.Module, outcomes: dict[str, LayerOutcome]) -> Iterator[LayerOutcome]:
    """The outcomes of the quantized layers and of the other layers with weights, in order of registration."""
    for name, module in network.named_modules():
        if name in outcomes:
            yield outcomes[name]
        elif isinstance(module, (nn.modules.conv._ConvNd, nn.Linear, nn.MultiheadAttention)):
            yield LayerOutcome(name, "fp", False, "its weights and its input have full precision")


def _first_in_agreement(
    base: nn.Module, attempts: list[nn.Module], report: IntegerReport, images: Tensor
) -> IntegerModel:
    """The first attempt whose logits on some images are the model's; the model itself if there is none."""
    notes = report.notes
    for network in attempts:
        agreement = agree(base, network, images)
        if agreement.median_logit_difference <= _TOLERANCE * _logit_range(base, images):
            return IntegerModel(network, IntegerReport(report.layers, notes, agreement))
        notes += (f"the whole network's logits differ by {agreement.median_logit_difference:.3g} in the median",)
    in_float = tuple(
        LayerOutcome(layer.name, layer.precision, False, "the whole network's logits are not the simulated ones")
        for layer in report.layers
    )
    return IntegerModel(base, IntegerReport(in_float, notes, agree(base, base, images)))


@torch.no_grad()
def _logit_range(model: nn.Module, images: Tensor) -> float:
    logits = model(images[:64])
    return (logits.amax() - logits.amin()).item()
