"""What is wrong with the JSON of an entry, in sentences."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from empir_plugin.leaderboard.markup import footnote_problem

_LONGEST = 60


@cache
def schema() -> Mapping[str, Any]:
    """The JSON schema (draft 2020-12) of an entry."""
    return json.loads(files("empir_plugin.leaderboard").joinpath("schema.json").read_text(encoding="utf-8"))


@cache
def _validator() -> Any:
    # JSON schema takes 3.0 for an integer; RobustBench's entries have 3.
    strict = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
    return extend(Draft202012Validator, type_checker=strict)(schema())


def problems(table: object) -> tuple[str, ...]:
    """Everything that keeps a parsed JSON value from being an entry; nothing if it is one.

    Beyond the schema: accuracies that cannot be, numbers that are not finite, markup a footnote may not have.

    Example:
        >>> problems({"link": "https://arxiv.org/abs/2002.08347"})[0]
        'name is missing'
    """
    if not isinstance(table, Mapping):
        return (f"an entry is a JSON object, got a {type(table).__name__}",)
    missing = [f"{key} is missing" for key in schema()["required"] if key not in table]
    wrong = [_sentence(error) for error in _validator().iter_errors(table) if error.absolute_path]
    return tuple(dict.fromkeys([*missing, *wrong])) or tuple(_beyond_the_schema(table))


def _sentence(error: ValidationError) -> str:
    key = str(error.absolute_path[0])
    return f"{key} must be {schema()['properties'][key]['description']}, got {_short(error.instance)}"


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _beyond_the_schema(table: Mapping[str, Any]) -> Iterator[str]:
    clean, left = float(table["clean_acc"]), float(table["autoattack_acc"])
    if left > clean:
        yield f"autoattack_acc {table['autoattack_acc']} is above clean_acc {table['clean_acc']}"
    if "external" in table and float(table["external"]) >= left:
        # RobustBench ranks by it wherever it is there, so a higher one would lift the model.
        yield f"external {table['external']} must be below autoattack_acc {table['autoattack_acc']}: leave it out"
    if bad := footnote_problem(table.get("footnote", "")):
        yield f"footnote has markup that is not allowed: {_short(bad)}"
    if not is_finite(table):
        yield "a number is NaN or infinite: JSON has only finite ones"


def is_finite(value: object) -> bool:
    """Whether a JSON value holds finite numbers only."""
    if isinstance(value, Mapping):
        return all(is_finite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)
