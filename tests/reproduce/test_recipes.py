"""The recipes of the targets: every member trains, is packed, and comes back as a network of its precision."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.packing import load_packed
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.training.recipe import Recipe, find_recipe
from empir_plugin.training.run import train_recipe

RECIPES = sorted({training.recipe for target in TARGETS.values() for training in target.trainings})


def _short(recipe: Recipe) -> Recipe:
    """The same with two steps for each member."""
    return replace(recipe, members=tuple(replace(each, epochs=1, batch_size=8) for each in recipe.members))


def _images(recipe: Recipe) -> ImageSet:
    return replace(load_images(recipe.dataset, n_examples=16), split="train")


def test_there_are_recipes() -> None:
    assert {"table2-mnist", "table2-cifar", "discretization-mnist"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_member_trains_and_comes_back(name: str, tmp_path: Path) -> None:
    recipe = _short(find_recipe(name))
    data = _images(recipe)
    members = train_recipe(recipe, data, tmp_path)
    assert [member.name for member in members] == [member.name for member in recipe.members]
    x = data.batch(0, 2)[0]
    for made, told in zip(members, recipe.members, strict=True):
        model = ARCHITECTURES[recipe.architecture](told.precision, scale=told.scale, num_classes=10)
        load_packed(model, made.weights, expected_sha256=made.sha256)
        assert torch.isfinite(model.eval()(x)).all()
