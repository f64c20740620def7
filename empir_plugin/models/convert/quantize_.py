"""Convert any network to low precision, in place.

Only the class of a layer changes: names, parameters, hooks and references stay, so a state dict of the full-precision
network loads strictly into the quantized one, and the other way round. The *input* of each layer is quantized, as in
EMPIR's release; see :mod:`empir_plugin.models.layers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import get_args

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError, cause
from empir_plugin.models.activations import (
    Activations,
    InputQuantizer,
    SignActivationQuantizer,
    SignedActivationQuantizer,
)
from empir_plugin.models.convert.layers import quantize_layer_class_, undo_on_error
from empir_plugin.models.convert.probe import (
    check_images,
    negative_shares,
    noise,
    preserve_modes,
    recalibrate_,
    start_ranges_,
    weights_outside_layers,
)
from empir_plugin.models.convert.report import ConversionReport, ConvertedLayer
from empir_plugin.models.convert.select import (
    INNER,
    Layers,
    Plan,
    parameters_in_no_layer,
    plan,
    refuse_applied_outside,
    refuse_uncalled,
)
from empir_plugin.models.layers import is_inference_tensor, refuse_script
from empir_plugin.models.quantize import FULL_BITS, ActivationQuantizer, Precision, Scale, WeightQuantizer
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer, OneBit, SignWeightQuantizer

_SIGNED_FROM = 0.01
_ATTENTION = re.compile("attention|attn|xca")
_NO_ATTENTION = re.compile("flatten|block")  # A block contains an attention module of its own.


@dataclass(frozen=True)
class _Settings:
    """How to quantize each layer."""

    precision: Precision
    scale: Scale
    activations: Activations
    one_bit: OneBit

    def __post_init__(self) -> None:
        if self.precision.is_full:
            raise InputError("precision 'fp' leaves every layer as it is: pass one such as 'w4a4'")
        if self.scale not in get_args(Scale):
            raise InputError(f"scale must be one of {', '.join(get_args(Scale))}, got {self.scale!r}")
        if self.one_bit is not OneBit.DOREFA and self.precision.weight_bits != 1:
            raise InputError(f"one_bit={self.one_bit.value!r} is for 1-bit weights, got precision {self.precision}")
        if self.signs and self.activations is not Activations.AUTO:
            name = self.one_bit.value
            raise InputError(f"{name} takes 1-bit inputs by their sign, got activations={self.activations.value!r}")

    @property
    def signs(self) -> bool:
        """Whether inputs are quantized to their sign."""
        return self.one_bit is not OneBit.DOREFA and self.precision.activation_bits == 1

    @property
    def depends_on_inputs(self) -> bool:
        """Whether the inputs of layers decide on their quantizers."""
        undecided = self.activations in (Activations.AUTO, Activations.PACT)
        return undecided and not self.signs and self.precision.activation_bits < FULL_BITS

    def weights(self) -> AnyWeightQuantizer:
        if self.one_bit is OneBit.DOREFA:
            return WeightQuantizer(self.precision.weight_bits, self.scale)
        return SignWeightQuantizer(per_filter=self.one_bit is OneBit.XNOR)

    def inputs(self, negative: float | None) -> InputQuantizer:
        if self.signs:
            return SignActivationQuantizer()
        bits = self.precision.activation_bits
        if self.activations is Activations.SIGNED or (self.depends_on_inputs and (negative or 0) > _SIGNED_FROM):
            return SignedActivationQuantizer(bits)
        return ActivationQuantizer(bits)

    @property
    def bound(self) -> float | None:
        """Start of a learned range; None if none is learned."""
        return 1.0 if self.activations is Activations.PACT and self.depends_on_inputs else None


def quantize_(
    model: nn.Module,
    precision: Precision | str,
    *,
    scale: Scale = "max",
    activations: Activations | str = Activations.AUTO,
    layers: Layers | str = INNER,
    one_bit: OneBit | str = OneBit.DOREFA,
    allow_unsupported: bool = False,
    calibration: Tensor | None = None,
) -> ConversionReport:
    """Quantize a network of timm, RobustBench, torchvision or your own, in place, with DoReFa's quantizers.

    Either every layer outside the skipped kinds is quantized, or the network is left unchanged and an error says why.
    Whether a layer's input is signed is decided once, from its values: it is if more than 1 % of them are negative.

    For this the network runs on all calibration images once (twice or more with batch normalisations or learned
    ranges). It also runs a few times on the first two: three times to find its first and last layers, if its
    ``default_cfg`` does not name them (and once per layer if its logits have no gradient), once to find weights that it
    applies without calling their layer, and once after the conversion.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits.
        precision: Bits of weights and inputs, such as ``"w4a4"``.
        scale: Of the weights' levels, see :class:`~empir_plugin.models.quantize.WeightQuantizer`. ``"max"`` keeps the
            size of the weights, so weights trained in full precision can be used; ``"none"`` is DoReFa's own.
        activations: Range of the inputs, see :class:`~empir_plugin.models.activations.Activations`.
        layers: Kinds of layers to quantize in addition to the usual ones, ``"inner"`` for none and ``"all"`` for all of
            them; or the names of all layers to quantize, in which ``*`` matches anything.
        one_bit: Definition of one-bit weights, see :class:`~empir_plugin.models.weight_quantizers.OneBit`.
        allow_unsupported: Leave layers that cannot be quantized in full precision instead of raising an error.
        calibration: Images ``(N, C, H, W)`` in [0, 1], two or more. They decide on the signs of inputs, batch
            normalisations get new statistics from them, and learned ranges start at the 99.9 % quantile instead of 1.
            By default noise decides on the signs, if the network's ``default_cfg`` has the size of its images.

    Returns:
        Which layers are quantized, which are not, and why.

    Raises:
        InputError: If a setting is invalid, there is nothing to quantize, a layer cannot be quantized, or the
            calibration images do not fit.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10))
        >>> import torch
        >>> report = quantize_(network, "w4a4", calibration=torch.rand(2, 3, 8, 8))
        >>> [layer.name for layer in report.converted], [layer.reason for layer in report.kept]
        (['2'], ['first layer', 'last layer'])
    """
    refuse_script(model)
    _refuse_inference_tensors(model)
    bits = Precision.parse(precision) if isinstance(precision, str) else precision
    settings = _Settings(bits, scale, Activations.parse(activations), OneBit.parse(one_bit))
    images = noise(model) if calibration is None else check_images(model, calibration)
    selected = plan(model, layers, images)
    _check(model, selected, allow_unsupported)
    negative = _probe(model, selected, images, settings)
    outside: tuple[str, ...] = ()
    if negative is not None and images is not None:
        outside = weights_outside_layers(model, selected.by_name(model), images[:2])
        selected = refuse_applied_outside(model, refuse_uncalled(selected, negative), outside)
    _check(model, selected, allow_unsupported)
    others = parameters_in_no_layer(model, selected)
    with undo_on_error(selected.chosen.values()):
        converted = _convert(selected.chosen, settings, negative or {})
        with _blame_conversion(model):
            _check_calls(model, images)
            renewed = 0 if calibration is None else _calibrate(model, calibration, settings)
    if calibration is not None:
        converted = _with_bounds(converted, selected.chosen)
    return ConversionReport(
        type(model).__name__,
        bits,
        scale if settings.one_bit is OneBit.DOREFA else settings.one_bit.value,
        converted,
        (*selected.kept, *selected.refused),
        sum(parameter.numel() for parameter in others.values()),
        _attention(model),
        "" if images is None else ("noise" if calibration is None else "calibration"),
        renewed,
        tuple(name for name in outside if name in others),
    )


def _refuse_inference_tensors(model: nn.Module) -> None:
    made = [name for name, parameter in model.named_parameters() if is_inference_tensor(parameter)]
    if made and not torch.is_inference_mode_enabled():
        raise InputError(
            f"{made[0]} was made inside torch.inference_mode(), so it has no gradient and cannot be changed: build or "
            "load the network outside of that block, or pass a copy.deepcopy() of it made outside"
        )


def _probe(model: nn.Module, selected: Plan, images: Tensor | None, settings: _Settings) -> dict[str, float] | None:
    """Share of negative inputs of each layer that is called; None if there are no images."""
    if images is not None:
        return negative_shares(model, selected.chosen, images)
    if settings.depends_on_inputs:
        mode = settings.activations.value
        raise InputError(
            f"activations={mode!r} needs images to find the inputs of {type(model).__name__}'s layers that are signed: "
            "pass calibration=images, or activations='unsigned' or 'signed'"
        )
    return None


def _check(model: nn.Module, selected: Plan, allow_unsupported: bool) -> None:
    name = type(model).__name__
    if selected.refused and not allow_unsupported:
        shown = "; ".join(f"{layer.name or name} ({layer.reason})" for layer in selected.refused[:3])
        more = f" and {len(selected.refused) - 3} more" if len(selected.refused) > 3 else ""
        advice = "leave them in full precision with allow_unsupported=True, or name others with layers="
        raise InputError(f"{name} has layers that cannot be quantized: {shown}{more}: {advice}")
    if not selected.chosen:
        others = {layer.reason for layer in (*selected.kept, *selected.refused)}
        reasons = ", ".join(sorted(others)) or "no submodule is a layer"
        raise InputError(f"nothing to quantize in {name} ({reasons}): name layers with layers=, or pass layers='all'")


def _convert(
    chosen: Mapping[str, nn.Module], settings: _Settings, negative: Mapping[str, float]
) -> tuple[ConvertedLayer, ...]:
    reports: list[ConvertedLayer] = []
    for name, layer in chosen.items():
        kind, weights, share = type(layer).__name__, layer.get_parameter("weight").numel(), negative.get(name)
        inputs = settings.inputs(share)
        quantize_layer_class_(layer).use_quantizers_(settings.weights(), inputs, settings.bound)
        how = "unsigned" if isinstance(inputs, ActivationQuantizer) else str(inputs)
        reports.append(ConvertedLayer(name, kind, weights, how, share, settings.bound))
    return tuple(reports)


@contextmanager
def _blame_conversion(model: nn.Module) -> Iterator[None]:
    """Name the cause if a network fails that ran on the same images before its layers were quantized."""
    try:
        yield
    except Exception as error:  # The network's own code, which may fail in any way.
        raise InputError(
            f"{type(model).__name__} runs with its own layers and not with quantized ones "
            f"({cause(error.__cause__ or error)}): find the layer "
            "that it uses for more than its output, and name the others with layers="
        ) from error


def _check_calls(model: nn.Module, images: Tensor | None) -> None:
    """Check that the network uses no more of its layers than their quantized classes have."""
    if images is not None:
        with preserve_modes(model), torch.no_grad():
            model.eval()(images[:2])


def _calibrate(model: nn.Module, images: Tensor, settings: _Settings) -> int:
    if settings.bound is not None:
        start_ranges_(model, images)
    return recalibrate_(model, images)


def _with_bounds(reports: tuple[ConvertedLayer, ...], layers: Mapping[str, nn.Module]) -> tuple[ConvertedLayer, ...]:
    bounds = {name: getattr(layer, "activation_bound", None) for name, layer in layers.items()}
    return tuple(
        report if (b := bounds[report.name]) is None else replace(report, bound=b.item()) for report in reports
    )


def _attention(model: nn.Module) -> tuple[str, ...]:
    kinds = {name: type(module).__name__.lower() for name, module in model.named_modules()}
    return tuple(name for name, kind in kinds.items() if _ATTENTION.search(kind) and not _NO_ATTENTION.search(kind))
