"""One entry of a leaderboard: RobustBench's keys in RobustBench's format, and one key more.

The keys, their order and their types are those of the files in RobustBench's ``model_info``
(https://github.com/RobustBench/robustbench): accuracies are texts in percent with two decimals, the radius is a text
such as ``"8/255"``, and what does not apply is left out. Ours is ``overhead``, what the model costs.
"""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import InputError

# Tags a footnote may have; a link goes to the web and nowhere else.
_NAMES = "b|i|em|strong|sub|sup|code"
_TAG = re.compile(rf'<(?:({_NAMES})|/({_NAMES})|br ?/?|(a) href="https?://[^\s"<>]+"|/(a))>')
_REMAINS = re.compile(r"<[^<>]*>?|>")


def escaped(text: str) -> str:
    """Plain text as HTML.

    Example:
        >>> escaped("a <b> & c")
        'a &lt;b&gt; &amp; c'
    """
    return html.escape(text, quote=False)


def plain(text: str) -> str:
    """The plain text of an entry's field: the reverse of :func:`escaped`.

    Example:
        >>> plain("R&amp;D")
        'R&D'
    """
    return html.unescape(text)


def footnote_problem(footnote: str) -> str:
    """What in a footnote's markup is not allowed, or nothing if all of it is.

    Allowed are ``b``, ``i``, ``em``, ``strong``, ``sub``, ``sup``, ``code`` and ``a`` (with an ``href`` to the web, and
    no other attribute), each closed in its turn, and ``br``.

    Example:
        >>> footnote_problem('see <a href="https://arxiv.org/abs/2002.08347">Section 12</a>')
        ''
        >>> footnote_problem("a <script>alert(1)</script>")
        '<script>'
    """
    remains = _REMAINS.search(_TAG.sub("", footnote))
    return remains[0] if remains else _unclosed(footnote)


def _unclosed(footnote: str) -> str:
    opened: list[str] = []
    for name, closed, link, link_closed in _TAG.findall(footnote):
        if name or link:
            opened.append(name or link)
        elif (closed or link_closed) and (not opened or opened.pop() != (closed or link_closed)):
            return f"</{closed or link_closed}>"
    return f"<{opened[-1]}>" if opened else ""


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


_KIND = JsonKind("a leaderboard entry", InputError)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a leaderboard shows of one model. Texts are HTML: ``&``, ``<`` and ``>`` are written as entities.

    Args:
        link: Address of the paper.
        name: Title of the paper.
        authors: Names, separated by commas.
        additional_data: Whether it was trained on more than the data set.
        number_forward_passes: Networks that run for one decision.
        dataset: Name of the data set.
        venue: Where and when the paper appeared.
        architecture: Of the model.
        eps: Radius, in units of the image, as text.
        clean_acc: Percent of the test set it classifies correctly.
        reported: Percent the paper claims under attacks of the same radius; empty if it claims none.
        autoattack_acc: Percent that withstands standard AutoAttack.
        external: Percent that withstands every attack known, per image, where that is fewer.
        footnote: What a reader must know, with simple markup.
        unreliable: Whether AutoAttack's number is likely to be too high.
        overhead: What the model costs.
        others: Keys this package does not know; they are kept.
        order: Of the keys in the file it came from.

    Raises:
        InputError: If something is not so; the sentence names all of it.
    """

    link: str
    name: str
    authors: str
    additional_data: bool
    number_forward_passes: int
    dataset: str
    venue: str
    architecture: str
    eps: str
    clean_acc: str
    reported: str
    autoattack_acc: str
    external: str | None = None
    footnote: str | None = None
    unreliable: bool
    overhead: Mapping[str, Any] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        _require_none(problems(self.table()))

    @property
    def lowest_acc(self) -> str:
        """Percent left by the strongest attack known: what RobustBench ranks by."""
        return self.external or self.autoattack_acc

    def table(self) -> dict[str, Any]:
        """Keys and values as they stand in a file, in order; unknown keys where they were."""
        known = {key: getattr(self, key) for key in KEYS}
        present = {key: value for key, value in known.items() if value is not None} | dict(self.others)
        return {key: present[key] for key in _placed(list(present), [key for key in self.order if key in present])}

    def to_json(self) -> str:
        """The text of its file, in ASCII.

        Example:
            >>> from empir_plugin.leaderboard.papers import facts_of
            >>> facts = facts_of("empir-cifar").fields()
            >>> accuracies = {"eps": "8/255", "clean_acc": "75.23", "reported": "", "autoattack_acc": "1.40"}
            >>> entry = Entry(**facts, **accuracies, unreliable=True)
            >>> entry.to_json().splitlines()[-2:]
            ['  "unreliable": true', '}']
        """
        return _KIND.text(self.table())

    def in_place_of(self, old: Entry) -> Entry:
        """This entry with the order, and the unknown keys, of the one it replaces."""
        return replace(self, others={**old.others, **self.others}, order=old.order)

    def write(self, path: Path) -> None:
        """Write the entry; a kill leaves what was there, or all of the new one.

        Raises:
            InputError: If it cannot be written.
        """
        _KIND.write(path, self.table())

    @classmethod
    def read(cls, path: Path) -> Entry:
        """Read an entry back; one that is written again has the same keys in the same places.

        Raises:
            InputError: If the file is missing or no entry; the sentence says all that is wrong with it.
        """
        return _KIND.read(path, cls.of)

    @classmethod
    def of(cls, table: object) -> Entry:
        """The entry of a parsed file.

        Raises:
            InputError: If it is none.
        """
        _require_none(problems(table))
        items = dict(cast("Mapping[str, Any]", table))
        order = tuple(items)
        known = {key: items.pop(key) for key in KEYS if key in items}
        return cls(**known, others=items, order=order)


KEYS = tuple(item.name for item in fields(Entry) if item.name not in ("others", "order"))
"""RobustBench's keys in its most frequent order, and ``overhead``."""


def _require_none(found: Sequence[str]) -> None:
    if found:
        raise InputError("; ".join(found))


def _placed(present: Sequence[str], order: list[str]) -> list[str]:
    """All keys: those with a place in ``order`` there, each new one behind the known key it follows."""
    for key in present:
        if key not in order:
            before = [other for other in KEYS[: KEYS.index(key)] if other in order] if key in KEYS else order[-1:]
            order.insert(order.index(before[-1]) + 1 if before else 0, key)
    return order
