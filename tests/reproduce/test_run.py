"""A whole reproduction: known numbers, resuming, errors before anything is computed; and the targets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from empir_plugin.data.image_set import load_images
from empir_plugin.errors import DataError, EvaluationError, InputError
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.packing import load_packed
from empir_plugin.reproduce.document import Picture, Table
from empir_plugin.reproduce.parts import Part
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS, TargetProgress, parse_targets, reproduce
from empir_plugin.reproduce.subjects import (
    DiscretizedSubject,
    EnsembleSubject,
    PostTrainingSubject,
    Subject,
    TrainedSubject,
    ZooSubject,
)
from empir_plugin.reproduce.workspace import Workspace
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import find_recipe, train_recipe
from empir_plugin.zoo.card import cards

Fill = Callable[[Target], None]

# The pixels of an image differ by twice the difference, and eps 0.1 is 25.5 steps: 30 is robust, 20 is broken. The last
# image is misclassified, and stays so under an attack with its true label.
DIFFERENCES, LABELS = [30, 20, -30, 10], [0, 0, 1, 1]


def _images(toys: ModuleType) -> Any:
    return toys.FixedImages(toys.pairs(DIFFERENCES, LABELS))


def test_numbers_records_and_report(workspace: Workspace, toys: ModuleType, tmp_path: Path) -> None:
    target = toys.target(toys.part("small", toys.LoggedFGSM(str(tmp_path / "log"))))
    progress: list[TargetProgress] = []
    reproduction = reproduce(
        [target], workspace, _images(toys), publish=tmp_path / "paper.md", known=[target],
        on_progress=progress.append,
    )  # fmt: skip
    assert reproduction.report == tmp_path / "paper.md"
    record = Results(workspace.records).record("small")
    assert (record.clean, record.attacks[0].robust) == ("1110", "1010")
    text = workspace.report.read_text()
    assert "| small | 50.00 |" in text
    assert "[small](reproduction/records/small.json)" in text
    assert "empir reproduce toys --n-examples 4" in text
    assert "[small](paper/records/small.json)" in (tmp_path / "paper.md").read_text()
    assert progress[0] == TargetProgress("toys", 0, 1, "small")
    assert progress[-1] == TargetProgress("toys", 1, 1, "done")
    assert TargetProgress("toys", 0, 1, "small: FGSM 4/4") in progress


def test_an_interrupted_run_resumes_without_computing_again(
    workspace: Workspace, toys: ModuleType, tmp_path: Path
) -> None:
    first, second, broken = tmp_path / "first", tmp_path / "second", tmp_path / "broken"
    target = toys.target(
        toys.part("one", toys.LoggedFGSM(str(first))), toys.part("two", toys.LoggedFGSM(str(second), str(broken)))
    )
    broken.touch()
    with pytest.raises(EvaluationError, match="killed"):
        reproduce([target], workspace, _images(toys), known=[target])
    assert (first.read_text(), second.exists(), workspace.report.exists()) == ("called\n", False, False)
    broken.unlink()
    reproduce([target], workspace, _images(toys), known=[target])
    assert (first.read_text(), second.read_text()) == ("called\n", "called\n")
    assert "| two | 50.00 |" in workspace.report.read_text()


def test_other_images_are_measured_anew_and_never_mixed(workspace: Workspace, toys: ModuleType, tmp_path: Path) -> None:
    log = tmp_path / "log"
    one, two = toys.part("one", toys.LoggedFGSM(str(log))), toys.part("two", toys.LoggedFGSM(str(log)))
    both = toys.target(one, two)
    reproduce([both], workspace, _images(toys), known=[both])
    assert log.read_text().count("called") == 1, "the same attack on the same network is computed once"
    reproduce([toys.target(one, name="half")], workspace, toys.FixedImages(toys.pairs([30], [0])), known=[both])
    assert log.read_text().count("called") == 2
    assert "Not shown: two was measured on other images" in workspace.report.read_text()


def test_an_incomplete_target_is_listed_with_its_command(workspace: Workspace, toys: ModuleType) -> None:
    target = toys.target(toys.part("one", toys.LoggedFGSM("")))
    reproduce([], workspace, _images(toys), known=[target])
    text = workspace.report.read_text()
    assert "Not shown: 1 of 1 records are missing, the first is one." in text
    assert "empir reproduce toys" in text


def test_a_folder_with_other_files_is_refused_before_anything_is_computed(
    workspace: Workspace, toys: ModuleType, tmp_path: Path
) -> None:
    workspace.root.mkdir()
    (workspace.root / "mine.txt").write_text("mine")
    target = toys.target(toys.part("one", toys.LoggedFGSM(str(tmp_path / "log"))))
    with pytest.raises(InputError, match=r"holds mine\.txt"):
        reproduce([target], workspace, _images(toys))
    assert [path.name for path in workspace.root.iterdir()] == ["mine.txt"]
    assert not (tmp_path / "log").exists()


def test_missing_training_images_are_reported_before_anything_is_computed(
    workspace: Workspace, toys: ModuleType, tmp_path: Path
) -> None:
    evaluation = toys.part("one", toys.LoggedFGSM(str(tmp_path / "log")))
    trained = TARGETS["fig1"].parts[0]
    assert isinstance(trained.subjects[0], TrainedSubject)
    target = toys.target(evaluation, trained)
    with pytest.raises(DataError, match=r"recipe precisions-mnist .* pass --data-dir"):
        reproduce([target], workspace, _images(toys))
    assert not workspace.root.exists()
    assert not (tmp_path / "log").exists()


def test_parts_without_the_users_weights_are_skipped_with_the_reason(workspace: Workspace, toys: ModuleType) -> None:
    target = Target("extras", "Extras", (), toys.ShowAccuracy(()), extras=TARGETS["table2"].extras[:1])
    reproduction = reproduce([target], workspace, _images(toys), known=[target])
    ((slug, reason),) = reproduction.skipped
    assert slug == "imagenet-baseline-released"
    assert "put its state dict (safetensors) in weights/alexnet-fp.safetensors" in reason
    assert "Not run: imagenet." in workspace.report.read_text()


def test_targets_by_name() -> None:
    assert parse_targets("all") == tuple(TARGETS.values())
    assert parse_targets("fig1") == (TARGETS["fig1"],)
    with pytest.raises(InputError, match=r"table2, fig1, fig3a, fig3b, fig4, fig5.*, all, got 'table3'"):
        parse_targets("table3")


def _all_parts() -> list[Part]:
    return [part for target in TARGETS.values() for part in (*target.parts, *target.extras)]


def test_parts_of_one_name_are_the_same_measurement() -> None:
    parts: dict[str, Part] = {}
    for part in _all_parts():
        assert parts.setdefault(part.slug, part) == part


def _single_networks(subject: Subject) -> list[Subject]:
    if isinstance(subject, PostTrainingSubject):
        return _single_networks(subject.base)
    if isinstance(subject, DiscretizedSubject):
        return [TrainedSubject(subject.recipe, subject.member)]
    if isinstance(subject, EnsembleSubject):
        return [network for member in subject.members for network in _single_networks(member)]
    return [subject]


def test_every_network_exists() -> None:
    networks = [network for part in _all_parts() for subject in part.subjects for network in _single_networks(subject)]
    assert networks
    for network in networks:
        if isinstance(network, TrainedSubject):
            assert network.name in {member.name for member in find_recipe(network.recipe).members}
        elif isinstance(network, ZooSubject):
            assert cards()[network.name].has_weights
        else:
            assert not cards()[network.name].has_weights


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_target_draws_its_pictures_and_fills_its_tables(name: str, workspace: Workspace, fill: Fill) -> None:
    target = TARGETS[name]
    fill(target)
    blocks = target.show(Results(workspace.records), workspace.figures)
    pictures = [block for block in blocks if isinstance(block, Picture)]
    assert pictures
    for picture in pictures:
        for ending in (".svg", ".png"):
            assert (workspace.figures / f"{picture.stem}{ending}").stat().st_size > 5000
    for block in blocks:
        if isinstance(block, Table):
            assert {len(row) for row in block.rows} == {len(block.header)}


RECIPES = sorted({training.recipe for target in TARGETS.values() for training in target.trainings})


def _shortened(recipe: Recipe) -> Recipe:
    """The recipe with two steps for each member."""
    return replace(recipe, members=tuple(replace(member, epochs=1, batch_size=8) for member in recipe.members))


def test_the_targets_have_recipes() -> None:
    assert {"table2-mnist", "table2-cifar", "discretization-mnist"} <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_every_member_of_a_recipe_can_be_trained_and_loaded(name: str, tmp_path: Path) -> None:
    recipe = _shortened(find_recipe(name))
    data = replace(load_images(recipe.dataset, n_examples=16), split="train")
    trained = train_recipe(recipe, data, tmp_path)
    assert [member.name for member in trained] == [member.name for member in recipe.members]
    x = data.batch(0, 2)[0]
    for files, member in zip(trained, recipe.members, strict=True):
        model = ARCHITECTURES[recipe.architecture](member.precision, scale=member.scale, num_classes=10)
        load_packed(model, files.weights, expected_sha256=files.sha256)
        assert torch.isfinite(model.eval()(x)).all()
