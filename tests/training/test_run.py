"""Training learns, is reproducible bit for bit, and resumes after an interruption."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import load_file

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError, WeightsError
from empir_plugin.models.architectures import MNISTConv
from empir_plugin.models.packing import load_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import pgd
from empir_plugin.training.loop import Step
from empir_plugin.training.objectives import Adversarial, DistilledFrom, GradientPenalty
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import MemberRecipe

LP = MemberRecipe(
    "low", precision=Precision(2, 4), seed=5, epochs=3, batch_size=16, shift=1, flip=True, ema=0.5, warmup=0.2
)
FP = MemberRecipe(
    "full", precision=Precision(), seed=6, epochs=1, batch_size=16, label_smoothing=0.1, weight_decay=1e-4
)


ATTACKED = MemberRecipe(
    "full", 1, 1, 16, precision=Precision(), objective=Adversarial(pgd("Linf:0.1", steps=1, ramp=0.5))
)


def _recipe(*members: MemberRecipe) -> Recipe:
    return Recipe("tiny", "mnistconv", "mnist", members)


def test_training_writes_weights_history_and_the_ensemble(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    seen: list[Step] = []
    low, full = train_recipe(_recipe(LP, FP), tiny_mnist, tmp_path, on_step=seen.append)
    assert [line.keys() for line in low.history] == [{"loss", "accuracy", "seconds"}] * 3
    assert [(step.member, step.step, step.steps) for step in seen[-4:]] == [("low", 9, 9), *_steps_of_full()]
    model = MNISTConv(LP.precision)
    load_packed(model, low.weights, expected_sha256=low.sha256)
    assert full.weights.is_file()
    whole = load_file(tmp_path / "tiny.safetensors")
    assert {key.split(".")[1] for key in whole} == {"0", "1"}


def _steps_of_full() -> list[tuple[str, int, int]]:
    return [("full", step, 3) for step in (1, 2, 3)]


def test_training_learns(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    recipe = replace(FP, epochs=8, learning_rate=2e-3)
    (member,) = train_recipe(_recipe(recipe), tiny_mnist, tmp_path)
    assert member.history[0]["accuracy"] < 0.6 < 0.95 < member.history[-1]["accuracy"]


def test_a_resumed_run_gives_the_same_bits_and_repeats_no_epoch(
    toys: ModuleType, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    (whole,) = train_recipe(_recipe(LP), tiny_mnist, tmp_path / "whole")
    with pytest.raises(toys.KilledError):
        train_recipe(_recipe(LP), tiny_mnist, tmp_path / "cut", on_step=toys.kill_at(8))
    seen: list[int] = []
    (resumed,) = train_recipe(_recipe(LP), tiny_mnist, tmp_path / "cut", on_step=lambda at: seen.append(at.step))
    assert seen == [7, 8, 9], "epochs 1 and 2 were finished"
    assert resumed.sha256 == whole.sha256


def test_a_restart_ignores_the_checkpoint(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    train_recipe(_recipe(FP), tiny_mnist, tmp_path)
    seen: list[int] = []
    train_recipe(_recipe(FP), tiny_mnist, tmp_path, resume=False, on_step=lambda at: seen.append(at.step))
    assert seen == [1, 2, 3]


def test_another_seed_gives_other_weights(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    one, other = train_recipe(_recipe(FP, replace(FP, name="other", seed=7)), tiny_mnist, tmp_path)
    assert one.sha256 != other.sha256


def test_the_global_random_state_is_unchanged(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    train_recipe(_recipe(FP), tiny_mnist, tmp_path)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_diverging_run_stops(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="lower learning_rate"):
        train_recipe(_recipe(replace(FP, learning_rate=1e30, epochs=3)), tiny_mnist, tmp_path)


def test_the_wrong_data_or_architecture_is_refused(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="recipe tiny is for mnist, got images of cifar10"):
        train_recipe(_recipe(FP), replace(tiny_mnist, name="cifar10"), tmp_path)
    with pytest.raises(InputError, match=r"no architecture .resnet. in timm or RobustBench"):
        train_recipe(replace(_recipe(FP), architecture="resnet"), tiny_mnist, tmp_path)
    with pytest.raises(InputError, match="48 training images are fewer than a batch of 64"):
        train_recipe(_recipe(replace(FP, batch_size=64)), tiny_mnist, tmp_path)


def test_latent_weights_of_binary_layers_stay_within_their_clip(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    binary = replace(FP, precision=Precision.parse("w1a1"), learning_rate=0.5)
    train_recipe(replace(_recipe(binary), architecture="fcn2"), tiny_mnist, tmp_path)
    latent = load_file(tmp_path / "tiny.safetensors")
    largest = {key: value.abs().max().item() for key, value in latent.items() if value.ndim == 2}
    assert max(largest.values()) > 1, "the last layer is in full precision, and steps of 0.5 leave [-1, 1]"
    assert min(largest.values()) == 1


@pytest.fixture
def spoiling() -> Iterator[None]:
    """Every optimizer step writes NaN into the first weights."""
    original = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: None = None) -> None:
        original(self)
        with torch.no_grad():
            self.param_groups[0]["params"][0].fill_(float("nan"))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        yield


def test_an_error_before_the_first_checkpoint_says_so(spoiling: None, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"step 1, before the first checkpoint.*lower learning_rate"):
        train_recipe(_recipe(ATTACKED), tiny_mnist, tmp_path)


def test_weights_that_turn_nan_in_the_last_step_of_an_epoch_are_not_saved(
    spoiling: None, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=r"full stopped in step 0, .*: a weight is not finite"):
        train_recipe(_recipe(replace(ATTACKED, batch_size=48)), tiny_mnist, tmp_path)
    assert not (tmp_path / "full.checkpoint.safetensors").exists()


def test_a_diverging_run_keeps_its_last_good_checkpoint(
    toys: ModuleType, request: pytest.FixtureRequest, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    recipe = _recipe(replace(ATTACKED, epochs=2))
    with pytest.raises(toys.KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path, on_step=toys.kill_at(4))
    good = (tmp_path / "full.checkpoint.safetensors").read_bytes()
    request.getfixturevalue("spoiling")
    with pytest.raises(EvaluationError, match=r"full .*step 4.*epoch 1"):
        train_recipe(recipe, tiny_mnist, tmp_path)
    assert (tmp_path / "full.checkpoint.safetensors").read_bytes() == good


def test_a_student_learns_from_a_teacher_outside_the_ensemble(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    teacher = MemberRecipe("teacher", 1, 6, 16, 2e-3, precision=Precision(), in_ensemble=False)
    student = MemberRecipe(
        "student", 2, 6, 16, 2e-3, precision=Precision(), objective=DistilledFrom("teacher", 2.0, 0.0)
    )
    found = train_recipe(_recipe(teacher, student), tiny_mnist, tmp_path)
    assert [member.name for member in found] == ["teacher", "student"]
    assert found[1].history[-1]["accuracy"] > 0.9, "it has never seen a label"
    assert {key.split(".")[1] for key in load_file(tmp_path / "tiny.safetensors")} == {"0"}
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        _retrain_teacher_and_resume(teacher, student, tiny_mnist, tmp_path)


def _retrain_teacher_and_resume(teacher: MemberRecipe, student: MemberRecipe, data: ImageSet, out: Path) -> None:
    (out / "teacher.checkpoint.safetensors").unlink()
    train_recipe(_recipe(replace(teacher, seed=9), student), data, out)


def test_a_gradient_penalty_trains_a_recipe(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    (member,) = train_recipe(_recipe(replace(ATTACKED, objective=GradientPenalty(1.0), epochs=4)), tiny_mnist, tmp_path)
    assert member.history[-1]["loss"] < member.history[0]["loss"]
