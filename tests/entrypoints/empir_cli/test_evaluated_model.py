"""``empir evaluate RECIPE --trained FOLDER``: a trained ensemble under each rule, or one of its members."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result

import empir_cli
from empir_cli.evaluated_model import RULE_NAMES
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.record import Record
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.zoo.card import RULES

RECIPE = """
name = "tiny"
architecture = "mnistconv"
dataset = "mnist"

[defaults]
epochs = 1
batch_size = 16

[[members]]
name = "tiny-fp"
precision = "fp"
seed = 1

[[members]]
name = "tiny-w2a4"
precision = "w2a4"
seed = 2

[holdout]
images = 4
threat = "Linf:0.2"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    (out / "tiny.toml").write_text(RECIPE)
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train_recipe(
        Recipe.parse(RECIPE), ImageSet("mnist", "train", images, torch.arange(20) % 10, tuple("0123456789")), out
    )
    return out


def _run(folder: Path, *arguments: str) -> Result:
    options = ("--n-examples", "4", "--attack", "FGSM", "--record", str(folder / "record.json"))
    return CliRunner().invoke(empir_cli.main, ["evaluate", str(folder / "tiny.toml"), *options, *arguments])


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ((), "tiny (max_vote)"),
        (("--rule", "mean_probability"), "tiny (mean_probability)"),
        (("--rule", "mean_logits"), "tiny (mean_logits)"),
        (("--member", "tiny-w2a4"), "tiny-w2a4"),
    ],
)
def test_the_record_names_the_model_and_the_recipes_threat(folder: Path, arguments: tuple[str, ...], name: str) -> None:
    result = _run(folder, "--trained", str(folder), *arguments)
    assert result.exit_code == 0, result.output
    record = Record.read(folder / "record.json")
    assert (record.model["name"], record.threat, record.data["name"]) == (name, "Linf:0.2", "mnist")


def test_every_rule_and_member_is_another_model(folder: Path) -> None:
    digests = set()
    rules, members = ("max_vote", "mean_probability", "mean_logits"), ("tiny-fp", "tiny-w2a4")
    for arguments in (*(("--rule", rule) for rule in rules), *(("--member", name) for name in members)):
        assert _run(folder, "--trained", str(folder), *arguments).exit_code == 0
        digests.add(Record.read(folder / "record.json").model["sha256"])
    assert len(digests) == 5


def test_the_rule_names_are_those_of_the_model_cards() -> None:
    assert tuple(RULES) == RULE_NAMES


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--rule", "max_vote"), "pass --trained FOLDER, too"),
        (("--trained", ".", "--checkpoint", "x.safetensors"), "pass one of them"),
        (("--trained", ".", "--rule", "max_vote", "--member", "tiny-fp"), "pass one of them"),
        (("--trained", "nowhere"), "no weight file at nowhere"),
        (("--trained", ".", "--member", "tiny-w4a4"), "has the members tiny-fp, tiny-w2a4, got 'tiny-w4a4'"),
        (("--trained", ".", "--rule", "majority"), "'majority' is not one of"),
    ],
)
def test_contradictory_options_are_rejected(folder: Path, arguments: tuple[str, ...], sentence: str) -> None:
    result = _run(folder, *arguments)
    assert result.exit_code == 2
    assert sentence in " ".join(result.output.split())


def test_a_recipe_without_a_threat_needs_the_option(folder: Path) -> None:
    (folder / "other.toml").write_text(RECIPE.partition("[holdout]")[0])
    arguments = ["evaluate", str(folder / "other.toml"), "--trained", str(folder), "--n-examples", "2"]
    rejected = CliRunner().invoke(empir_cli.main, arguments)
    assert rejected.exit_code == 2
    assert "pass --threat" in rejected.output
    more = ["--threat", "Linf:0.1", "--attack", "FGSM", "--record", str(folder / "other.json")]
    assert CliRunner().invoke(empir_cli.main, [*arguments, *more]).exit_code == 0
