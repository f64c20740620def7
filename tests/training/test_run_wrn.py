"""The recipe for WideResNet members, of which no weights are shipped, runs for a few steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from empir_plugin.data.image_set import ImageSet
from empir_plugin.models.ensemble import MeanProbability
from empir_plugin.models.layers import quantized_layers
from empir_plugin.training.networks import load_trained
from empir_plugin.training.objectives import Trades, WeightPerturbed
from empir_plugin.training.recipe import Recipe, find_recipe
from empir_plugin.training.run import train_recipe


def _few_steps(architecture: str) -> Recipe:
    recipe = find_recipe("empir-wrn-at")
    assert recipe.joint is not None
    members = tuple(replace(each, epochs=min(each.epochs, 1), batch_size=2) for each in recipe.members)
    joint = replace(recipe.joint, epochs=1, batch_size=2)
    return replace(recipe, architecture=architecture, members=members, joint=joint, holdout=None)


@pytest.fixture
def four_images() -> ImageSet:
    images = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    return ImageSet("cifar10", "train", images, torch.arange(4), tuple("0123456789"))


def test_the_recipe_matches_its_comment() -> None:
    recipe = find_recipe("empir-wrn-at")
    assert recipe.architecture == "WideResNet-16-4"
    assert [str(member.precision) for member in recipe.members] == ["fp", "w4a4", "w2a4"]
    assert recipe.joint is not None
    for run in (*recipe.members, recipe.joint):
        assert isinstance(run.objective, WeightPerturbed)
        assert isinstance(run.objective.objective, Trades)
        assert str(run.objective.objective.adversary.threat) == "Linf:8/255"


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["WideResNet-10-1", "WideResNet-16-4"])
def test_the_recipe_trains_for_a_few_steps(architecture: str, four_images: ImageSet, tmp_path: Path) -> None:
    recipe = _few_steps(architecture)
    members = train_recipe(recipe, four_images, tmp_path)
    assert [len(member.history) for member in members] == [2, 1, 1]
    assert all(line["loss"] > 0 for member in members for line in member.history)
    assert "WeightPerturbed" in json.loads((tmp_path / "wrn-at-w2a4.json").read_text())["joint"]["recipe"]["objective"]
    model = load_trained(recipe, tmp_path, MeanProbability())
    assert torch.allclose(model(four_images.batch(0, 4)[0]).exp().sum(1), torch.ones(4), atol=1e-5)
    bounds = [layer.activation_bound for _, layer in quantized_layers(model.members[1])]
    assert len(bounds) > 0
    assert all(bound is not None and bound.item() > 0 for bound in bounds)
