"""Checkpoints resume their own run, to the same bits, and no other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import WeightsError
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import pgd
from empir_plugin.training.loop import Step
from empir_plugin.training.objectives import Adversarial, WeightPerturbed, clean
from empir_plugin.training.recipe import HoldOut, Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import MemberRecipe


def _alone(*members: MemberRecipe) -> Recipe:
    return Recipe("solo", "mnistconv", "mnist", members)


def test_a_checkpoint_names_its_run(toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    train_recipe(_alone(replace(toys.FP, batch_size=48)), tiny_mnist, tmp_path)
    with safe_open(tmp_path / "full.checkpoint.safetensors", framework="pt") as file:
        identity = (file.metadata() or {})["identity"]
    attacked = (
        "Adversarial(adversary=Adversary(threat=Threat(norm=Linf(), eps=0.1, eps_text='0.1'), steps=1, step=1.0, "
        "start=Noise(ratio=1.0), ramp=0.5, reach=1.0, spread=False), clean_share=0.0)"
    )
    assert identity == (
        f'{{"architecture": "mnistconv", "data": "{tiny_mnist.fingerprint}", "model": "MNISTConv", "recipe": '
        '{"batch_size": 48, "ema": 0.0, "epochs": 1, "flip": false, "label_smoothing": 0.0, "learning_rate": 0.001, '
        '"name": "full", '
        f'"objective": "{attacked}", "precision": {{"activation_bits": 32, "weight_bits": 32}}, "scale": "none", '
        '"seed": 1, "shift": 0, "warmup": 0.0, "weight_decay": 0.0}}'
    )


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    train_recipe(_alone(toys.FP), tiny_mnist, tmp_path)
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(_alone(replace(toys.FP, seed=8)), tiny_mnist, tmp_path)
    checkpoint = tmp_path / "full.checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:100])
    with pytest.raises(WeightsError, match="is damaged"):
        train_recipe(_alone(toys.FP), tiny_mnist, tmp_path)


def _renamed(checkpoint: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change what a checkpoint says of its run, as one of the first, which had no checksum."""
    with safe_open(checkpoint, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    del metadata["sha256"]
    facts = json.loads(metadata["identity"])
    change(facts)
    save_file(load_file(checkpoint), checkpoint, {**metadata, "identity": json.dumps(facts, sort_keys=True)})


def test_a_checkpoint_without_an_architecture_still_resumes(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    recipe = _alone(replace(toys.FP, epochs=2))
    whole = train_recipe(recipe, tiny_mnist, tmp_path / "whole")
    with pytest.raises(toys.KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=toys.kill_at(4, "full"))
    checkpoint = tmp_path / "cut" / "full.checkpoint.safetensors"
    _renamed(checkpoint, lambda facts: facts.pop("architecture"))
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(_alone(replace(toys.FP, epochs=2, seed=9)), tiny_mnist, tmp_path / "cut")
    seen: list[int] = []
    resumed = train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=lambda at: seen.append(at.step))
    assert seen == [4, 5, 6], "the first epoch is not repeated"
    assert toys.digests(resumed) == toys.digests(whole)


@pytest.mark.parametrize("together", [False, True], ids=["alone", "together"])
def test_architectures_of_one_class_do_not_resume_each_others_runs(
    toys: ModuleType, together: bool, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    joint = replace(toys.JOINT, batch_size=48, epochs=1) if together else None
    member = MemberRecipe("full", 1, 0 if joint else 1, 48, precision=Precision.parse("w1a1"))
    recipe = Recipe("both", "fcn2", "mnist", (member,), joint)
    train_recipe(recipe, tiny_mnist, tmp_path)
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(replace(recipe, architecture="fcn2-xnor"), tiny_mnist, tmp_path)
    steps: list[Step] = []
    train_recipe(recipe, tiny_mnist, tmp_path, on_step=steps.append)
    assert not steps, "its own it does"


def test_a_checkpoint_resumes_whether_or_not_the_network_joins_the_ensemble(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    teacher, student = replace(toys.FP, name="teacher", epochs=2), replace(toys.FP, name="student")
    recipe = Recipe("both", "mnistconv", "mnist", (teacher, student))
    train_recipe(recipe, tiny_mnist, tmp_path)
    steps: list[Step] = []
    changed = replace(recipe, members=(replace(teacher, in_ensemble=False), student))
    train_recipe(changed, tiny_mnist, tmp_path, on_step=steps.append)
    assert not steps, "both are finished"
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(replace(recipe, members=(replace(teacher, seed=9), student)), tiny_mnist, tmp_path)


def test_a_changed_recipe_is_not_resumed(toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    full, low, joint = (replace(run, batch_size=32) for run in (toys.FP, toys.LP, toys.JOINT))
    recipe = replace(toys.RECIPE, members=(full, low), joint=joint)
    changes = [
        replace(recipe, joint=replace(joint, objective=clean)),
        replace(recipe, joint=replace(joint, member_share=0.0)),
        replace(recipe, joint=replace(joint, objective=WeightPerturbed(toys.ATTACKED, 5e-3))),
        replace(recipe, members=(full, replace(low, ema=0.0))),
        replace(recipe, members=(full, replace(low, start=""))),
        replace(recipe, members=(replace(full, objective=Adversarial(pgd("Linf:0.2", steps=1))), low)),
        replace(recipe, holdout=HoldOut(16)),
    ]
    train_recipe(recipe, tiny_mnist, tmp_path)
    kept = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    for changed in changes:
        with pytest.raises(WeightsError, match="belongs to another recipe"):
            train_recipe(changed, tiny_mnist, tmp_path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == kept
