"""What a recipe left behind, ready to evaluate: the ensemble, under one rule or another, or one of its members."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from empir_plugin.errors import InputError, WeightsError
from empir_plugin.evaluation.data import ImageSet, load_images
from empir_plugin.models.activations import Activations
from empir_plugin.models.ensemble import Ensemble, Rule
from empir_plugin.models.packing import load_packed
from empir_plugin.training.checkpoint import REPORT
from empir_plugin.training.networks import first_network
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.schedules import MemberRecipe, reported

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
