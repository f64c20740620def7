"""The network a member of a recipe is before its first step."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.models.activations import Activations
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert import quantize_
from empir_plugin.models.state import load_strictly
from empir_plugin.training.schedules import MemberRecipe
from empir_plugin.zoo.quantized_architectures import network

CALIBRATION_IMAGES = 512
"""So many of the first training images decide signs, ranges and statistics of a converted network."""


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
        >>> from empir_plugin.models.precision import Precision
        >>> member = MemberRecipe("m", seed=0, epochs=1, precision=Precision.parse("w4a4"), scale="max")
        >>> type(first_network("WideResNet-10-1", member, load_images("cifar10"))).__name__
        'WideResNet'
    """
    with torch.random.fork_rng():
        torch.manual_seed(member.seed)
        if architecture in ARCHITECTURES:
            return _of_empir(architecture, member, training.num_classes, start)
        return _converted(architecture, member, training, start)


def _of_empir(
    architecture: str, member: MemberRecipe, num_classes: int, start: Mapping[str, Tensor] | None
) -> nn.Module:
    if member.activations is not Activations.UNSIGNED:
        mode = member.activations.value
        raise InputError(f"activations of member {member.name!r} must be 'unsigned' in {architecture}, got {mode!r}")
    model = ARCHITECTURES[architecture](member.precision, scale=member.scale, num_classes=num_classes)
    if start is not None:
        load_strictly(model, start, Path(member.start))
    return model


def _converted(
    architecture: str, member: MemberRecipe, training: ImageSet, start: Mapping[str, Tensor] | None
) -> nn.Module:
    model = network(architecture, num_classes=training.num_classes)
    if start is not None:
        load_strictly(model, start, Path(member.start))
    if not member.precision.is_full:
        images = training.batch(0, CALIBRATION_IMAGES)[0]
        quantize_(model, member.precision, scale=member.scale, activations=member.activations, calibration=images)
    return model
