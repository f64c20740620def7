"""Recipes are data, and bad ones are refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from empir_plugin.errors import InputError
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.training.recipe import MemberRecipe, Recipe
from empir_plugin.training.run import find_recipe, recipe_names
from empir_plugin.zoo.card import cards

MEMBER = """
[[members]]
name = "m"
precision = "w2a2"
seed = 1
epochs = 2
"""
HEAD = 'name = "r"\narchitecture = "mnistconv"\ndataset = "mnist"\n'


def test_defaults_reach_every_member_and_a_member_overrides_them() -> None:
    text = HEAD + "[defaults]\nflip = true\nepochs = 9\n" + MEMBER + MEMBER.replace("epochs = 2", "")
    assert [(member.flip, member.epochs) for member in Recipe.parse(text).members] == [(True, 2), (True, 9)]


@pytest.mark.parametrize("name", recipe_names())
def test_shipped_recipes_are_those_of_the_model_cards(name: str) -> None:
    recipe = find_recipe(name)
    networks = cards()[name].networks
    assert recipe.architecture in ARCHITECTURES
    assert [(m.name, m.precision, m.scale) for m in recipe.members] == [
        (n.name, n.precision, n.scale) for n in networks
    ]
    assert len({member.seed for member in recipe.members}) == len(recipe.members), "every member has its own seed"


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
        (HEAD + MEMBER + "ema = 1.0", r"ema of member 'm' must lie in \[0, 1\)"),
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
    with pytest.raises(InputError, match="no recipe 'empir-cifra': use one of empir-cifar, empir-mnist"):
        find_recipe("empir-cifra")
    with pytest.raises(InputError, match="no recipe file at"):
        find_recipe("nowhere.toml")


def test_a_member_recipe_rejects_what_cannot_be() -> None:
    with pytest.raises(InputError, match="learning_rate of member 'm' must be positive, got nan"):
        MemberRecipe("m", find_recipe("empir-cifar").members[0].precision, 1, 1, learning_rate=float("nan"))
