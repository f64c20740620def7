"""Networks before and after training: pretrained weights, initial networks of members, trained networks from files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.activations import Activations
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert.probe import recalibrate_
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.report import ConversionReport, report_as_built
from empir_plugin.models.convert.select import INNER, Layers
from empir_plugin.models.ensemble import Ensemble, Rule
from empir_plugin.models.packing import load_packed, load_strictly, packed_names
from empir_plugin.models.weight_files import holds_codes, load_weights
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.schedules import MemberRecipe, report_settings
from empir_plugin.zoo.definition import REPORT, NetworkDefinition
from empir_plugin.zoo.quantized.build import Channels


def load_pretrained(model: nn.Module, path: Path, *, ema: bool | None = None) -> None:
    """Load the weights of a full-precision checkpoint into a network of the same architecture.

    Args:
        model: Full-precision network.
        path: A file of any kind that :func:`~empir_plugin.models.weight_files.load_weights` reads.
        ema: See there.

    Raises:
        WeightsError: If the file is missing, damaged, already quantized, or made for another architecture; the network
            is then left unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "linear.pt")
        >>> torch.save({"state_dict": {"module.weight": torch.ones(1, 1)}}, path)
        >>> load_pretrained(linear := nn.Linear(1, 1, bias=False), path)
        >>> linear.weight.item()
        1.0
    """
    if holds_codes(path) and (names := packed_names(path)):
        some = f"{len(names)} of its weights, such as {names[0]!r}, are quantized"
        raise WeightsError(f"{path} is already quantized ({some}): start from full-precision weights")
    load_weights(model, path, ema=ema)


CALIBRATION_IMAGES = 512
"""Number of training images, the first ones, that signs, ranges and statistics of a network are calibrated on."""


@dataclass(frozen=True)
class Extent:
    """Which part of a network is quantized.

    Args:
        layers: See :func:`~empir_plugin.models.convert.quantize_.quantize_`.
        allow_unsupported: See :func:`~empir_plugin.models.convert.quantize_.quantize_`.
    """

    layers: Layers | str = INNER
    allow_unsupported: bool = False


def initial_network(
    architecture: str, member: MemberRecipe, training: ImageSet, start: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """Build a member's network before its first training step.

    Its weights are random, from the member's seed, or those of the member it starts from. EMPIR's own architectures are
    built at the member's precision; all others are built in full precision and then quantized, calibrated on the first
    training images.

    Args:
        architecture: A key of :data:`empir_plugin.models.architectures.ARCHITECTURES`, or a name for
            :func:`empir_plugin.zoo.quantized.architectures.network`.
        member: The member to build.
        training: Training images.
        start: State dict of the member named by ``member.start``.

    Raises:
        InputError: If there is no such architecture, or it cannot be quantized this way.
        WeightsError: If ``start`` belongs to another architecture.

    Example:
        >>> from empir_plugin.data.image_set import load_images
        >>> from empir_plugin.models.quantize import Precision
        >>> member = MemberRecipe("m", seed=0, epochs=1, precision=Precision.parse("w4a4"), scale="max")
        >>> type(initial_network("WideResNet-10-1", member, load_images("cifar10", n_examples=16))).__name__
        'WideResNet'
    """
    with _seeded(member.seed):
        if architecture in ARCHITECTURES:
            model = _release_network(architecture, member, training.num_classes)
        else:
            model = full_precision_definition(architecture, training).full_precision()
        if start is not None:
            load_strictly(model, _without_ranges(start), Path(member.start))
        if architecture not in ARCHITECTURES and not member.precision.is_full:
            _convert(model, member, training, Extent())
    return model


def full_precision_definition(
    architecture: str,
    training: ImageSet,
    *,
    settings: Mapping[str, Any] | None = None,
    mean: Channels | None = None,
    std: Channels | None = None,
) -> NetworkDefinition:
    """How a network for some images is built in full precision; see the definition for the arguments.

    Example:
        >>> full_precision_definition("WideResNet-10-1", load_images("cifar10", n_examples=1)).image_shape
        (3, 32, 32)
    """
    about = architecture, training.name, training.num_classes, tuple(training.images.shape[1:])
    return NetworkDefinition(*about, settings=settings or {}, mean=mean, std=std)


def quantized_definition(
    definition: NetworkDefinition, member: MemberRecipe, conversion: ConversionReport
) -> NetworkDefinition:
    """How a network is built after it was quantized with a member's settings."""
    layers = tuple(layer.name for layer in conversion.converted)
    how = {"scale": member.scale, "activations": member.activations, "layers": layers}
    return replace(definition, precision=member.precision, **how)


def full_precision_network(definition: NetworkDefinition, member: MemberRecipe) -> nn.Module:
    """Build a member's network in full precision, with random weights from the member's seed.

    Raises:
        InputError: If there is no such architecture.
    """
    with _seeded(member.seed):
        return definition.full_precision()


def convert_network(
    model: nn.Module, definition: NetworkDefinition, member: MemberRecipe, training: ImageSet, extent: Extent
) -> tuple[nn.Module, ConversionReport]:
    """Quantize a network from :func:`full_precision_network`, as :func:`initial_network` does.

    Args:
        model: Network with the weights to keep, quantized in place unless it is one of EMPIR's own architectures.
        definition: How it was built.
        member: Precision, scale and activations.
        training: Training images; the first ones are used for calibration.
        extent: Which part of the network is quantized.

    Returns:
        The quantized network, and a report on each layer.

    Raises:
        InputError: If it cannot be quantized this way.
    """
    architecture = definition.architecture
    with _seeded(member.seed):
        if architecture not in ARCHITECTURES:
            return model, _convert(model, member, training, extent)
        if extent != Extent():
            raise InputError(
                f"EMPIR's release fixes the quantized layers of {architecture}, got {extent}: leave out layers and "
                "allow_unsupported"
            )
        if member.precision.is_full:
            raise InputError("precision 'fp' leaves every layer as it is: pass one such as 'w4a4'")
        low = _release_network(architecture, member, training.num_classes)
    low.load_state_dict(model.state_dict())
    recalibrated = recalibrate_(low, _calibration(training))
    return low, report_as_built(low, member.precision, member.scale, recalibrated)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _release_network(architecture: str, member: MemberRecipe, num_classes: int) -> nn.Module:
    if member.activations not in (Activations.UNSIGNED, Activations.AUTO):
        mode = member.activations.value
        raise InputError(f"activations of member {member.name!r} must be 'unsigned' in {architecture}, got {mode!r}")
    return ARCHITECTURES[architecture](member.precision, scale=member.scale, num_classes=num_classes)


def _without_ranges(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict without learned ranges: conversion calibrates them again, and full precision has none."""
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


_IMAGES = 2
"""Images that a network is calibrated on before its weights, with all calibrated values, are loaded from a file."""


def load_trained(recipe: Recipe, folder: Path, rule: Rule | None = None, *, images: ImageSet | None = None) -> Ensemble:
    """The ensemble of a recipe's members, in evaluation mode.

    The members do not depend on the decision rule, so the same files can be loaded with any rule.

    Args:
        recipe: The recipe they were trained with.
        folder: Output folder of :func:`~empir_plugin.training.run.train_recipe` with the members' packed weights.
        rule: Decision rule; EMPIR's max vote if left out.
        images: Some images of the recipe's data set, needed if this package has none.

    Raises:
        DataError: If this package has no images of the data set and none are passed.
        WeightsError: If a member's file is missing, damaged, or belongs to another recipe.

    Example:
        >>> from empir_plugin.training.recipe import find_recipe
        >>> load_trained(find_recipe("empir-cifar-at"), Path("nowhere"))
        Traceback (most recent call last):
        empir_plugin.errors.WeightsError: no weight file at nowhere/cifarconv-at-fp.safetensors
    """
    members = [member for member in recipe.members if member.in_ensemble]
    return Ensemble([_load_member(recipe, member, folder, images) for member in members], rule).eval()


def load_trained_member(
    recipe: Recipe,
    folder: Path,
    name: str,
    *,
    images: ImageSet | None = None,
    expected_sha256: str | None = None,
) -> nn.Module:
    """One member of a recipe, in evaluation mode.

    Args:
        recipe: The recipe it was trained with.
        folder: Output folder of :func:`~empir_plugin.training.run.train_recipe` with its packed weights.
        name: Name of the member.
        images: Some images of the recipe's data set, needed if this package has none.
        expected_sha256: SHA-256 its file must have; not checked if left out.

    Raises:
        DataError: If this package has no images of the data set and none are passed.
        InputError: If the recipe has no such member.
        WeightsError: If its file is missing, damaged, not the expected one, or belongs to another recipe.

    Example:
        >>> from empir_plugin.training.recipe import find_recipe
        >>> load_trained_member(find_recipe("empir-cifar"), Path("nowhere"), "cifarconv-fp")
        Traceback (most recent call last):
        empir_plugin.errors.WeightsError: no weight file at nowhere/cifarconv-fp.safetensors
    """
    return _load_member(recipe, member_of(recipe, name), folder, images, expected_sha256).eval()


def member_of(recipe: Recipe, name: str) -> MemberRecipe:
    """The recipe's member of a name.

    Raises:
        InputError: If the recipe has no such member.
    """
    members = {member.name: member for member in recipe.members}
    if name not in members:
        raise InputError(f"recipe {recipe.name} has the members {', '.join(members)}, got {name!r}")
    return members[name]


def _load_member(
    recipe: Recipe, member: MemberRecipe, folder: Path, images: ImageSet | None, expected_sha256: str | None = None
) -> nn.Module:
    recorded = _check_report(member, folder / f"{member.name}.json")
    some = load_images(recipe.dataset) if images is None else images
    network = initial_network(recipe.architecture, member, some.first(min(_IMAGES, len(some))))
    expected = recorded if expected_sha256 is None else expected_sha256
    load_packed(network, folder / f"{member.name}.safetensors", expected_sha256=expected)
    return network


def _check_report(member: MemberRecipe, path: Path) -> str | None:
    """The SHA-256 of the weights in a report, if there is one; it must have the member's settings.

    The weights alone do not show all of them.
    """
    if not path.is_file():
        return None
    expected = _quantizers(report_settings(member))
    trained, digest = REPORT.read(path, lambda report: (_quantizers(report["recipe"]), report.get("sha256")))
    for key, value in expected.items():
        if trained[key] != value:
            raise WeightsError(
                f"{path.with_suffix('.safetensors')} belongs to another recipe: by its report, {member.name!r} was "
                f"trained with {key} {trained[key]!r}, the recipe has {value!r}: pass the recipe it was trained with"
            )
    return digest


def _quantizers(settings: Mapping[str, object]) -> dict[str, object]:
    """Those of a member's reported settings that determine how its weights are interpreted."""
    activations = settings.get("activations", Activations.UNSIGNED.value)
    return {"precision": settings["precision"], "scale": settings["scale"], "activations": activations}
