"""Members trained together: resumed runs give the same bits, and the finish stage checks its input files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.architectures import MNISTConv
from empir_plugin.models.packing import load_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.training.loop import Step
from empir_plugin.training.objectives import WeightPerturbed
from empir_plugin.training.recipe import HoldOut, Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import FinishRecipe


def test_a_run_resumed_in_either_stage_gives_the_same_bits(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    whole = train_recipe(toys.RECIPE, tiny_mnist, tmp_path / "whole")
    for name, step in (("full", 2), ("both", 5)):
        with pytest.raises(toys.KilledError):
            train_recipe(toys.RECIPE, tiny_mnist, tmp_path / "cut", on_step=toys.kill_at(step, name))
        assert not (tmp_path / "cut" / "full.safetensors").exists(), "half-trained weights have no file"
    seen: list[tuple[str, int]] = []
    resumed = train_recipe(
        toys.RECIPE, tiny_mnist, tmp_path / "cut", on_step=lambda at: seen.append((at.member, at.step))
    )
    assert seen == [("both", 4), ("both", 5), ("both", 6)], "what was finished is not repeated"
    assert toys.digests(resumed) == toys.digests(whole)
    report = json.loads((tmp_path / "whole" / "low.json").read_text())
    assert report["history"] == []
    assert len(report["joint"]["history"]) == 2
    assert "Adversarial" in report["joint"]["recipe"]["objective"]
    loaded = MNISTConv(toys.LP.precision, scale="max")
    load_packed(loaded, whole[1].weights, expected_sha256=whole[1].sha256)
    assert {key.split(".")[1] for key in load_file(tmp_path / "whole" / "both.safetensors")} == {"0", "1"}


def test_the_finish_stage_starts_from_the_selected_weights_and_resumes(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    finish = FinishRecipe("both", 4, 2, 16, objective=toys.ATTACKED, gce_q=0.5)
    recipe = replace(toys.RECIPE, finish=finish, holdout=HoldOut(16))
    train_recipe(replace(recipe, finish=None), tiny_mnist, tmp_path / "whole")
    before = json.loads((tmp_path / "whole" / "low.json").read_text())
    seen: list[Step] = []
    whole = train_recipe(recipe, tiny_mnist, tmp_path / "whole", on_step=seen.append)
    assert len(seen) == 4, "what was trained before is taken over"
    after = json.loads((tmp_path / "whole" / "low.json").read_text())
    assert after["joint"] == before["joint"]
    assert after["finish"]["recipe"]["gce_q"] == 0.5
    assert len(whole[1].history) == len(after["joint"]["history"]) + len(after["finish"]["history"]) == 4
    assert after["sha256"] != before["sha256"]
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / "both.finish.checkpoint.safetensors").unlink()
    with pytest.raises(toys.KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=toys.kill_at(4, "both"))
    assert toys.digests(train_recipe(recipe, tiny_mnist, tmp_path / "cut")) == toys.digests(whole)
    only = train_recipe(recipe, tiny_mnist, tmp_path / "only", finish_from=tmp_path / "whole" / "joint")
    assert toys.digests(only) == toys.digests(whole), "files are all that is handed on"
    assert json.loads((tmp_path / "only" / "low.json").read_text())["joint"] == before["joint"]
    changes = [replace(recipe, finish=replace(finish, gce_q=0.25)), replace(recipe, joint=replace(toys.JOINT, seed=9))]
    for changed in changes:
        with pytest.raises(WeightsError, match="belongs to another recipe"):
            train_recipe(changed, tiny_mnist, tmp_path / "cut")


def test_members_are_trained_through_the_decision_rule_of_the_stage(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    finish = FinishRecipe("both", 4, 1, 16, rule="mean_logits")
    recipe = replace(toys.RECIPE, joint=replace(toys.JOINT, epochs=1), finish=finish)
    trained = train_recipe(recipe, tiny_mnist, tmp_path)
    assert json.loads((tmp_path / "low.json").read_text())["finish"]["recipe"]["rule"] == "mean_logits"
    assert "rule" not in json.loads((tmp_path / "low.json").read_text())["joint"]["recipe"], "as before there were two"
    other = replace(recipe, finish=replace(finish, rule="mean_probability"))
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(other, tiny_mnist, tmp_path)
    again = train_recipe(other, tiny_mnist, tmp_path / "other", finish_from=tmp_path / "joint")
    assert not set(toys.digests(again)) & set(toys.digests(trained))
    with pytest.raises(InputError, match=r"rule of \[finish\] must be one of max_vote, mean_.*, got 'vote'"):
        replace(finish, rule="vote")


def test_the_finish_stage_writes_the_files_of_a_teacher_too(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    teacher, low = replace(toys.FP, in_ensemble=False), replace(toys.LP, start="", precision=Precision())
    recipe = replace(toys.RECIPE, members=(teacher, low), joint=replace(toys.JOINT, epochs=1))
    trained = train_recipe(replace(recipe, finish=FinishRecipe("both", 4, 1, 16)), tiny_mnist, tmp_path)
    assert [member.weights for member in trained] == [tmp_path / "full.safetensors", tmp_path / "low.safetensors"]
    assert trained[0].weights.read_bytes() == (tmp_path / "joint" / "full.safetensors").read_bytes()


def test_the_finish_stage_refuses_files_of_another_training(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    plain = replace(toys.RECIPE, members=(toys.FP, replace(toys.LP, start="")), joint=replace(toys.JOINT, epochs=1))
    recipe = replace(plain, finish=FinishRecipe("both", 4, 1, 16))
    train_recipe(plain, tiny_mnist, tmp_path / "plain")
    other = replace(recipe, joint=replace(toys.JOINT, epochs=2))
    with pytest.raises(WeightsError, match=r"full.json is not a training report: .* before \[finish\]"):
        train_recipe(other, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "plain")
    train_recipe(recipe, tiny_mnist, tmp_path / "further", finish_from=tmp_path / "plain")
    with pytest.raises(WeightsError, match=r"member 'full'.*\[finish\]"):
        train_recipe(recipe, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "further")
    shutil.copyfile(tmp_path / "further" / "low.safetensors", tmp_path / "plain" / "low.safetensors")
    with pytest.raises(WeightsError, match="damaged or not the published file"):
        train_recipe(recipe, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "plain")
    with pytest.raises(WeightsError, match="cannot be read"):
        train_recipe(recipe, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"recipe both has no \[finish\]"):
        train_recipe(plain, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "plain")


def test_training_with_perturbed_weights_resumes_to_the_same_bits(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    perturbed = replace(toys.JOINT, objective=WeightPerturbed(toys.ATTACKED, 0.05, warmup=0.5), batch_size=24)
    recipe = replace(toys.RECIPE, members=(replace(toys.FP, batch_size=48), toys.LP), joint=perturbed)
    whole = train_recipe(recipe, tiny_mnist, tmp_path / "whole")
    with pytest.raises(toys.KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=toys.kill_at(3, "both"))
    assert toys.digests(train_recipe(recipe, tiny_mnist, tmp_path / "cut")) == toys.digests(whole)
    unmoved = replace(recipe, joint=replace(perturbed, objective=toys.ATTACKED))
    plain = train_recipe(unmoved, tiny_mnist, tmp_path / "plain")
    pairs = zip(plain[0].history, whole[0].history, strict=True)
    assert [one["loss"] == other["loss"] for one, other in pairs] == [True, True, False], "only the epoch after warmup"


def test_a_member_starts_from_another_one(toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    first, still = replace(toys.FP, batch_size=48), replace(toys.JOINT, learning_rate=1e-12, epochs=1, batch_size=48)
    recipe = replace(toys.RECIPE, members=(first, toys.LP), joint=still)
    train_recipe(recipe, tiny_mnist, tmp_path / "one")
    state = load_file(tmp_path / "one" / "both.safetensors")
    assert torch.allclose(state["members.0.conv2.weight"], state["members.1.conv2.weight"], atol=1e-9)
    train_recipe(replace(recipe, members=(first, replace(toys.LP, start=""))), tiny_mnist, tmp_path / "other")
    state = load_file(tmp_path / "other" / "both.safetensors")
    assert not torch.allclose(state["members.0.conv2.weight"], state["members.1.conv2.weight"], atol=1e-3)


def test_a_first_stage_hands_on_its_average(toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    """Joint or apart, the second stage begins with the same weights; held-out images select only in the last stage."""
    first = replace(toys.FP, batch_size=32, ema=0.5, in_ensemble=False)
    on = replace(toys.LP, epochs=1, batch_size=32)
    apart = Recipe("both", "mnistconv", "mnist", (first, on), None, HoldOut(16))
    train_recipe(apart, tiny_mnist, tmp_path)
    assert "holdout" not in json.loads((tmp_path / "full.json").read_text())
    average = load_file(tmp_path / "full.checkpoint.safetensors")["average.conv2.weight"]
    assert torch.equal(load_file(tmp_path / "full.safetensors")["conv2.weight"], average)
    assert len(json.loads((tmp_path / "low.json").read_text())["holdout"]) == 2, "the last stage is chosen"
    train_recipe(replace(apart, members=(first, replace(on, start=""))), tiny_mnist, tmp_path / "teacher")
    assert len(json.loads((tmp_path / "teacher" / "full.json").read_text())["holdout"]) == 2, "nothing starts from it"


def test_held_out_images_select_the_weights(toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    holdout = HoldOut(16, Threat.parse("Linf:0.05"), steps=2)
    train_recipe(replace(toys.RECIPE, holdout=holdout), tiny_mnist, tmp_path)
    scores = json.loads((tmp_path / "full.json").read_text())["holdout"]
    assert [score["averaged"] for score in scores] == [[False, True], [False, False]]
    assert all(0 <= score["robust"] <= score["clean"] <= 1 for score in scores)
    with pytest.raises(InputError, match="8 training images are fewer than a batch of 16"):
        train_recipe(replace(toys.RECIPE, holdout=HoldOut(40)), tiny_mnist, tmp_path / "few")
