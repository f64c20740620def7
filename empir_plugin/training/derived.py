"""Recipes that are another recipe with changes, as ablations are: ``extends = "empir-cifar-at"``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from empir_plugin import _toml
from empir_plugin.errors import InputError
from empir_plugin.training.tables import table_of

_OPTIONAL = ("joint", "finish", "holdout")
"""Tables a recipe can do without."""
_MERGED = ("defaults", *_OPTIONAL)
"""Tables of which a change replaces single keys; of everything else it replaces the whole."""


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that travel with this package.

    Example:
        >>> "empir-cifar" in recipe_names()
        True
    """
    folder = files("empir_plugin.training").joinpath("recipes")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def recipe_text(name: str) -> str:
    """The TOML text of a recipe of this package.

    Raises:
        InputError: If there is no such recipe.
    """
    if name not in recipe_names():
        raise InputError(f"no recipe {name!r}: use one of {', '.join(recipe_names())}")
    return (files("empir_plugin.training") / "recipes" / f"{name}.toml").read_text("utf-8")


def spelled_out(table: Mapping[str, Any], text_of: Callable[[str], str] = recipe_text) -> Mapping[str, Any]:
    """A recipe's table without ``extends``: that of the recipe it extends, with its own changes.

    Keys replace those of the base; ``[defaults]``, ``[joint]``, ``[finish]`` and ``[holdout]`` replace key by key. A
    ``[[members]]`` table of the base's name changes that member, another one adds a member at the end. ``without``
    lists members and tables to leave out. A run that the changes do not reach is the base's own, and can take over its
    checkpoint.

    Args:
        table: What the file says; it is given back as it is if it extends nothing.
        text_of: The TOML text of the recipe of a name.

    Raises:
        InputError: If the base is no recipe of its own or has none of what is left out, or the name is the base's.

    Example:
        >>> found = spelled_out({"extends": "empir-cifar-at", "name": "pair", "without": ["cifarconv-at-w4a4-b"]})
        >>> [member["name"] for member in found["members"]]
        ['cifarconv-at-fp', 'cifarconv-at-w4a4']
    """
    if "extends" not in table:
        return table
    changes = dict(table)
    base = _base(changes.pop("extends"), text_of)
    if changes.get("name", base["name"]) == base["name"]:
        raise InputError(f"a recipe that extends {base['name']} needs a name of its own, got {changes.get('name')!r}")
    left_out = _left_out(changes.pop("without", []), base)
    members = _members(base["members"], changes.pop("members", []))
    merged = {key: {**base.get(key, {}), **table_of(changes[key], f"[{key}]")} for key in _MERGED if key in changes}
    whole = {**base, **changes, **merged, "members": [each for each in members if each.get("name") not in left_out]}
    return {key: value for key, value in whole.items() if key not in left_out}


def _base(name: Any, text_of: Callable[[str], str]) -> Mapping[str, Any]:
    if not isinstance(name, str):
        raise InputError(f"extends must name a recipe, got {name!r}")
    base = _toml.loads(text_of(name))
    if "extends" in base:
        raise InputError(f"{name} extends {base['extends']} itself: extend that")
    return base


def _left_out(names: Any, base: Mapping[str, Any]) -> frozenset[str]:
    tables = [key for key in _OPTIONAL if key in base]
    known = [member["name"] for member in base["members"]] + tables
    if not isinstance(names, list) or not all(name in known for name in names):
        raise InputError(f"without must be a list of names among {', '.join(known)}, got {names!r}")
    return frozenset(names)


def _members(base: list[Mapping[str, Any]], changes: Any) -> list[Mapping[str, Any]]:
    if not isinstance(changes, list):
        raise InputError(f"members must be [[members]] tables, got {changes!r}")
    changed = {table_of(each, "[[members]]").get("name"): each for each in changes}
    if len(changed) != len(changes):
        raise InputError("every [[members]] table of a recipe needs a name of its own: one is there twice, or missing")
    known = {member["name"] for member in base}
    kept = ({**member, **changed.get(member["name"], {})} for member in base)
    return [*kept, *(each for each in changes if each.get("name") not in known)]
