"""The network a member of a recipe is before its first step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.models.activations import Activations
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert import quantize_
from empir_plugin.models.convert_report import ConversionReport, report_as_built
from empir_plugin.models.convert_select import INNER, Layers
from empir_plugin.models.precision import Precision
from empir_plugin.models.recalibrate import recalibrate_
from empir_plugin.models.state import load_strictly
from empir_plugin.training.schedules import MemberRecipe
from empir_plugin.zoo.quantized_architectures import network
from empir_plugin.zoo.quantized_catalog import settings_for

CALIBRATION_IMAGES = 512
"""So many of the first training images decide signs, ranges and statistics of a converted network."""


@dataclass(frozen=True)
class Extent:
    """How much of a network is quantized.

    Args:
        layers: See :func:`~empir_plugin.models.convert.quantize_`.
        allow_unsupported: Likewise.
    """

    layers: Layers | str = INNER
    allow_unsupported: bool = False


def first_network(
    architecture: str, member: MemberRecipe, training: ImageSet, start: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Make a network with the random weights of the member's seed, or those it starts from.

    EMPIR's own architectures are built at the member's precision; all others in full precision, and then converted
    with a calibration on the first training images.

    Args:
        architecture: A key of :data:`empir_plugin.models.architectures.ARCHITECTURES`, or a name for
            :func:`empir_plugin.zoo.quantized_architectures.network`.
        member: What is to be trained.
        training: Images to train on.
        start: State dict of another network of the architecture, named by ``member.start``.

    Raises:
        InputError: If there is no such architecture, or it cannot be quantized so.
        WeightsError: If ``start`` is of another architecture.

    Example:
        >>> from empir_plugin.evaluation.data import load_images
        >>> member = MemberRecipe("m", seed=0, epochs=1, precision=Precision.parse("w4a4"), scale="max")
        >>> type(first_network("WideResNet-10-1", member, load_images("cifar10", n_examples=16))).__name__
        'WideResNet'
    """
    with _seeded(member.seed):
        if architecture in ARCHITECTURES:
            model = _of_empir(architecture, member, training.num_classes)
        else:
            model = _in_full_precision(architecture, training)
        if start is not None:
            load_strictly(model, _without_ranges(start), Path(member.start))
        if architecture not in ARCHITECTURES and not member.precision.is_full:
            _convert(model, member, training, Extent())
    return model


def full_precision_network(architecture: str, member: MemberRecipe, training: ImageSet) -> nn.Module:
    """Make the network of a member before it is quantized, with the random weights of the member's seed.

    Raises:
        InputError: If there is no such architecture.
    """
    with _seeded(member.seed):
        return _in_full_precision(architecture, training)


def converted(
    model: nn.Module, architecture: str, member: MemberRecipe, training: ImageSet, extent: Extent
) -> tuple[nn.Module, ConversionReport]:
    """Quantize a network from :func:`full_precision_network` as :func:`first_network` does.

    Args:
        model: With the weights to keep. It is converted in place, unless EMPIR's own architectures have to be built
            anew.
        architecture: Its name.
        member: Precision, scale and activations.
        training: Its first images are looked at.
        extent: How much of the network is quantized.

    Raises:
        InputError: If it cannot be quantized so.
    """
    with _seeded(member.seed):
        if architecture not in ARCHITECTURES:
            return model, _convert(model, member, training, extent)
        if extent != Extent():
            raise InputError(f"which layers of {architecture} are quantized is decided by EMPIR's release: leave it so")
        if member.precision.is_full:
            raise InputError("precision 'fp' leaves every layer as it is: pass one such as 'w4a4'")
        low = _of_empir(architecture, member, training.num_classes)
    low.load_state_dict(model.state_dict())
    renewed = recalibrate_(low, _calibration(training))
    return low, report_as_built(low, member.precision, member.scale, renewed)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _in_full_precision(architecture: str, training: ImageSet) -> nn.Module:
    classes = training.num_classes
    if architecture in ARCHITECTURES:
        return ARCHITECTURES[architecture](Precision(), num_classes=classes)
    return network(architecture, num_classes=classes, **settings_for(architecture, training.name))


def _of_empir(architecture: str, member: MemberRecipe, num_classes: int) -> nn.Module:
    if member.activations not in (Activations.UNSIGNED, Activations.AUTO):
        mode = member.activations.value
        raise InputError(f"activations of member {member.name!r} must be 'unsigned' in {architecture}, got {mode!r}")
    return ARCHITECTURES[architecture](member.precision, scale=member.scale, num_classes=num_classes)


def _without_ranges(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without learned ranges: a converted network's are found anew, one in full precision has none."""
    return {key: value for key, value in state.items() if key.rpartition(".")[2] != "activation_bound"}


def _convert(model: nn.Module, member: MemberRecipe, training: ImageSet, extent: Extent) -> ConversionReport:
    return quantize_(
        model,
        member.precision,
        scale=member.scale,
        activations=member.activations,
        layers=extent.layers,
        allow_unsupported=extent.allow_unsupported,
        calibration=_calibration(training),
    )


def _calibration(training: ImageSet) -> Tensor:
    return training.batch(0, CALIBRATION_IMAGES)[0]
