"""Damage for every kind of file: mutations of JSON values and of bytes."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from typing import Any

VALUES: tuple[Any, ...] = (None, True, -1, 0.1, 10**400, "x", "\ud800", [], {}, [[]], {"x": 1})
"""What a value is replaced by."""


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value inside a JSON value; of a list, those of the first and the last item."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from paths(item, (*path, key))
    elif isinstance(value, list):
        for index in sorted({0, len(value) - 1} & set(range(len(value)))):
            yield from paths(value[index], (*path, index))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def mutations(table: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any, dict[str, Any]]]:
    """Every value deleted (``...``), its key renamed (``"renamed"``), or replaced by another one."""
    for path in paths(table):
        for value in (..., "renamed", *VALUES):
            damaged = copy.deepcopy(table)
            parent, last = at(damaged, path[:-1]), path[-1]
            old = parent.pop(last)
            if value == "renamed":
                if not isinstance(parent, dict):
                    continue
                parent[f"{last}_"] = old
            elif value is not ...:
                if type(old) is type(value) and old == value:
                    continue
                parent.insert(last, value) if isinstance(parent, list) else parent.update({last: value})
            yield path, value, damaged


def sample(table: dict[str, Any], n: int, seed: int = 0) -> list[tuple[tuple[Any, ...], Any, dict[str, Any]]]:
    """Some of the mutations, the same ones every time."""
    every = list(mutations(table))
    return random.Random(seed).sample(every, min(n, len(every)))


def text(value: Any) -> str:
    """As JSON, in which a number may have hundreds of digits and a surrogate stand alone."""
    return json.dumps(value)


def damaged_bytes(content: bytes, n: int, seed: int = 0) -> Iterator[bytes]:
    """A file cut short, with flipped bits, doubled, or with other bytes inside."""
    chance = random.Random(seed)
    for number in range(n):
        place = chance.randrange(len(content))
        kind = number % 4
        if kind == 0:
            yield content[:place]
        elif kind == 1:
            yield content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :]
        elif kind == 2:
            yield content + content[place:]
        else:
            yield content[:place] + chance.randbytes(16) + content[place + 16 :]
