"""Run a quantized network on the integers it consists of.

A DoReFa network (https://arxiv.org/abs/1606.06160) is integer arithmetic, usually simulated in float32. Here its
convolutions and linear layers run on int8 kernels, with the same logits up to the rounding of float32 and the same
decisions. What has no exact integer kernel stays in float, and the report says why.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.integer.fuse import fuse
from empir_plugin.models.integer.grid import NO_GRADIENT, StaysFloat
from empir_plugin.models.integer.kernels import Kernel, kernel_for
from empir_plugin.models.integer.layers import IntegerLayer, integer_layer
from empir_plugin.models.integer.report import Agreement as Agreement
from empir_plugin.models.integer.report import IntegerReport, LayerOutcome, outcomes
from empir_plugin.models.integer.report import agree as agree
from empir_plugin.models.integer.selftest import check_layer
from empir_plugin.models.layers import QuantizedLayer, quantized_layers

_TOLERATED = 0.01
"""Median difference of logits, relative to their range, that a few activations on another level may cause."""


class IntegerModel(nn.Module):
    """A network that runs on integers where it can: for inference, without gradients, on one device.

    Args:
        network: What computes.
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
            InputError: If a gradient is wanted.
        """
        if x.requires_grad and torch.is_grad_enabled():
            raise InputError(NO_GRADIENT)
        with torch.no_grad():
            return self.network(x)


def to_integer(model: nn.Module, *, like: Tensor | None = None, kernel: Kernel | None = None) -> IntegerModel:
    """The integer form of a model; the model is left as it is.

    Every layer is checked against exact sums and against the fake-quantized layer before it is used; one that fails
    stays in float. Layers hand each other codes of one byte where the network's graph can be traced.

    Args:
        model: A network of quantized layers, or an ensemble of such networks. It is taken in evaluation mode.
        like: Images ``(N, C, H, W)`` on which to compare the whole network as well; one that fails stays in float.
        kernel: What computes the layers; by default what the device has.

    Raises:
        InputError: If it runs on integers already.
        EvaluationError: If it cannot be copied.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.precision import Precision
        >>> model = nn.Sequential(nn.Flatten(), QuantLinear(4, 2, precision=Precision.parse("w2a4"))).eval()
        >>> integer = to_integer(model)
        >>> integer.report.on_integers
        ('1',)
        >>> agree(model, integer, torch.rand(8, 1, 2, 2)).differing_decisions
        0
    """
    if any(isinstance(module, (IntegerModel, IntegerLayer)) for module in model.modules()):
        raise InputError("the model runs on integers already: convert the one it was made from")
    base = _ready_copy(model)
    swapped, decided = _swapped(base, kernel)
    linked, notes = fuse(copy.deepcopy(swapped))
    layers = tuple(outcomes(base, decided))
    if like is None:
        return IntegerModel(linked, IntegerReport(layers, tuple(notes)))
    return _checked(base, [linked, swapped], IntegerReport(layers, tuple(notes)), like)


def _ready_copy(model: nn.Module) -> nn.Module:
    try:
        base = copy.deepcopy(model).eval().requires_grad_(False)
    except (RuntimeError, TypeError) as error:
        raise EvaluationError(
            f"the model cannot be copied ({error}): keep no results of a forward pass in it"
        ) from error
    for _, layer in quantized_layers(base):
        if layer.baked_weight is None:
            layer.bake_()
    return base.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _swapped(base: nn.Module, kernel: Kernel | None) -> tuple[nn.Module, dict[str, LayerOutcome]]:
    """A copy in which quantized layers are integer ones where they can be, and what became of each layer by name."""
    root = nn.Sequential(copy.deepcopy(base))  # a parent for a model that is itself one layer
    made: dict[QuantizedLayer, IntegerLayer | StaysFloat] = {}
    decided: dict[str, LayerOutcome] = {}
    for name, layer in list(root.named_modules(remove_duplicate=False)):
        if not isinstance(layer, QuantizedLayer):
            continue
        if layer not in made:
            made[layer] = _converted(layer, kernel or kernel_for(layer.weight.device))
        decided[name.partition(".")[2]] = _outcome(name.partition(".")[2], layer, made[layer])
        if isinstance(integer := made[layer], IntegerLayer):
            root.set_submodule(name, integer)
    return root[0], decided


def _converted(layer: QuantizedLayer, kernel: Kernel) -> IntegerLayer | StaysFloat:
    try:
        integer = integer_layer(layer, kernel)
        check_layer(layer, integer)
    except StaysFloat as reason:
        return reason
    return integer


def _outcome(name: str, layer: QuantizedLayer, result: IntegerLayer | StaysFloat) -> LayerOutcome:
    on_integers = isinstance(result, IntegerLayer)
    return LayerOutcome(name, str(layer.precision), on_integers, result.kernel.name if on_integers else str(result))


def _checked(base: nn.Module, attempts: list[nn.Module], report: IntegerReport, images: Tensor) -> IntegerModel:
    """The first attempt that computes the model's function on some images, else the model itself."""
    notes = report.notes
    for network in attempts:
        found = agree(base, network, images)
        if found.median_logit_difference <= _TOLERATED * _range(base, images):
            return IntegerModel(network, IntegerReport(report.layers, notes, found))
        notes += (f"the whole network's logits differ by {found.median_logit_difference:.3g} in the median",)
    in_float = tuple(
        LayerOutcome(layer.name, layer.precision, False, "the whole network's logits are not the simulated ones")
        for layer in report.layers
    )
    return IntegerModel(base, IntegerReport(in_float, notes, agree(base, base, images)))


@torch.no_grad()
def _range(model: nn.Module, images: Tensor) -> float:
    logits = model(images[:64])
    return (logits.amax() - logits.amin()).item()
