"""No name leads out of a folder: of a recipe, a member, a model, a record, a source or an entry."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from click.testing import CliRunner
from torch import nn

import empir_cli
from empir_plugin._entry_points import discover
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.leaderboard.evidence import SourceFile
from empir_plugin.leaderboard.papers import facts_of, require_stem
from empir_plugin.leaderboard.tree import Tree, source_file
from empir_plugin.models.quantize import Precision
from empir_plugin.training.quantization import QuantizationPlan
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.schedules import JointRecipe, MemberRecipe
from empir_plugin.zoo.builders import ModelBuilder
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.registry import register_family, register_quantized

NAMES = ("../x", "../../y", "/tmp/x", "a/b", "a\\b", "..", ".", "", "x" * 300, "C:x", "nul", "a\nb", ".x", "\u2025")
MEMBER = MemberRecipe("low", 1, 1, 48, precision=Precision(2, 4))
TOML = """
name = {recipe!r}
architecture = "mnistconv"
dataset = "mnist"
[[members]]
name = {member!r}
precision = "w2a4"
seed = 1
epochs = 1
batch_size = 48
"""

DOORS: dict[str, Callable[[str], object]] = {
    "recipe": lambda name: Recipe(name, "mnistconv", "mnist", (MEMBER,)),
    "member": lambda name: replace(MEMBER, name=name),
    "joint": lambda name: JointRecipe(name, 1, 1),
    "recipe as text": lambda name: Recipe.parse(TOML.format(recipe=name, member="low")),
    "member as text": lambda name: Recipe.parse(TOML.format(recipe="solo", member=name)),
    "quantization": lambda name: QuantizationPlan("mnistconv", replace(MEMBER, name=name)),
    "card": lambda name: replace(cards()["empir-cifar"], name=name),
    "network": lambda name: replace(cards()["empir-cifar"].networks[0], name=name),
    "model": lambda name: register_family(name, (ModelBuilder(lambda num_classes: nn.Flatten(), "cifar10"),)),
    "quantized model": lambda name: register_quantized(name, "resnet18", "w2a2"),
    "model of a paper": lambda name: replace(facts_of("empir-cifar"), model=name),
    "stem": require_stem,
    "source": lambda name: SourceFile(name, "0" * 64),
    "source in a folder": lambda name: SourceFile(f"aa/{name}/b.json", "0" * 64),
}
FOLDERS = {"source": {"a/b"}, "source in a folder": {"a/b", "/tmp/x", ".", ""}}
"""Paths of folders, which a source may have; ``.`` and nothing between two slashes are none."""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("door", DOORS)
def test_a_name_that_is_not_plain_is_refused_where_it_is_read(door: str, name: str) -> None:
    if name in FOLDERS.get(door, ()):
        assert DOORS[door](name)
        return
    with pytest.raises(InputError) as error:
        DOORS[door](name)
    assert len(str(error.value)) < 800


def test_an_entry_point_of_another_name_is_skipped_with_a_warning() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        points = [EntryPoint(name, "math:gcd", "group") for name in ("../x", "gcd", "a b")]
        assert list(discover(points, "model", lambda found: found, "function")) == ["gcd"]
    assert ["../x" in str(each.message) or "a b" in str(each.message) for each in caught] == [True, True]


@pytest.mark.parametrize("member", ["solo", "SOLO", "low", "LOW", "low.checkpoint", "low.checkpoint.previous"])
def test_two_files_of_a_recipe_have_different_names(member: str) -> None:
    with pytest.raises(InputError, match="rename"):
        Recipe("solo", "mnistconv", "mnist", (MEMBER, replace(MEMBER, name=member)))
    Recipe("solo", "mnistconv", "mnist", (MEMBER, replace(MEMBER, name=f"{member}-2")))


def test_a_member_is_not_named_as_the_checkpoint_of_the_joint_run() -> None:
    joint = JointRecipe("solo", 1, 1)
    with pytest.raises(InputError, match="rename"):
        Recipe("solo", "mnistconv", "mnist", (replace(MEMBER, name="solo.together.checkpoint"),), joint)


@pytest.mark.parametrize(("recipe", "member"), [("../x", "low"), ("solo", "../../y"), ("/tmp/x", "low"), ("", "low")])
def test_training_writes_nothing_outside_its_folder(
    recipe: str, member: str, tiny_mnist: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr("empir_plugin.data.image_set.load_images", lambda *args, **kwargs: tiny_mnist)
    Path("r.toml").write_text(TOML.format(recipe=recipe, member=member))
    result = CliRunner().invoke(empir_cli.main, ["train", "r.toml", "--data-dir", ".", "--out", "a/b/out"])
    assert result.exit_code == 2, result.output
    assert "rename it" in result.output
    assert [path.name for path in tmp_path.rglob("*")] == ["here", "r.toml"]


def test_a_source_is_named_by_the_same_rule(tmp_path: Path) -> None:
    (tmp_path / "aa (1).json").write_text("{}")
    with pytest.raises(InputError, match=r"name of a source.*aa \(1\).*rename it"):
        source_file(Tree(tmp_path / "tree"), tmp_path / "aa (1).json")
