"""Discretized images, and networks trained on demand: once, resumable, never mixed up with another recipe's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import DataError, InputError, WeightsError
from empir_plugin.models.discretize import Discretized
from empir_plugin.reproduce.context import Discretize, Trainer
from empir_plugin.reproduce.subjects import Training
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
    with workspace.lock():
        return Trainer(workspace, toys.FixedImages(tiny_mnist, tiny_mnist), torch.device("cpu"))


def _without_data(trainer: Trainer, toys: ModuleType) -> Trainer:
    return replace(trainer, images=toys.FixedImages(trainer.images.test("mnist")))


def test_a_trained_network_is_kept_and_needs_no_images_again(trainer: Trainer, toys: ModuleType, recipe: Path) -> None:
    x = torch.rand(2, 1, 28, 28)
    assert not trainer.is_trained(Training(str(recipe)))
    first = trainer.load_member(Training(str(recipe)), "low")(x)
    assert trainer.is_trained(Training(str(recipe)))
    again = _without_data(trainer, toys).load_member(Training(str(recipe)), "low")
    assert torch.equal(again(x), first)
    assert not again.training
    report = trainer.workspace.records / "training" / "tiny" / "full.json"
    assert '"history"' in report.read_text()


def test_without_training_images_the_error_says_what_to_pass(trainer: Trainer, toys: ModuleType, recipe: Path) -> None:
    with pytest.raises(DataError, match="pass --data-dir"):
        _without_data(trainer, toys).load_member(Training(str(recipe)), "low")


def test_weights_of_another_version_of_the_recipe_are_refused_and_kept(trainer: Trainer, recipe: Path) -> None:
    trainer.load_member(Training(str(recipe)), "low")
    weights = trainer.workspace.training / "tiny" / "low.safetensors"
    before = weights.read_bytes()
    recipe.write_text(RECIPE.format(epochs=2))
    with pytest.raises(WeightsError, match=r"recipe tiny.*delete that folder"):
        trainer.load_member(Training(str(recipe)), "low")
    assert weights.read_bytes() == before


def test_damaged_weights_are_refused(trainer: Trainer, recipe: Path) -> None:
    trainer.load_member(Training(str(recipe)), "low")
    folder = trainer.workspace.training / "tiny"
    (folder / "low.safetensors").write_bytes((folder / "full.safetensors").read_bytes())
    with pytest.raises(WeightsError, match="SHA-256 is not that"):
        trainer.load_member(Training(str(recipe)), "low")
    (folder / "finished.json").write_text("{}")
    with pytest.raises(WeightsError, match="delete the folder"):
        trainer.load_member(Training(str(recipe)), "full")


def test_an_unknown_member_is_refused(trainer: Trainer, recipe: Path) -> None:
    with pytest.raises(InputError, match="low, full, got 'other'"):
        trainer.load_member(Training(str(recipe)), "other")


def test_training_on_discretized_images_is_a_training_of_its_own(trainer: Trainer, recipe: Path) -> None:
    plain, coarse = Training(str(recipe)), Training(str(recipe), 2)
    trainer.load_member(plain, "full")
    assert not trainer.is_trained(coarse)
    trainer.load_member(coarse, "full")
    folders = sorted(path.name for path in trainer.workspace.training.iterdir())
    assert folders == ["tiny", "tiny-2bit"]
    weights = [(trainer.workspace.training / name / "full.safetensors").read_bytes() for name in folders]
    assert weights[0] != weights[1]


def test_discretized_images_have_the_levels_the_network_sees(tiny_mnist: ImageSet) -> None:
    for bits in (1, 2, 4):
        data = Discretize(bits)(tiny_mnist)
        assert len(data.images.unique()) <= 2**bits
        network = Discretized(nn.Flatten(), bits, "round")
        x = data.as_float()
        assert torch.allclose(network(x), x.flatten(1), atol=1e-6), "discretizing twice changes nothing"
        assert torch.equal(data.labels, tiny_mnist.labels)
    assert torch.equal(Discretize(8)(tiny_mnist).images, tiny_mnist.images)


def test_images_are_stored_with_1_2_4_or_8_bits() -> None:
    with pytest.raises(InputError, match="1, 2, 4 or 8, got 3"):
        Discretize(3)


def test_discretization_removes_half_a_level_and_no_more() -> None:
    """Levels of 2 bits are 1/3 apart: eps 0.1 moves no discretized pixel, eps 0.2 moves them all, as in the paper."""
    network = Discretized(nn.Flatten(), 2, "round")
    x = torch.tensor([[[[0.0, 1 / 3, 2 / 3]]]])
    assert torch.equal(network(x + 0.1), network(x))
    assert (network(x + 0.2) > network(x)).all()
    raw = torch.tensor([[[[0.1, 0.4, 0.45]]]])
    assert (network(raw + 0.1) > network(raw)).any(), "an attack on the raw image does move pixels"
