"""Quantized networks and ensembles of any architecture, in one line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.activations import Activations
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import INNER, Layers
from empir_plugin.models.ensemble import Ensemble, Rule
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale
from empir_plugin.zoo.builders import ModelBuilder
from empir_plugin.zoo.quantized.architectures import Architecture, network
from empir_plugin.zoo.quantized.build import Channels, QuantizedCard
from empir_plugin.zoo.registry import find_builder, register_family


@dataclass(frozen=True)
class _Conversion:
    """How the quantized members come about."""

    scale: Scale
    activations: Activations | str
    layers: Layers | str
    calibration: Tensor | None


def empir(
    architecture: Architecture,
    *,
    precisions: Sequence[Precision | str],
    num_classes: int,
    rule: Rule | None = None,
    scale: Scale = "max",
    activations: Activations | str = Activations.AUTO,
    layers: Layers | str = INNER,
    calibration: Tensor | None = None,
    **settings: Any,
) -> Ensemble:
    """An ensemble of one architecture at several precisions: EMPIR, https://openreview.net/forum?id=HJem3yHKwH.

    Every member has random weights of its own, and waits for training or a state dict.

    Args:
        architecture: A name of timm (``"resnet18"``) or of RobustBench (``"WideResNet-28-10"``, ``"PreActResNet-18"``),
            or a function that takes ``num_classes`` as keyword.
        precisions: Of the members, in order, such as ``["fp", "w4a4", "w2a2"]``.
        num_classes: K.
        rule: How the members decide together; EMPIR's vote by default.
        scale: See :func:`~empir_plugin.models.convert.quantize_.quantize_`, as for the next three.
        activations: Likewise.
        layers: Likewise.
        calibration: Likewise.
        **settings: For the architecture.

    Raises:
        InputError: If there is no member, or the architecture is not known or cannot be quantized so.

    Example:
        >>> ensemble = empir("resnet18", precisions=["fp", "w4a4", "w2a2"], num_classes=10)
        >>> len(ensemble.members), ensemble.leader
        (3, 0)
    """
    if isinstance(precisions, str):
        raise InputError(f"precisions must be a list such as ['fp', 'w4a4'], got {precisions!r}")
    conversion = _Conversion(scale, activations, layers, calibration)
    wanted = [Precision.parse(each) if isinstance(each, str) else each for each in precisions]
    members = [network(architecture, num_classes=num_classes, **settings) for _ in wanted]
    for member, precision in zip(members, wanted, strict=True):
        _quantize(member, precision, conversion)
    return Ensemble(members, rule)


def _quantize(member: nn.Module, precision: Precision, how: _Conversion) -> None:
    if not precision.is_full:
        quantize_(
            member,
            precision,
            scale=how.scale,
            activations=how.activations,
            layers=how.layers,
            calibration=how.calibration,
        )


def register_quantized(
    name: str,
    architecture: Architecture,
    precision: Precision | str,
    *,
    dataset: str = "cifar10",
    num_classes: int = 10,
    threats: tuple[str, ...] = ("Linf", "L2", "corruptions"),
    mean: Channels | None = None,
    std: Channels | None = None,
    scale: Scale = "max",
    activations: Activations | str = Activations.AUTO,
    layers: Layers | str = INNER,
    **settings: Any,
) -> ModelBuilder:
    """Give a quantized network a name, for ``load_model`` of this package and of RobustBench, in this process.

    Nothing is built before it is asked for. To have the name everywhere, let a package of yours name what this returns
    as an entry point of the group ``robustbench.models``.

    Args:
        name: Model id, such as ``"dorefa-w3a3-resnet26"``.
        architecture: As for :func:`empir`.
        precision: Bits of the quantized layers.
        dataset: The data set it classifies.
        num_classes: K.
        threats: RobustBench's threat models it is meant for.
        mean: Subtracted from each channel of images in [0, 1] before the network sees them; nothing by default.
        std: What each channel is then divided by.
        scale: See :func:`~empir_plugin.models.convert.quantize_.quantize_`, as for the next two.
        activations: Likewise.
        layers: Likewise.
        **settings: For the architecture.

    Raises:
        InputError: If the name is taken, or the precision is none.

    Example:
        >>> register_quantized("dorefa-w3a3-resnet26", "resnet26", "w3a3").dataset
        'cifar10'
    """
    if find_builder(name, dataset) is not None:
        raise InputError(f"there is a model {name!r} already: choose another name")
    bits = Precision.parse(precision) if isinstance(precision, str) else precision
    if bits.is_full:
        raise InputError(f"{name} would not be quantized at precision 'fp': pass one such as 'w4a4'")
    card = QuantizedCard(
        name=name,
        architecture=architecture,
        precision=bits,
        dataset=dataset,
        num_classes=num_classes,
        threats=threats,
        mean=mean,
        std=std,
        scale=scale,
        activations=activations,
        layers=layers,
        settings=MappingProxyType(settings),
    )
    builder = card.builder()
    register_family(name, (builder,))
    return builder
