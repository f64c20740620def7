"""Networks trained on demand: once, resumable, and never mixed up with those of another recipe."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import DataError, InputError, WeightsError
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.reproduce.context import Trainer
from empir_plugin.reproduce.subjects import Given, Trained, Training, Voting
from empir_plugin.reproduce.workspace import Workspace

RECIPE = """
name = "tiny"
architecture = "mnistconv"
dataset = "mnist"
[defaults]
batch_size = 16
epochs = {epochs}
[[members]]
name = "low"
precision = "w2a4"
seed = 1
[[members]]
name = "full"
precision = "fp"
seed = 2
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.toml"
    path.write_text(RECIPE.format(epochs=1))
    return path


@pytest.fixture
def trainer(workspace: Workspace, toys: ModuleType, tiny_mnist: ImageSet) -> Trainer:
    with workspace.opened():
        return Trainer(workspace, toys.Fixed(tiny_mnist, tiny_mnist), torch.device("cpu"))


def _without_data(trainer: Trainer, toys: ModuleType) -> Trainer:
    return replace(trainer, images=toys.Fixed(trainer.images.test("mnist")))


def test_what_is_trained_is_kept_and_needs_no_data_again(trainer: Trainer, toys: ModuleType, recipe: Path) -> None:
    x = torch.rand(2, 1, 28, 28)
    assert not trainer.is_trained(Training(str(recipe)))
    first = trainer.trained(Training(str(recipe)), "low")(x)
    assert trainer.is_trained(Training(str(recipe)))
    again = _without_data(trainer, toys).trained(Training(str(recipe)), "low")
    assert torch.equal(again(x), first)
    assert not again.training
    report = trainer.workspace.records / "training" / "tiny" / "full.json"
    assert '"history"' in report.read_text()


def test_without_training_images_the_sentence_says_what_to_pass(
    trainer: Trainer, toys: ModuleType, recipe: Path
) -> None:
    with pytest.raises(DataError, match="pass --data-dir"):
        _without_data(trainer, toys).trained(Training(str(recipe)), "low")


def test_another_version_of_the_recipe_is_refused_and_the_weights_are_kept(trainer: Trainer, recipe: Path) -> None:
    trainer.trained(Training(str(recipe)), "low")
    weights = trainer.workspace.training / "tiny" / "low.safetensors"
    before = weights.read_bytes()
    recipe.write_text(RECIPE.format(epochs=2))
    with pytest.raises(WeightsError, match="another version of recipe tiny: delete that folder"):
        trainer.trained(Training(str(recipe)), "low")
    assert weights.read_bytes() == before


def test_damage_is_noticed(trainer: Trainer, recipe: Path) -> None:
    trainer.trained(Training(str(recipe)), "low")
    folder = trainer.workspace.training / "tiny"
    (folder / "low.safetensors").write_bytes((folder / "full.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="SHA-256 differs"):
        trainer.trained(Training(str(recipe)), "low")
    (folder / "finished.json").write_text("{}")
    with pytest.raises(WeightsError, match="delete the folder"):
        trainer.trained(Training(str(recipe)), "full")


def test_a_member_that_is_not_there(trainer: Trainer, recipe: Path) -> None:
    with pytest.raises(InputError, match="recipe tiny has the members low, full, got 'other'"):
        trainer.trained(Training(str(recipe)), "other")


def test_an_ensemble_of_trained_members_votes_in_order(trainer: Trainer, recipe: Path) -> None:
    low, full = Trained(str(recipe), "low"), Trained(str(recipe), "full")
    ensemble = Voting("both", (low, full))
    assert ensemble.trainings == (Training(str(recipe)),)
    x = torch.rand(2, 1, 28, 28)
    loaded = ensemble.load(trainer)
    assert isinstance(loaded, Ensemble)
    logits = loaded.member_logits(x)
    assert torch.equal(logits, torch.stack([low.load(trainer)(x), full.load(trainer)(x)]))
    assert not isinstance(Voting("one", (full,)).load(trainer), Ensemble), "one network is attacked as one network"


def test_weights_the_user_has_to_give(trainer: Trainer) -> None:
    subject = Given("alexnet-fp")
    assert subject.given == ("alexnet-fp",)
    with pytest.raises(WeightsError, match=r"put its state dict in .*alexnet-fp\.safetensors"):
        subject.load(trainer)


def test_discretized_images_make_a_training_of_their_own(trainer: Trainer, recipe: Path) -> None:
    plain, coarse = Training(str(recipe)), Training(str(recipe), 2)
    trainer.trained(plain, "full")
    assert not trainer.is_trained(coarse)
    trainer.trained(coarse, "full")
    folders = sorted(path.name for path in trainer.workspace.training.iterdir())
    assert folders == ["tiny", "tiny-2bit"]
    weights = [(trainer.workspace.training / name / "full.safetensors").read_bytes() for name in folders]
    assert weights[0] != weights[1]
