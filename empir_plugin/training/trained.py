"""What a recipe left behind, as one ensemble again: to evaluate it, under one rule or another."""

from __future__ import annotations

from pathlib import Path

from empir_plugin.evaluation.data import load_images
from empir_plugin.models.ensemble import Ensemble, Rule
from empir_plugin.models.packing import load_packed
from empir_plugin.training.networks import first_network
from empir_plugin.training.recipe import Recipe

_IMAGES = 2
"""A converted network has to see some before it takes over from its file whatever follows from them."""


def load_trained(recipe: Recipe, folder: Path, rule: Rule | None = None) -> Ensemble:
    """The ensemble of a recipe's members, in evaluation mode.

    The same files give the ensemble under every rule: its members do not know how they are to decide.

    Args:
        recipe: As it was trained.
        folder: Where :func:`~empir_plugin.training.run.train_recipe` left the members' packed weights.
        rule: How they decide; EMPIR's vote if left out.

    Raises:
        WeightsError: If a member's file is missing, damaged, or of another recipe.

    Example:
        >>> from empir_plugin.training.run import find_recipe
        >>> load_trained(find_recipe("empir-cifar-at"), Path("nowhere"))
        Traceback (most recent call last):
        empir_plugin.errors.WeightsError: no weight file at nowhere/cifarconv-at-fp.safetensors
    """
    some = load_images(recipe.dataset).first(_IMAGES)
    members = [member for member in recipe.members if member.in_ensemble]
    networks = [first_network(recipe.architecture, member, some) for member in members]
    for member, network in zip(members, networks, strict=True):
        load_packed(network, folder / f"{member.name}.safetensors")
    return Ensemble(networks, rule).eval()
