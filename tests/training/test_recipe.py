"""Recipes: parsing, defaults, errors, and recipes that extend another one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from empir_plugin._files import tables as _toml
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import pgd
from empir_plugin.training.objectives import Adversarial, clean
from empir_plugin.training.recipe import HoldOut, Recipe, find_recipe, recipe_names, recipe_text, resolve_extends
from empir_plugin.training.schedules import FinishRecipe, JointRecipe, MemberRecipe, settings_of
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


def test_defaults_apply_to_every_member_unless_overridden() -> None:
    text = HEAD + "[defaults]\nflip = true\nepochs = 9\n" + MEMBER + OTHER.replace("epochs = 2", "")
    assert [(member.flip, member.epochs) for member in Recipe.parse(text).members] == [(True, 2), (True, 9)]


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = find_recipe(name)
    runs = [*recipe.members, *recipe.stages.values()]
    assert recipe.name == name
    assert recipe.architecture in ARCHITECTURES or network(recipe.architecture, num_classes=10)
    assert len({run.seed for run in runs}) == len(runs), "every run has its own seed"


@pytest.mark.parametrize("name", sorted(cards().keys() & set(recipe_names())))
def test_recipes_of_model_cards_train_what_the_cards_describe(name: str) -> None:
    trained = [(m.name, m.precision, m.scale) for m in find_recipe(name).members if m.in_ensemble]
    assert trained == [(n.name, n.precision, n.scale) for n in cards()[name].networks]


def test_member_names_are_unique_over_all_recipes_that_extend_none() -> None:
    own = [name for name in recipe_names() if "extends" not in _toml.loads(recipe_text(name))]
    names = [member.name for name in own for member in find_recipe(name).members]
    assert len(set(names)) == len(names)


def test_the_objective_applies_to_all_runs_without_one_of_their_own() -> None:
    text = HEAD + OBJECTIVE + MEMBER + "objective = { kind = 'clean' }" + OTHER + JOINT
    one, two = Recipe.parse(text).members
    joint = Recipe.parse(text).joint
    assert (one.objective, two.objective) == (clean, Adversarial(pgd("Linf:0.3", steps=2)))
    assert joint == JointRecipe("r", 3, 4, objective=two.objective, member_share=0.5)
    own = Recipe.parse(text + "[joint.objective]\nkind = 'clean'\n").joint
    assert own is not None
    assert own.objective == clean


def test_defaults_apply_to_the_joint_run_where_it_has_the_key() -> None:
    joint = Recipe.parse(HEAD + "[defaults]\nbatch_size = 7\nema = 0.5\n" + MEMBER + JOINT).joint
    assert joint is not None
    assert joint.batch_size == 7


def test_the_finish_stage_has_its_own_settings() -> None:
    text = HEAD + "[defaults]\nbatch_size = 7\n" + OBJECTIVE + MEMBER + JOINT + FINISH
    recipe = Recipe.parse(text + "[finish.objective]\nkind = 'clean'\n")
    assert recipe.finish == FinishRecipe("r", 5, 6, 7, gce_q=0.25)
    assert list(recipe.stages) == ["joint", "finish"]
    assert [stage.run for stage in recipe.stages.values()] == ["r.together", "r.finish"]
    assert "finish" not in Recipe.parse(HEAD + MEMBER + JOINT).stages


@pytest.mark.parametrize("key", ["member_share", "label_smoothing", "gce_q"])
def test_settings_a_distillation_without_labels_ignores_are_refused(key: str) -> None:
    joint = "\n[joint]\nseed = 3\nepochs = 4\n"
    with pytest.raises(InputError, match=rf"{key} of \[joint\] is 0.25, which its objective 'distilled' ignores"):
        Recipe.parse(HEAD + MEMBER + joint + f"{key} = 0.25\n" + DISTILLED)
    labelled = DISTILLED.replace(" }", ", label_share = 0.5 }")
    for settings in (f"{key} = 0.25\n{labelled}", f"{key} = 0.0\n{DISTILLED}", f"{key} = 0.25\n"):
        assert Recipe.parse(HEAD + MEMBER + joint + settings).joint is not None


def test_label_smoothing_without_labels_is_refused() -> None:
    student = MEMBER.replace("'m'", "'n'").replace('"m"', '"n"') + DISTILLED
    assert len(Recipe.parse(HEAD + MEMBER + student).members) == 2
    with pytest.raises(InputError, match=r"label_smoothing of member 'n' is 0.1, which its objective"):
        Recipe.parse(HEAD + MEMBER + student + "label_smoothing = 0.1\n")


def test_the_threat_of_a_holdout_is_optional() -> None:
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
        (MEMBER + MEMBER, "name 'm' is used twice.*rename"),
        (MEMBER.replace("'m'", "'r'").replace('"m"', '"r"'), "name 'r' is used twice.*rename"),
        (MEMBER + "in_ensemble = false", "at least one .* that is in_ensemble"),
        (MEMBER + "epochs = 2.0", "a recipe must be TOML"),
        (MEMBER.replace("epochs = 2", "epochs = 2.0"), "epochs of member 'm' must be a whole number, got 2.0"),
        (MEMBER + "learning_rate = 'fast'", "learning_rate of member 'm' must be a number, got 'fast'"),
        (MEMBER + "scale = 'huge'", "scale of member 'm' must be one of 'none', 'max', 'mean', got 'huge'"),
        (MEMBER.replace("epochs = 2", "epochs = 0") + "in_ensemble = false" + OTHER + JOINT, "epochs of member"),
        (MEMBER + JOINT.replace("epochs = 4", "epochs = 0"), r"epochs of \[joint\] must be positive"),
        (MEMBER + JOINT + "ema = 0.5", r"\[joint\] has unknown key\(s\) ema"),
        (MEMBER + JOINT.replace("0.5", "1.5"), r"member_share of \[joint\] must lie in \[0, 1\]"),
        (MEMBER + FINISH, r"\[finish\] needs .*\[joint\]"),
        (MEMBER + JOINT + FINISH.replace("0.25", "2.0"), r"gce_q must lie in \[0, 1\], got 2.0"),
        (MEMBER + JOINT + FINISH + "label_smoothing = 0.1", "gce_q .*label_smoothing 0.1"),
        (MEMBER + JOINT + FINISH.replace("epochs = 6", "epochs = 0"), r"epochs of \[finish\] must be positive"),
        (
            MEMBER + JOINT + FINISH.replace("gce_q = 0.25\n", "") + DISTILLED.replace("'m'", "'x'"),
            r"teacher of \[finish\] must name a member, got 'x'",
        ),
        (
            MEMBER + JOINT.replace("0.5", "0.0") + DISTILLED.replace("'m'", "'x'"),
            r"teacher of \[joint\] must name a member, got 'x'",
        ),
        (MEMBER + "[holdout]\nimages = 0", r"holdout .*1 or more, got 0 and 20"),
        (MEMBER + "[holdout]\nimages = 1\nthreat = 'Linf:8'", r"eps must lie in \(0, 1\], got 8"),
    ],
)
def test_bad_parts_of_recipes_are_refused(text: str, sentence: str) -> None:
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
        (HEAD + MEMBER + "shift = -1", "shift of member 'm' .*got -1"),
    ],
)
def test_bad_recipes_are_refused(text: str, sentence: str) -> None:
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


def test_a_member_recipe_refuses_nan() -> None:
    with pytest.raises(InputError, match="learning_rate of member 'm' must be positive, got nan"):
        MemberRecipe("m", 1, 1, precision=Precision(), learning_rate=float("nan"))


BASE = """
name = "base"
architecture = "mnistconv"
dataset = "mnist"
[defaults]
epochs = 3
flip = true
[objective]
kind = "trades"
beta = 6.0
adversary = { kind = "fgsm", threat = "Linf:0.1" }
[[members]]
name = "a"
precision = "fp"
seed = 1
[[members]]
name = "b"
precision = "w4a4"
seed = 2
start = "a"
[joint]
seed = 3
learning_rate = 1e-4
[finish]
seed = 4
gce_q = 0.5
[holdout]
images = 5
"""
TEXTS = {"base": BASE, "second": 'extends = "base"\nname = "second"\n'}
DERIVED = 'extends = "base"\nname = "d"\n'


def _spelled(text: str) -> dict[str, Any]:
    return dict(resolve_extends(_toml.loads(text), TEXTS.__getitem__))


def test_without_changes_only_the_name_differs() -> None:
    assert _spelled(DERIVED) == {**_toml.loads(BASE), "name": "d"}
    assert _spelled(BASE) == _toml.loads(BASE)


def test_four_tables_are_merged_key_by_key_and_the_objective_is_replaced() -> None:
    text = DERIVED + "[defaults]\nepochs = 9\n[joint]\nepochs = 4\n[holdout]\nsteps = 2\n[objective]\nkind = 'clean'\n"
    found = _spelled(text + "[finish]\nseed = 8\n")
    assert found["defaults"] == {"epochs": 9, "flip": True}
    assert found["joint"] == {"seed": 3, "learning_rate": 1e-4, "epochs": 4}
    assert found["finish"] == {"seed": 8, "gce_q": 0.5}
    assert found["holdout"] == {"images": 5, "steps": 2}
    assert found["objective"] == {"kind": "clean"}


def test_members_are_changed_added_and_left_out() -> None:
    changes = "[[members]]\nname = 'c'\nseed = 4\n[[members]]\nname = 'a'\nseed = 9\n"
    found = _spelled(DERIVED + 'without = ["b", "joint", "finish"]\n' + changes)
    assert found["members"] == [{"name": "a", "precision": "fp", "seed": 9}, {"name": "c", "seed": 4}]
    assert found.keys() == _toml.loads(BASE).keys() - {"joint", "finish"}


def test_a_table_the_base_lacks_is_added() -> None:
    lean = {"lean": BASE.partition("[joint]")[0]}
    text = DERIVED.replace("base", "lean") + "[joint]\nseed = 4\n"
    assert resolve_extends(_toml.loads(text), lean.__getitem__)["joint"] == {"seed": 4}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends = 3\nname = 'd'", "extends must name a recipe, got 3"),
        ("extends = 'second'\nname = 'd'", "second .*extend base instead"),
        ("extends = 'base'", "extends base needs a name of its own, got None"),
        ("extends = 'base'\nname = 'base'", "needs a name of its own, got 'base'"),
        (
            DERIVED + "without = ['x']",
            r"without must be a list of names among a, b, joint, finish, holdout, got \['x'\]",
        ),
        (DERIVED + "without = 'b'", "without must be a list of names among .*, got 'b'"),
        (DERIVED + "members = 3", r"\[\[members\]\] must be a list of tables, got 3"),
        (DERIVED + "members = [3]", r"\[\[members\]\] must be a table, got 3"),
        (DERIVED + "[[members]]\nname = 'a'\n" * 2, "missing or used twice"),
        (DERIVED + "defaults = 3", r"\[defaults\] must be a table, got 3"),
    ],
)
def test_bad_extensions_are_refused(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        _spelled(text)


def test_a_recipe_that_extends_a_shipped_one_is_parsed_and_checked() -> None:
    recipe = Recipe.parse('extends = "empir-mnist-at"\nname = "mine"\nwithout = ["holdout", "mnistsmall-at-w4a4-b"]\n')
    assert recipe.name == "mine"
    assert [member.name for member in recipe.members] == ["mnistsmall-at-fp", "mnistsmall-at-w4a4"]
    assert recipe.holdout is None
    assert recipe.joint is not None
    with pytest.raises(InputError, match="start of member 'mnist-boundary' must name an earlier member"):
        Recipe.parse('extends = "weight-quantized-mnist"\nname = "mine"\nwithout = ["mnist-orig"]\n')
    with pytest.raises(InputError, match="no recipe 'empir-mnits': use one of"):
        Recipe.parse('extends = "empir-mnits"\nname = "mine"\n')
    with pytest.raises(InputError, match=r"recipe has unknown key\(s\) colour"):
        Recipe.parse('extends = "empir-mnist-at"\nname = "mine"\ncolour = 1\n')


def test_ablations_differ_from_their_base_only_as_intended() -> None:
    base, apart, *several = (find_recipe(f"empir-cifar-at{suffix}") for suffix in ("", "-apart", "-2", "-3", "-4"))
    assert base.joint is not None
    assert [len([m for m in recipe.members if m.in_ensemble]) for recipe in (base, apart, *several)] == [3, 3, 2, 3, 4]
    for recipe in several:
        assert recipe.joint is not None
        assert settings_of(recipe.joint) == {**settings_of(base.joint), "name": recipe.name, "epochs": 4}
        assert settings_of(recipe.members[0]) == settings_of(base.members[0]), "its checkpoint fits"
    assert apart.joint is None
    first = {member.name: settings_of(member) for member in base.members}
    before = [member for member in apart.members if not member.in_ensemble]
    assert [{**settings_of(m), "in_ensemble": True} for m in before] == [
        {**first[m.name], "in_ensemble": True} for m in before
    ], "their checkpoints fit, too"
    assert {m.name for m in before} == {m.name for m in base.members if m.epochs}
    on = [member for member in apart.members if member.in_ensemble]
    assert sorted(str(m.precision) for m in on) == sorted(str(m.precision) for m in base.members)
    for member in on:
        assert (member.epochs, member.learning_rate, member.objective) == (
            4,
            base.joint.learning_rate,
            base.joint.objective,
        )
        assert member.start in {m.name for m in before}


def test_shipped_recipes_are_found_by_name_only() -> None:
    assert recipe_text(recipe_names()[0]).startswith("#")
    with pytest.raises(InputError, match=r"no recipe '../recipe': use one of .*empir-cifar"):
        recipe_text("../recipe")
