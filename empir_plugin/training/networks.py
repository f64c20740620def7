"""The network a member of a recipe is before its first step."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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
from empir_plugin.models.packing import is_packed, load_packed, load_strictly, packed_names
from empir_plugin.models.precision import Precision
from empir_plugin.training.checkpoint import REPORT
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.schedules import MemberRecipe, reported
from empir_plugin.zoo.quantized.architectures import network
from empir_plugin.zoo.quantized.build import settings_for

_PICKLES = frozenset({".pt", ".pth", ".tar", ".ckpt", ".bin"})
_PARALLEL = "module."


def load_pretrained(model: nn.Module, path: Path) -> None:
    """Load the weights of a full-precision checkpoint into a network of the same architecture.

    A file of torch is read without running code from it; its state dict may be wrapped as ``state_dict``, and its keys
    may all begin with the ``module.`` of ``DataParallel``.

    Args:
        model: In full precision.
        path: A packed file of this package, a safetensors state dict, or one of torch (``.pt``, ``.pth``, ``.tar``,
            ``.ckpt``, ``.bin``).

    Raises:
        WeightsError: If the file is missing, damaged, of few bits already, or made for another architecture; the
            network is then left as it was.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "linear.pt")
        >>> torch.save({"state_dict": {"module.weight": torch.ones(1, 1)}}, path)
        >>> load_pretrained(linear := nn.Linear(1, 1, bias=False), path)
        >>> linear.weight.item()
        1.0
    """
    if path.suffix.lower() in _PICKLES:
        state = _from_torch(path)
    elif is_packed(path):
        if names := packed_names(path):
            some = f"{len(names)} of its weights, such as {names[0]!r}, are quantized"
            raise WeightsError(f"{path} is of few bits already ({some}): start from full-precision weights")
        return load_packed(model, path)
    else:
        state = _from_safetensors(path)
    _check_finite(state, path)
    return load_strictly(model, state, path)


def _from_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or no safetensors file ({error}): get it again") from error


def _from_torch(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    try:
        # The user's own full-precision weights, which mostly come as .pth; weights_only reads tensors and runs no code.
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, struct.error) as error:
        # A text under the name of a checkpoint fails in one of these ways or another, depending on its first letters.
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"{path} cannot be read without running code from it ({reason}): save a state dict"
        ) from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise WeightsError(f"{path} holds no state dict: save model.state_dict(), as it is or as 'state_dict'")
    parallel = all(key.startswith(_PARALLEL) for key in state)
    return {key.removeprefix(_PARALLEL) if parallel else key: value for key, value in state.items()}


def _check_finite(state: Mapping[str, Tensor], path: Path) -> None:
    for key, value in state.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise WeightsError(f"{path} is damaged: {key!r} has values that are not finite")


CALIBRATION_IMAGES = 512
"""So many of the first training images decide signs, ranges and statistics of a converted network."""


@dataclass(frozen=True)
class Extent:
    """How much of a network is quantized.

    Args:
        layers: See :func:`~empir_plugin.models.convert.quantize_.quantize_`.
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
            :func:`empir_plugin.zoo.quantized.architectures.network`.
        member: What is to be trained.
        training: Images to train on.
        start: State dict of another network of the architecture, named by ``member.start``.

    Raises:
        InputError: If there is no such architecture, or it cannot be quantized so.
        WeightsError: If ``start`` is of another architecture.

    Example:
        >>> from empir_plugin.data.image_set import load_images
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


_IMAGES = 2
"""A converted network has to see some before it takes over from its file whatever follows from them."""


def load_trained(recipe: Recipe, folder: Path, rule: Rule | None = None, *, images: ImageSet | None = None) -> Ensemble:
    """The ensemble of a recipe's members, in evaluation mode.

    The same files give the ensemble under every rule: its members do not know how they are to decide.

    Args:
        recipe: As it was trained.
        folder: Where :func:`~empir_plugin.training.run.train_recipe` left the members' packed weights.
        rule: How they decide; EMPIR's vote if left out.
        images: Some of the recipe's data set, where this package holds none.

    Raises:
        DataError: If this package holds no images of the data set, and none are passed.
        WeightsError: If a member's file is missing, damaged, or of another recipe.

    Example:
        >>> from empir_plugin.training.run import find_recipe
        >>> load_trained(find_recipe("empir-cifar-at"), Path("nowhere"))
        Traceback (most recent call last):
        empir_plugin.errors.WeightsError: no weight file at nowhere/cifarconv-at-fp.safetensors
    """
    members = [member for member in recipe.members if member.in_ensemble]
    return Ensemble([_network(recipe, member, folder, images) for member in members], rule).eval()


def load_trained_member(
    recipe: Recipe,
    folder: Path,
    name: str,
    *,
    images: ImageSet | None = None,
    expected_sha256: str | None = None,
) -> nn.Module:
    """One network of a recipe, in evaluation mode.

    Args:
        recipe: As it was trained.
        folder: Where :func:`~empir_plugin.training.run.train_recipe` left its packed weights.
        name: The member's.
        images: Some of the recipe's data set, where this package holds none.
        expected_sha256: Of its file; any will do if left out.

    Raises:
        DataError: If this package holds no images of the data set, and none are passed.
        InputError: If the recipe has no such member.
        WeightsError: If its file is missing, damaged, not the expected one, or of another recipe.

    Example:
        >>> from empir_plugin.training.run import find_recipe
        >>> load_trained_member(find_recipe("empir-cifar"), Path("nowhere"), "cifarconv-fp")
        Traceback (most recent call last):
        empir_plugin.errors.WeightsError: no weight file at nowhere/cifarconv-fp.safetensors
    """
    return _network(recipe, member_of(recipe, name), folder, images, expected_sha256).eval()


def member_of(recipe: Recipe, name: str) -> MemberRecipe:
    """The member of a name.

    Raises:
        InputError: If the recipe has none.
    """
    found = {member.name: member for member in recipe.members}
    if name not in found:
        raise InputError(f"recipe {recipe.name} has the members {', '.join(found)}, got {name!r}")
    return found[name]


def _network(
    recipe: Recipe, member: MemberRecipe, folder: Path, images: ImageSet | None, expected_sha256: str | None = None
) -> nn.Module:
    _check_report(member, folder / f"{member.name}.json")
    some = load_images(recipe.dataset) if images is None else images
    network = first_network(recipe.architecture, member, some.first(min(_IMAGES, len(some))))
    load_packed(network, folder / f"{member.name}.safetensors", expected_sha256=expected_sha256)
    return network


def _check_report(member: MemberRecipe, path: Path) -> None:
    """Refuse weights whose report, if there is one, tells of other settings: not all of them show in the weights."""
    if not path.is_file():
        return
    wanted, trained = _quantizers(reported(member)), REPORT.read(path, lambda report: _quantizers(report["recipe"]))
    for key, value in wanted.items():
        if trained[key] != value:
            raise WeightsError(
                f"{path.with_suffix('.safetensors')} is of another recipe: by its report member {member.name!r} was "
                f"trained with {key} {trained[key]!r}, the recipe says {value!r}: pass the recipe it was trained with"
            )


def _quantizers(settings: Mapping[str, object]) -> dict[str, object]:
    """Of a member's settings as in its report, those that decide what its weights mean."""
    activations = settings.get("activations", Activations.UNSIGNED.value)
    return {"precision": settings["precision"], "scale": settings["scale"], "activations": activations}
