"""A recipe that is another one with changes."""

from __future__ import annotations

from typing import Any

import pytest

from empir_plugin._files import tables as _toml
from empir_plugin.errors import InputError
from empir_plugin.training.recipe import Recipe, find_recipe, recipe_names, recipe_text, resolve_extends
from empir_plugin.training.schedules import settings_of

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


def test_keys_of_four_tables_change_one_by_one_and_the_objective_as_a_whole() -> None:
    text = DERIVED + "[defaults]\nepochs = 9\n[joint]\nepochs = 4\n[holdout]\nsteps = 2\n[objective]\nkind = 'clean'\n"
    found = _spelled(text + "[finish]\nseed = 8\n")
    assert found["defaults"] == {"epochs": 9, "flip": True}
    assert found["joint"] == {"seed": 3, "learning_rate": 1e-4, "epochs": 4}
    assert found["finish"] == {"seed": 8, "gce_q": 0.5}
    assert found["holdout"] == {"images": 5, "steps": 2}
    assert found["objective"] == {"kind": "clean"}


def test_members_change_come_and_go() -> None:
    changes = "[[members]]\nname = 'c'\nseed = 4\n[[members]]\nname = 'a'\nseed = 9\n"
    found = _spelled(DERIVED + 'without = ["b", "joint", "finish"]\n' + changes)
    assert found["members"] == [{"name": "a", "precision": "fp", "seed": 9}, {"name": "c", "seed": 4}]
    assert found.keys() == _toml.loads(BASE).keys() - {"joint", "finish"}


def test_a_table_the_base_has_not_is_added() -> None:
    lean = {"lean": BASE.partition("[joint]")[0]}
    text = DERIVED.replace("base", "lean") + "[joint]\nseed = 4\n"
    assert resolve_extends(_toml.loads(text), lean.__getitem__)["joint"] == {"seed": 4}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("extends = 3\nname = 'd'", "extends must name a recipe, got 3"),
        ("extends = 'second'\nname = 'd'", "second extends base itself: extend that"),
        ("extends = 'base'", "extends base needs a name of its own, got None"),
        ("extends = 'base'\nname = 'base'", "needs a name of its own, got 'base'"),
        (
            DERIVED + "without = ['x']",
            r"without must be a list of names among a, b, joint, finish, holdout, got \['x'\]",
        ),
        (DERIVED + "without = 'b'", "without must be a list of names among .*, got 'b'"),
        (DERIVED + "members = 3", r"members must be \[\[members\]\] tables, got 3"),
        (DERIVED + "members = [3]", r"\[\[members\]\] must be a table, got 3"),
        (DERIVED + "[[members]]\nname = 'a'\n" * 2, "one is there twice, or missing"),
        (DERIVED + "defaults = 3", r"\[defaults\] must be a table, got 3"),
    ],
)
def test_what_cannot_be_derived(text: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        _spelled(text)


def test_a_recipe_that_extends_one_of_this_package_is_read_and_checked() -> None:
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


def test_the_ablations_differ_from_their_base_in_what_they_are_about() -> None:
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


def test_a_recipe_of_this_package_is_found_by_name_only() -> None:
    assert recipe_text(recipe_names()[0]).startswith("#")
    with pytest.raises(InputError, match=r"no recipe '../recipe': use one of .*empir-cifar"):
        recipe_text("../recipe")
