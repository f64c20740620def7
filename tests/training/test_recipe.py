"""Recipes are data, and bad ones are refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from empir_plugin._files import tables as _toml
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.precision import Precision
from empir_plugin.training.adversary import pgd
from empir_plugin.training.objectives import Adversarial, clean
from empir_plugin.training.recipe import HoldOut, Recipe, find_recipe, recipe_names, recipe_text
from empir_plugin.training.schedules import FinishRecipe, JointRecipe, MemberRecipe
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.quantized.architectures import network

MEMBER = """
[[members]]
name = "m"
precision = "w2a2"
seed = 1
epochs = 2
"""
OTHER = MEMBER.replace('"m"', '"n"')
OBJECTIVE = "[objective]\nkind = 'adversarial'\nadversary = { kind = 'pgd', threat = 'Linf:0.3', steps = 2 }\n"
JOINT = "\n[joint]\nseed = 3\nepochs = 4\nmember_share = 0.5\n"
FINISH = "\n[finish]\nseed = 5\nepochs = 6\ngce_q = 0.25\n"
HEAD = 'name = "r"\narchitecture = "mnistconv"\ndataset = "mnist"\n'


def test_defaults_reach_every_member_and_a_member_overrides_them() -> None:
    text = HEAD + "[defaults]\nflip = true\nepochs = 9\n" + MEMBER + OTHER.replace("epochs = 2", "")
    assert [(member.flip, member.epochs) for member in Recipe.parse(text).members] == [(True, 2), (True, 9)]


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_sound(name: str) -> None:
    recipe = find_recipe(name)
    runs = [*recipe.members, *recipe.stages.values()]
    assert recipe.name == name
    assert recipe.architecture in ARCHITECTURES or network(recipe.architecture, num_classes=10)
    assert len({run.seed for run in runs}) == len(runs), "every run has its own seed"


@pytest.mark.parametrize("name", sorted(cards().keys() & set(recipe_names())))
def test_recipes_of_model_cards_train_what_the_cards_describe(name: str) -> None:
    trained = [(m.name, m.precision, m.scale) for m in find_recipe(name).members if m.in_ensemble]
    assert trained == [(n.name, n.precision, n.scale) for n in cards()[name].networks]


def test_member_names_are_unique_over_all_recipes_that_are_no_ablation_of_another() -> None:
    own = [name for name in recipe_names() if "extends" not in _toml.loads(recipe_text(name))]
    names = [member.name for name in own for member in find_recipe(name).members]
    assert len(set(names)) == len(names)


def test_the_objective_holds_for_all_and_a_member_or_the_joint_run_may_have_its_own() -> None:
    text = HEAD + OBJECTIVE + MEMBER + "objective = { kind = 'clean' }" + OTHER + JOINT
    one, two = Recipe.parse(text).members
    joint = Recipe.parse(text).joint
    assert (one.objective, two.objective) == (clean, Adversarial(pgd("Linf:0.3", steps=2)))
    assert joint == JointRecipe("r", 3, 4, objective=two.objective, member_share=0.5)
    own = Recipe.parse(text + "[joint.objective]\nkind = 'clean'\n").joint
    assert own is not None
    assert own.objective == clean


def test_defaults_reach_the_joint_run_where_it_has_the_key() -> None:
    joint = Recipe.parse(HEAD + "[defaults]\nbatch_size = 7\nema = 0.5\n" + MEMBER + JOINT).joint
    assert joint is not None
    assert joint.batch_size == 7


def test_a_last_run_together_has_settings_of_its_own() -> None:
    text = HEAD + "[defaults]\nbatch_size = 7\n" + OBJECTIVE + MEMBER + JOINT + FINISH
    recipe = Recipe.parse(text + "[finish.objective]\nkind = 'clean'\n")
    assert recipe.finish == FinishRecipe("r", 5, 6, 7, gce_q=0.25)
    assert list(recipe.stages) == ["joint", "finish"]
    assert [stage.run for stage in recipe.stages.values()] == ["r.together", "r.finish"]
    assert "finish" not in Recipe.parse(HEAD + MEMBER + JOINT).stages


@pytest.mark.parametrize("key", ["member_share", "label_smoothing", "gce_q"])
def test_what_a_distillation_without_labels_ignores_is_refused(key: str) -> None:
    joint = "\n[joint]\nseed = 3\nepochs = 4\n"
    with pytest.raises(InputError, match=rf"{key} of \[joint\] is 0.25, which its objective 'distilled' ignores"):
        Recipe.parse(HEAD + MEMBER + joint + f"{key} = 0.25\n" + DISTILLED)
    labelled = DISTILLED.replace(" }", ", label_share = 0.5 }")
    for settings in (f"{key} = 0.25\n{labelled}", f"{key} = 0.0\n{DISTILLED}", f"{key} = 0.25\n"):
        assert Recipe.parse(HEAD + MEMBER + joint + settings).joint is not None


def test_a_student_without_labels_has_none_to_smooth() -> None:
    student = MEMBER.replace("'m'", "'n'").replace('"m"', '"n"') + DISTILLED
    assert len(Recipe.parse(HEAD + MEMBER + student).members) == 2
    with pytest.raises(InputError, match=r"label_smoothing of member 'n' is 0.1, which its objective"):
        Recipe.parse(HEAD + MEMBER + student + "label_smoothing = 0.1\n")


def test_a_holdout_may_do_without_a_threat() -> None:
    assert Recipe.parse(HEAD + MEMBER + "[holdout]\nimages = 5\n").holdout == HoldOut(5)
    text = HEAD + MEMBER + "[holdout]\nimages = 5\nthreat = 'Linf:8/255'\nsteps = 3\n"
    assert Recipe.parse(text).holdout == HoldOut(5, Threat.parse("Linf:8/255"), 3)


DISTILLED = "objective = { kind = 'distilled', teacher = 'm', temperature = 1.0 }\n"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (MEMBER + "objective = 'pgd'", "objective of member 'm' must be a table"),
        (MEMBER + "start = 'm'", "start of member 'm' must name an earlier member, got 'm'"),
        (MEMBER + DISTILLED, "teacher of member 'm' must name an earlier member, got 'm'"),
        (MEMBER + MEMBER, "two things of this recipe are called 'm'"),
        (MEMBER.replace("'m'", "'r'").replace('"m"', '"r"'), "two things of this recipe are called 'r'"),
        (MEMBER + "in_ensemble = false", "at least one .* that is in_ensemble"),
        (MEMBER + "epochs = 2.0", "a recipe must be TOML"),
        (MEMBER.replace("epochs = 2", "epochs = 2.0"), "epochs of member 'm' must be a whole number, got 2.0"),
        (MEMBER + "learning_rate = 'fast'", "learning_rate of member 'm' must be a number, got 'fast'"),
        (MEMBER + "scale = 'huge'", "scale of member 'm' must be one of 'none', 'max', 'mean', got 'huge'"),
        (MEMBER.replace("epochs = 2", "epochs = 0") + "in_ensemble = false" + OTHER + JOINT, "epochs of member"),
        (MEMBER + JOINT.replace("epochs = 4", "epochs = 0"), r"epochs of \[joint\] must be positive"),
        (MEMBER + JOINT + "ema = 0.5", r"\[joint\] has unknown key\(s\) ema"),
        (MEMBER + JOINT.replace("0.5", "1.5"), r"member_share of \[joint\] must lie in \[0, 1\]"),
        (MEMBER + FINISH, r"\[finish\] goes on from \[joint\], which is not there"),
        (MEMBER + JOINT + FINISH.replace("0.25", "2.0"), r"gce_q must lie in \[0, 1\], got 2.0"),
        (MEMBER + JOINT + FINISH + "label_smoothing = 0.1", "gce_q is for labels that are certain"),
        (MEMBER + JOINT + FINISH.replace("epochs = 6", "epochs = 0"), r"epochs of \[finish\] must be positive"),
        (
            MEMBER + JOINT + FINISH.replace("gce_q = 0.25\n", "") + DISTILLED.replace("'m'", "'x'"),
            r"teacher of \[finish\] must name a member, got 'x'",
        ),
        (
            MEMBER + JOINT.replace("0.5", "0.0") + DISTILLED.replace("'m'", "'x'"),
            r"teacher of \[joint\] must name a member, got 'x'",
        ),
        (MEMBER + "[holdout]\nimages = 0", r"\[holdout\] needs images and steps of 1 or more"),
        (MEMBER + "[holdout]\nimages = 1\nthreat = 'Linf:8'", r"eps must lie in \(0, 1\], got 8"),
    ],
)
def test_bad_parts_of_recipes(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Recipe.parse(HEAD + text)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = ", "a recipe must be TOML"),
        (HEAD, r"recipe lacks the key\(s\) members"),
        (HEAD + "members = []", "at least one"),
        (HEAD + "colour = 1\n" + MEMBER, r"unknown key\(s\) colour"),
        (HEAD + MEMBER + "lr = 1", r"member 'm' has unknown key\(s\) lr"),
        (HEAD + MEMBER.replace("seed = 1", ""), r"member 'm' lacks the key\(s\) seed"),
        (HEAD + MEMBER.replace("w2a2", "2bit"), "a precision is written"),
        (HEAD + MEMBER.replace("epochs = 2", "epochs = 0"), "epochs of member 'm' must be positive"),
        (HEAD + MEMBER + "ema = 1.0", r"^ema of member 'm' must lie in \[0, 1\)"),
        (HEAD + MEMBER + "shift = -1", "must not be negative"),
    ],
)
def test_bad_recipes(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Recipe.parse(text)


def test_a_recipe_is_found_by_name_or_by_path(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(HEAD + MEMBER)
    assert find_recipe(str(file)).name == "r"
    with pytest.raises(InputError, match=r"no recipe 'empir-cifra': use one of .*empir-cifar, empir-cifar-at"):
        find_recipe("empir-cifra")
    with pytest.raises(InputError, match="no recipe file at"):
        find_recipe("nowhere.toml")
    file.write_bytes(b"name = '\xff'")
    with pytest.raises(InputError, match=r"a recipe must be TOML in UTF-8, .*mine\.toml is not"):
        find_recipe(str(file))


def test_a_member_recipe_rejects_what_cannot_be() -> None:
    with pytest.raises(InputError, match="learning_rate of member 'm' must be positive, got nan"):
        MemberRecipe("m", 1, 1, precision=Precision(), learning_rate=float("nan"))
