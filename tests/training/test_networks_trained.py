"""One trained set of weights, evaluated under one rule or another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from empir_plugin.attacks.gradient import fgsm
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import DataError, WeightsError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.run import evaluate
from empir_plugin.models.ensemble import MaxVote, MeanProbability
from empir_plugin.models.layers import bake_
from empir_plugin.models.precision import Precision
from empir_plugin.training.networks import load_trained, load_trained_member
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import JointRecipe, MemberRecipe

TEACHER = MemberRecipe("first", 1, 1, 16, precision=Precision(), in_ensemble=False)
FP = MemberRecipe("full", 2, 0, 16, precision=Precision(), start="first")
LP = MemberRecipe("low", 3, 0, 16, precision=Precision(2, 4), scale="max", start="first")
RECIPE = Recipe("both", "mnistconv", "mnist", (TEACHER, FP, LP), JointRecipe("both", 4, 1, 16))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    images = torch.randint(0, 256, (16, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train_recipe(RECIPE, ImageSet("mnist", "train", images, torch.arange(16) % 10, tuple("0123456789")), out)
    return out


def test_what_comes_back_computes_what_was_trained(folder: Path, tiny_mnist: ImageSet) -> None:
    model, x = load_trained(RECIPE, folder, MeanProbability()), tiny_mnist.batch(0, 8)[0]
    assert [type(member).__name__ for member in model.members] == ["MNISTConv", "MNISTConv"], "no teacher among them"
    assert not model.training
    expected = load_trained(RECIPE, folder, MeanProbability())
    expected.load_state_dict(load_file(folder / "both.safetensors"))
    bake_(expected)
    assert torch.equal(model(x), expected(x))


def test_vote_and_mean_probability_of_the_same_weights_give_a_record_each(folder: Path, tiny_mnist: ImageSet) -> None:
    data, threat, attacks = tiny_mnist.first(4), Threat.parse("Linf:0.3"), [AttackSpec("FGSM", fgsm())]
    models = [load_trained(RECIPE, folder, rule) for rule in (MaxVote(), MeanProbability())]
    records = [evaluate(model, data, threat, attacks, name="both") for model in models]
    assert records[0].model["sha256"] != records[1].model["sha256"], "another rule is another model"


def test_a_data_set_this_package_does_not_hold(tmp_path: Path) -> None:
    recipe = Recipe("hundred", "cifarconv", "cifar100", (MemberRecipe("one", 1, 1, 4, precision=Precision()),))
    pixels = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    images = ImageSet("cifar100", "train", pixels, torch.arange(4), tuple(map(str, range(100))))
    train_recipe(recipe, images, tmp_path)
    model = load_trained(recipe, tmp_path, images=images)
    assert model(images.as_float()).shape == (4, 100)
    assert load_trained_member(recipe, tmp_path, "one", images=images)(images.as_float()).shape == (4, 100)
    with pytest.raises(DataError, match="cifar100"):
        load_trained(recipe, tmp_path)


def test_what_is_not_there_is_missed(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weight file at .*full\.safetensors"):
        load_trained(RECIPE, tmp_path)


def _rewritten(folder: Path, tmp_path: Path, **changes: str) -> Path:
    """The folder with another report of the member ``low``."""
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    report = json.loads((tmp_path / "low.json").read_text())
    (tmp_path / "low.json").write_text(json.dumps({**report, "recipe": {**report["recipe"], **changes}}))
    return tmp_path


@pytest.mark.parametrize(
    ("key", "trained", "wanted"),
    [("precision", "w4a4", "w2a4"), ("precision", "w2a2", "w2a4"), ("scale", "mean", "max"),
     ("activations", "signed", "unsigned")],
)  # fmt: skip
def test_weights_whose_report_tells_of_other_settings_are_of_another_recipe(
    key: str, trained: str, wanted: str, folder: Path, tmp_path: Path
) -> None:
    changed = _rewritten(folder, tmp_path, **{key: trained})
    sentence = (
        rf"low.safetensors is of another recipe: .* was trained with {key} '{trained}', the recipe says '{wanted}'"
    )
    with pytest.raises(WeightsError, match=sentence):
        load_trained(RECIPE, changed)
    with pytest.raises(WeightsError, match=sentence):
        load_trained_member(RECIPE, changed, "low")
    load_trained_member(RECIPE, changed, "full")


def test_a_scale_the_weights_do_not_show_is_told_by_the_report(folder: Path, tiny_mnist: ImageSet) -> None:
    first, full, low = RECIPE.members
    for scale in ("none", "mean"):
        recipe = replace(RECIPE, members=(first, full, replace(low, scale=scale)))
        with pytest.raises(WeightsError, match=f"trained with scale 'max', the recipe says '{scale}'"):
            load_trained(recipe, folder)


def test_weights_without_a_report_are_taken_and_a_damaged_report_is_told(
    folder: Path, tmp_path: Path, tiny_mnist: ImageSet
) -> None:
    changed, x = _rewritten(folder, tmp_path), tiny_mnist.batch(0, 4)[0]
    for text, reason in (("{", "no valid JSON"), ("{}", "KeyError"), ("[]", "TypeError")):
        (changed / "low.json").write_text(text)
        with pytest.raises(WeightsError, match=rf"low.json is no training report.*{reason}"):
            load_trained(RECIPE, changed)
    (changed / "low.json").unlink()
    assert torch.equal(load_trained(RECIPE, changed)(x), load_trained(RECIPE, folder)(x))
