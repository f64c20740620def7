"""Members trained together: same bits after a kill, and nothing resumed that does not belong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError, WeightsError
from empir_plugin.models.architectures import MNISTConv
from empir_plugin.models.packing import load_packed
from empir_plugin.models.precision import Precision
from empir_plugin.training.adversary import pgd
from empir_plugin.training.loop import Step
from empir_plugin.training.objectives import Adversarial, DistilledFrom, GradientPenalty, WeightPerturbed, clean
from empir_plugin.training.recipe import HoldOut, Recipe, find_recipe
from empir_plugin.training.run import TrainedMember, train_recipe
from empir_plugin.training.schedules import FinishRecipe, JointRecipe, MemberRecipe, settings_of

ATTACKED = Adversarial(pgd("Linf:0.1", steps=1, ramp=0.5))
FP = MemberRecipe("full", 1, 1, 16, precision=Precision(), objective=ATTACKED)
LP = MemberRecipe("low", 2, 0, 16, precision=Precision(4, 4), scale="max", ema=0.5, start="full")
JOINT = JointRecipe("both", 3, 2, 16, objective=ATTACKED, member_share=0.2)
RECIPE = Recipe("both", "mnistconv", "mnist", (FP, LP), JOINT)


class _KilledError(Exception):
    pass


def _kill_at(name: str, number: int) -> Callable[[Step], None]:
    def on_step(at: Step) -> None:
        if (at.member, at.step) == (name, number):
            raise _KilledError

    return on_step


def _digests(members: tuple[TrainedMember, ...]) -> list[str]:
    return [member.sha256 for member in members]


def test_killed_in_either_stage_and_resumed_gives_the_same_bits(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    whole = train_recipe(RECIPE, tiny_mnist, tmp_path / "whole")
    for name, step in (("full", 2), ("both", 5)):
        with pytest.raises(_KilledError):
            train_recipe(RECIPE, tiny_mnist, tmp_path / "cut", on_step=_kill_at(name, step))
        assert not (tmp_path / "cut" / "full.safetensors").exists(), "half-trained weights have no file"
    seen: list[tuple[str, int]] = []
    resumed = train_recipe(RECIPE, tiny_mnist, tmp_path / "cut", on_step=lambda at: seen.append((at.member, at.step)))
    assert seen == [("both", 4), ("both", 5), ("both", 6)], "what was finished is not repeated"
    assert _digests(resumed) == _digests(whole)
    report = json.loads((tmp_path / "whole" / "low.json").read_text())
    assert report["history"] == []
    assert len(report["joint"]["history"]) == 2
    assert "Adversarial" in report["joint"]["recipe"]["objective"]
    loaded = MNISTConv(LP.precision, scale="max")
    load_packed(loaded, whole[1].weights, expected_sha256=whole[1].sha256)
    assert {key.split(".")[1] for key in load_file(tmp_path / "whole" / "both.safetensors")} == {"0", "1"}


def test_a_last_run_together_goes_on_from_the_chosen_weights_and_is_resumed(
    tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    finish = FinishRecipe("both", 4, 2, 16, objective=ATTACKED, gce_q=0.5)
    recipe = replace(RECIPE, finish=finish, holdout=HoldOut(16))
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
    with pytest.raises(_KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=_kill_at("both", 4))
    assert _digests(train_recipe(recipe, tiny_mnist, tmp_path / "cut")) == _digests(whole)
    only = train_recipe(recipe, tiny_mnist, tmp_path / "only", finish_from=tmp_path / "whole" / "joint")
    assert _digests(only) == _digests(whole), "files are all that is handed on"
    assert json.loads((tmp_path / "only" / "low.json").read_text())["joint"] == before["joint"]
    changes = [replace(recipe, finish=replace(finish, gce_q=0.25)), replace(recipe, joint=replace(JOINT, seed=9))]
    for changed in changes:
        with pytest.raises(WeightsError, match="belongs to another recipe"):
            train_recipe(changed, tiny_mnist, tmp_path / "cut")


def test_members_are_trained_through_the_rule_a_stage_names(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    finish = FinishRecipe("both", 4, 1, 16, rule="mean_logits")
    recipe = replace(RECIPE, joint=replace(JOINT, epochs=1), finish=finish)
    made = train_recipe(recipe, tiny_mnist, tmp_path)
    assert json.loads((tmp_path / "low.json").read_text())["finish"]["recipe"]["rule"] == "mean_logits"
    assert "rule" not in json.loads((tmp_path / "low.json").read_text())["joint"]["recipe"], "as before there were two"
    other = replace(recipe, finish=replace(finish, rule="mean_probability"))
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(other, tiny_mnist, tmp_path)
    again = train_recipe(other, tiny_mnist, tmp_path / "other", finish_from=tmp_path / "joint")
    assert not set(_digests(again)) & set(_digests(made))
    with pytest.raises(InputError, match=r"rule of \[finish\] must be one of max_vote, mean_.*, got 'vote'"):
        replace(finish, rule="vote")


def test_a_last_run_leaves_a_teacher_s_files_too(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    teacher, low = replace(FP, in_ensemble=False), replace(LP, start="", precision=Precision())
    recipe = replace(RECIPE, members=(teacher, low), joint=replace(JOINT, epochs=1))
    made = train_recipe(replace(recipe, finish=FinishRecipe("both", 4, 1, 16)), tiny_mnist, tmp_path)
    assert [member.weights for member in made] == [tmp_path / "full.safetensors", tmp_path / "low.safetensors"]
    assert made[0].weights.read_bytes() == (tmp_path / "joint" / "full.safetensors").read_bytes()


def test_a_last_run_takes_nothing_but_what_its_recipe_trains_before_it(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    plain = replace(RECIPE, members=(FP, replace(LP, start="")), joint=replace(JOINT, epochs=1))
    recipe = replace(plain, finish=FinishRecipe("both", 4, 1, 16))
    train_recipe(plain, tiny_mnist, tmp_path / "plain")
    other = replace(recipe, joint=replace(JOINT, epochs=2))
    with pytest.raises(WeightsError, match=r"full.json is no training report: .* before \[finish\]"):
        train_recipe(other, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "plain")
    train_recipe(recipe, tiny_mnist, tmp_path / "further", finish_from=tmp_path / "plain")
    with pytest.raises(WeightsError, match="trained otherwise, or further"):
        train_recipe(recipe, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "further")
    shutil.copyfile(tmp_path / "further" / "low.safetensors", tmp_path / "plain" / "low.safetensors")
    with pytest.raises(WeightsError, match="damaged or not the published file"):
        train_recipe(recipe, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "plain")
    with pytest.raises(WeightsError, match="cannot be read"):
        train_recipe(recipe, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"recipe both has no \[finish\]"):
        train_recipe(plain, tiny_mnist, tmp_path / "out", finish_from=tmp_path / "plain")


def test_perturbed_weights_leave_training_resumable_to_the_same_bits(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    perturbed = replace(JOINT, objective=WeightPerturbed(ATTACKED, 0.05, warmup=0.5), batch_size=24)
    recipe = replace(RECIPE, members=(replace(FP, batch_size=48), LP), joint=perturbed)
    whole = train_recipe(recipe, tiny_mnist, tmp_path / "whole")
    with pytest.raises(_KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=_kill_at("both", 3))
    assert _digests(train_recipe(recipe, tiny_mnist, tmp_path / "cut")) == _digests(whole)
    unmoved = replace(recipe, joint=replace(perturbed, objective=ATTACKED))
    plain = train_recipe(unmoved, tiny_mnist, tmp_path / "plain")
    pairs = zip(plain[0].history, whole[0].history, strict=True)
    assert [one["loss"] == other["loss"] for one, other in pairs] == [True, True, False], "only the epoch after warmup"


def test_a_member_starts_from_another_one(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    first, still = replace(FP, batch_size=48), replace(JOINT, learning_rate=1e-12, epochs=1, batch_size=48)
    recipe = replace(RECIPE, members=(first, LP), joint=still)
    train_recipe(recipe, tiny_mnist, tmp_path / "one")
    state = load_file(tmp_path / "one" / "both.safetensors")
    assert torch.allclose(state["members.0.conv2.weight"], state["members.1.conv2.weight"], atol=1e-9)
    train_recipe(replace(recipe, members=(first, replace(LP, start=""))), tiny_mnist, tmp_path / "other")
    state = load_file(tmp_path / "other" / "both.safetensors")
    assert not torch.allclose(state["members.0.conv2.weight"], state["members.1.conv2.weight"], atol=1e-3)


def test_a_changed_recipe_is_not_resumed(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    full, low, joint = (replace(run, batch_size=32) for run in (FP, LP, JOINT))
    recipe = replace(RECIPE, members=(full, low), joint=joint)
    changes = [
        replace(recipe, joint=replace(joint, objective=clean)),
        replace(recipe, joint=replace(joint, member_share=0.0)),
        replace(recipe, joint=replace(joint, objective=WeightPerturbed(ATTACKED, 5e-3))),
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


def test_the_name_of_an_old_run_has_not_changed() -> None:
    member = MemberRecipe("m", 1, 2, precision=Precision(2, 4))
    assert settings_of(member) == {
        "name": "m", "seed": 1, "epochs": 2, "batch_size": 128, "learning_rate": 1e-3, "warmup": 0.0,
        "weight_decay": 0.0, "label_smoothing": 0.0, "shift": 0, "flip": False, "scale": "none", "ema": 0.0,
        "precision": {"weight_bits": 2, "activation_bits": 4},
    }  # fmt: skip
    assert settings_of(replace(member, start="n", in_ensemble=False)).keys() - settings_of(member).keys() == {
        "start",
        "in_ensemble",
    }


EIGHT, NINE, TEN = (f"eps={eps / 255}, eps_text='{eps}/255'" for eps in (8, 9, 10))
PGD_2 = (
    f"Adversarial(adversary=Adversary(threat=Threat(norm=Linf(), {EIGHT}), steps=2, "
    "step=0.75, start=Noise(ratio=1.0), ramp=0.0, reach=1.0, spread=False), clean_share=0.0)"
)


def test_the_names_of_the_robust_recipes_runs_have_not_changed() -> None:
    recipe = find_recipe("empir-cifar-at")
    assert recipe.joint is not None
    assert settings_of(recipe.joint) == {
        "name": "empir-cifar-at", "seed": 14, "epochs": 26, "batch_size": 128, "learning_rate": 2e-3, "warmup": 0.1,
        "weight_decay": 0.0, "label_smoothing": 0.0, "shift": 2, "flip": True, "member_share": 0.1,
        "objective": PGD_2.replace(EIGHT, NINE),
    }  # fmt: skip
    assert recipe.finish is not None
    assert settings_of(recipe.finish) == {
        **settings_of(recipe.joint), "seed": 19, "epochs": 16, "learning_rate": 2e-3, "shift": 0, "member_share": 0.0,
        "gce_q": 0.5, "compute": "bfloat16", "rule": "mean_logits", "objective": PGD_2.replace(EIGHT, TEN),
    }  # fmt: skip
    assert [settings_of(member)["objective"] for member in recipe.members] == [PGD_2] * 3
    distilled = find_recipe("mnistconv-defences").members[4]
    expected = "DistilledFrom(teacher='mnistconv-teacher', temperature=100.0, label_share=0.5)"
    assert settings_of(distilled)["objective"] == expected


def test_a_checkpoint_names_its_run(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    train_recipe(_alone(replace(FP, batch_size=48)), tiny_mnist, tmp_path)
    with safe_open(tmp_path / "full.checkpoint.safetensors", framework="pt") as file:
        identity = (file.metadata() or {})["identity"]
    attacked = PGD_2.replace(EIGHT, "eps=0.1, eps_text='0.1'")
    attacked = attacked.replace("steps=2, step=0.75", "steps=1, step=1.0").replace("ramp=0.0", "ramp=0.5")
    assert identity == (
        f'{{"architecture": "mnistconv", "data": "{tiny_mnist.fingerprint}", "model": "MNISTConv", "recipe": '
        '{"batch_size": 48, "ema": 0.0, "epochs": 1, "flip": false, "label_smoothing": 0.0, "learning_rate": 0.001, '
        '"name": "full", '
        f'"objective": "{attacked}", "precision": {{"activation_bits": 32, "weight_bits": 32}}, "scale": "none", '
        '"seed": 1, "shift": 0, "warmup": 0.0, "weight_decay": 0.0}}'
    )


def _renamed(checkpoint: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change what a checkpoint says of its run."""
    with safe_open(checkpoint, framework="pt") as file:
        metadata = dict(file.metadata() or {})
    facts = json.loads(metadata["identity"])
    change(facts)
    save_file(load_file(checkpoint), checkpoint, {**metadata, "identity": json.dumps(facts, sort_keys=True)})


def test_a_checkpoint_from_before_architectures_were_named_still_serves(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    recipe = _alone(replace(FP, epochs=2))
    whole = train_recipe(recipe, tiny_mnist, tmp_path / "whole")
    with pytest.raises(_KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=_kill_at("full", 4))
    checkpoint = tmp_path / "cut" / "full.checkpoint.safetensors"
    _renamed(checkpoint, lambda facts: facts.pop("architecture"))
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(_alone(replace(FP, epochs=2, seed=9)), tiny_mnist, tmp_path / "cut")
    seen: list[int] = []
    resumed = train_recipe(recipe, tiny_mnist, tmp_path / "cut", on_step=lambda at: seen.append(at.step))
    assert seen == [4, 5, 6], "the first epoch is not repeated"
    assert _digests(resumed) == _digests(whole)


@pytest.mark.parametrize("joint", [None, replace(JOINT, batch_size=48, epochs=1)], ids=["alone", "together"])
def test_architectures_of_one_class_do_not_resume_each_other(
    joint: JointRecipe | None, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    member = MemberRecipe("full", 1, 0 if joint else 1, 48, precision=Precision.parse("w1a1"))
    recipe = Recipe("both", "fcn2", "mnist", (member,), joint)
    train_recipe(recipe, tiny_mnist, tmp_path)
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(replace(recipe, architecture="fcn2-xnor"), tiny_mnist, tmp_path)
    steps: list[Step] = []
    train_recipe(recipe, tiny_mnist, tmp_path, on_step=steps.append)
    assert not steps, "its own it does"


def test_a_first_stage_hands_on_its_average_whatever_follows(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    """Joint or apart, the second stage begins with the same weights; images kept back choose among last ones only."""
    first = replace(FP, batch_size=32, ema=0.5, in_ensemble=False)
    on = replace(LP, epochs=1, batch_size=32)
    apart = Recipe("both", "mnistconv", "mnist", (first, on), None, HoldOut(16))
    train_recipe(apart, tiny_mnist, tmp_path)
    assert "holdout" not in json.loads((tmp_path / "full.json").read_text())
    average = load_file(tmp_path / "full.checkpoint.safetensors")["average.conv2.weight"]
    assert torch.equal(load_file(tmp_path / "full.safetensors")["conv2.weight"], average)
    assert len(json.loads((tmp_path / "low.json").read_text())["holdout"]) == 2, "the last stage is chosen"
    train_recipe(replace(apart, members=(first, replace(on, start=""))), tiny_mnist, tmp_path / "teacher")
    assert len(json.loads((tmp_path / "teacher" / "full.json").read_text())["holdout"]) == 2, "nothing starts from it"


def test_a_checkpoint_serves_whether_or_not_the_network_becomes_a_member(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    teacher, student = replace(FP, name="teacher", epochs=2), replace(FP, name="student")
    recipe = Recipe("both", "mnistconv", "mnist", (teacher, student))
    train_recipe(recipe, tiny_mnist, tmp_path)
    steps: list[Step] = []
    changed = replace(recipe, members=(replace(teacher, in_ensemble=False), student))
    train_recipe(changed, tiny_mnist, tmp_path, on_step=steps.append)
    assert not steps, "both are finished"
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        train_recipe(replace(recipe, members=(replace(teacher, seed=9), student)), tiny_mnist, tmp_path)


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


def _alone(*members: MemberRecipe) -> Recipe:
    return Recipe("solo", "mnistconv", "mnist", members)


def test_a_run_without_an_epoch_to_keep_says_so(spoiling: None, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"in step 1, it had finished no epoch: .*; lower learning_rate"):
        train_recipe(_alone(FP), tiny_mnist, tmp_path)


def test_weights_spoiled_in_the_last_step_of_an_epoch_are_not_kept(
    spoiling: None, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    with pytest.raises(EvaluationError, match=r"full stopped in step 0, .*: a weight is not finite"):
        train_recipe(_alone(replace(FP, batch_size=48)), tiny_mnist, tmp_path)
    assert not (tmp_path / "full.checkpoint.safetensors").exists()


def test_a_diverging_run_keeps_its_last_good_checkpoint(
    request: pytest.FixtureRequest, tiny_mnist: ImageSet, tmp_path: Path
) -> None:
    recipe = _alone(replace(FP, epochs=2))
    with pytest.raises(_KilledError):
        train_recipe(recipe, tiny_mnist, tmp_path, on_step=_kill_at("full", 4))
    good = (tmp_path / "full.checkpoint.safetensors").read_bytes()
    request.getfixturevalue("spoiling")
    with pytest.raises(EvaluationError, match="full stopped in step 4, its checkpoint of epoch 1 is kept"):
        train_recipe(recipe, tiny_mnist, tmp_path)
    assert (tmp_path / "full.checkpoint.safetensors").read_bytes() == good


def test_a_student_learns_from_its_teacher_who_stays_outside(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    teacher = MemberRecipe("teacher", 1, 6, 16, 2e-3, precision=Precision(), in_ensemble=False)
    student = MemberRecipe(
        "student", 2, 6, 16, 2e-3, precision=Precision(), objective=DistilledFrom("teacher", 2.0, 0.0)
    )
    found = train_recipe(_alone(teacher, student), tiny_mnist, tmp_path)
    assert [member.name for member in found] == ["teacher", "student"]
    assert found[1].history[-1]["accuracy"] > 0.9, "it has never seen a label"
    assert {key.split(".")[1] for key in load_file(tmp_path / "solo.safetensors")} == {"0"}
    with pytest.raises(WeightsError, match="belongs to another recipe"):
        _retrain_teacher_and_resume(teacher, student, tiny_mnist, tmp_path)


def _retrain_teacher_and_resume(teacher: MemberRecipe, student: MemberRecipe, data: ImageSet, out: Path) -> None:
    (out / "teacher.checkpoint.safetensors").unlink()
    train_recipe(_alone(replace(teacher, seed=9), student), data, out)


def test_a_gradient_penalty_trains_a_recipe(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    (member,) = train_recipe(_alone(replace(FP, objective=GradientPenalty(1.0), epochs=4)), tiny_mnist, tmp_path)
    assert member.history[-1]["loss"] < member.history[0]["loss"]


def test_images_kept_back_choose_the_weights(tiny_mnist: ImageSet, tmp_path: Path) -> None:
    holdout = HoldOut(16, Threat.parse("Linf:0.05"), steps=2)
    train_recipe(replace(RECIPE, holdout=holdout), tiny_mnist, tmp_path)
    scores = json.loads((tmp_path / "full.json").read_text())["holdout"]
    assert [score["averaged"] for score in scores] == [[False, True], [False, False]]
    assert all(0 <= score["robust"] <= score["clean"] <= 1 for score in scores)
    with pytest.raises(InputError, match="8 training images are fewer than a batch of 16"):
        train_recipe(replace(RECIPE, holdout=HoldOut(40)), tiny_mnist, tmp_path / "few")
