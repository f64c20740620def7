"""One entry of a leaderboard: RobustBench's keys in RobustBench's format, and one additional key.

The keys, their order and their types are those of the files in RobustBench's ``model_info``
(https://github.com/RobustBench/robustbench): accuracies are texts in percent with two decimals, eps is a text such as
``"8/255"``, and what does not apply is left out. On a board of corruptions, ``corruptions_acc`` takes the place of
``autoattack_acc``, and eps is null. The additional key is ``overhead``.

Files of others take more liberties: see :mod:`empir_plugin.leaderboard.foreign`.
"""

from __future__ import annotations

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

from empir_plugin._files.json_schema import JsonSchema, shorten
from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import InputError

# Tags a footnote may have; a link must lead to the web.
_NAMES = "b|i|em|strong|sub|sup|code"
_TAG = re.compile(rf'<(?:({_NAMES})|/({_NAMES})|br ?/?|(a) href="https?://[^\s"<>]+"|/(a))>')
_MARKUP = re.compile(r"<[^<>]*>?|>")


def escape_html(text: str) -> str:
    """Plain text as HTML.

    Example:
        >>> escape_html("a <b> & c")
        'a &lt;b&gt; &amp; c'
    """
    return html.escape(text, quote=False)


def unescape_html(text: str) -> str:
    """The plain text of an entry's field: the reverse of :func:`escape_html`.

    Example:
        >>> unescape_html("R&amp;D")
        'R&D'
    """
    return html.unescape(text)


def footnote_problem(footnote: str) -> str:
    """The first part of a footnote's markup that is not allowed; empty if all of it is.

    Allowed are ``b``, ``i``, ``em``, ``strong``, ``sub``, ``sup``, ``code`` and ``a`` (with an ``href`` to the web, and
    no other attribute), properly nested and closed, and ``br``.

    Example:
        >>> footnote_problem('see <a href="https://arxiv.org/abs/2002.08347">Section 12</a>')
        ''
        >>> footnote_problem("a <script>alert(1)</script>")
        '<script>'
    """
    other = _MARKUP.search(_TAG.sub("", footnote))
    return other[0] if other else _first_unclosed_tag(footnote)


def _first_unclosed_tag(footnote: str) -> str:
    """The first tag that is not closed, or not opened; empty if there is none."""
    opened: list[str] = []
    for name, closed, link, link_closed in _TAG.findall(footnote):
        if name or link:
            opened.append(name or link)
        elif (closed or link_closed) and (not opened or opened.pop() != (closed or link_closed)):
            return f"</{closed or link_closed}>"
    return f"<{opened[-1]}>" if opened else ""


_SCHEMA = JsonSchema("empir_plugin.leaderboard", "schema.json")


def schema() -> Mapping[str, Any]:
    """The JSON schema (draft 2020-12) of an entry."""
    return _SCHEMA.table


def problems(table: object) -> tuple[str, ...]:
    """Everything that is wrong with a parsed JSON value as an entry; empty if it is one.

    Beyond the schema it finds contradictory accuracies, numbers that are not finite, and markup that is not allowed.

    Example:
        >>> problems({"link": "https://arxiv.org/abs/2002.08347"})[0]
        'name is missing'
    """
    if not isinstance(table, Mapping):
        return (f"an entry is a JSON object, got a {type(table).__name__}",)
    return tuple(_SCHEMA.problems(table)) or tuple(contradictions(table))


def _is_of_corruptions(table: Mapping[str, Any]) -> bool:
    return table.get("corruptions_acc") is not None


def contradictions(table: Mapping[str, Any]) -> Iterator[str]:
    """What is wrong with an entry beyond the schema, as far as its values can be read."""
    clean, robust, external = (accuracy(table.get(key)) for key in ("clean_acc", "autoattack_acc", "external"))
    if clean is not None and robust is not None and robust > clean:
        yield f"autoattack_acc {table['autoattack_acc']} is above clean_acc {table['clean_acc']}"
    if external is not None and robust is not None and external >= robust:
        # RobustBench ranks by it if it is present, so a higher value would lift the model.
        yield f"external {table['external']} must be below autoattack_acc {table['autoattack_acc']}: leave it out"
    if _is_of_corruptions(table):
        others = (key for key in _ATTACKED if table.get(key) is not None)
        yield from (f"{key} belongs on another board than corruptions_acc: leave it out" for key in others)
    if bad := footnote_problem(str(table.get("footnote") or "")):
        yield f"footnote has markup that is not allowed: {shorten(bad)}"
    if not is_finite(table):
        yield "a number is NaN or infinite: JSON has only finite ones"


_ATTACKED = "autoattack_acc", "external", "unreliable"


def accuracy(value: object) -> float | None:
    """A value of an entry as an accuracy in percent; None if it is none.

    Example:
        >>> accuracy("58"), accuracy(56.5), accuracy(None), accuracy("nan")
        (58.0, 56.5, None, None)
    """
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if 0 <= number <= 100 else None


def is_finite(value: object) -> bool:
    """Whether all numbers in a JSON value are finite."""
    if isinstance(value, Mapping):
        return all(is_finite(item) for item in value.values())
    if isinstance(value, (list, tuple)):
        return all(is_finite(item) for item in value)
    return not isinstance(value, float) or math.isfinite(value)


_KIND = JsonKind("a leaderboard entry", InputError)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One model on a leaderboard. Texts are HTML: ``&``, ``<`` and ``>`` are written as entities.

    Args:
        link: Address of the paper.
        name: Title of the paper.
        authors: Names, separated by commas.
        additional_data: Whether it was trained on additional data.
        number_forward_passes: Forward passes for one decision.
        dataset: Name of the data set.
        venue: Where and when the paper appeared.
        architecture: Of the model.
        eps: Radius, in units of the image, as text; None on a board of corruptions.
        clean_acc: Clean accuracy in percent.
        reported: Robust accuracy that the paper reports at the same eps, in percent; empty if it reports none.
        autoattack_acc: Robust accuracy under standard AutoAttack, in percent; None on a board of corruptions.
        corruptions_acc: Mean accuracy over 15 corruptions at 5 severities, in percent, on such a board.
        external: Robust accuracy over all known attacks, worst case per image, in percent, if that is lower.
        footnote: For readers, with simple markup.
        unreliable: Whether AutoAttack's number is likely to be too high; None on a board of corruptions.
        overhead: Overhead of the model.
        others: Keys that are unknown to this package; they are kept.
        order: Of the keys in the file it was read from.

    Raises:
        InputError: If a value has another form; the message names everything that is wrong.
    """

    link: str
    name: str
    authors: str
    additional_data: bool
    number_forward_passes: int
    dataset: str
    venue: str
    architecture: str
    eps: str | None
    clean_acc: str
    reported: str
    autoattack_acc: str | None = None
    corruptions_acc: str | None = None
    external: str | None = None
    footnote: str | None = None
    unreliable: bool | None = None
    overhead: Mapping[str, Any] | None = None
    others: Mapping[str, Any] = field(default_factory=dict)
    order: tuple[str, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        _refuse(problems(self.table()))

    @property
    def board_acc(self) -> str:
        """The accuracy that its board is about, in percent: under AutoAttack, or under corruptions."""
        return self.autoattack_acc or self.corruptions_acc or ""

    @property
    def lowest_acc(self) -> str:
        """The lowest robust accuracy known, in percent; RobustBench ranks by it."""
        return self.external or self.board_acc

    def table(self) -> dict[str, Any]:
        """Keys and values in the order of the file; unknown keys keep their positions."""
        known = {key: getattr(self, key) for key in KEYS}
        # RobustBench writes eps as null where there is none.
        present = {key: value for key, value in known.items() if value is not None or key == "eps"} | dict(self.others)
        return {key: present[key] for key in _order_keys(list(present), [key for key in self.order if key in present])}

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

    def in_place_of(self, old: Mapping[str, Any]) -> Entry:
        """This entry with the order and the unknown keys of the one it replaces; those without a value are dropped."""
        unknown = {key: value for key, value in old.items() if key not in KEYS and value is not None}
        return replace(self, others={**unknown, **self.others}, order=tuple(old))

    def write(self, path: Path) -> None:
        """Write the entry atomically.

        Raises:
            InputError: If it cannot be written.
        """
        _KIND.write(path, self.table())

    @classmethod
    def read(cls, path: Path) -> Entry:
        """Read an entry back; if it is written again, its keys keep their order.

        Raises:
            InputError: If the file is missing or not an entry; the message names everything that is wrong.
        """
        return _KIND.read(path, cls.of)

    @classmethod
    def of(cls, table: object) -> Entry:
        """The entry of a parsed JSON value.

        Raises:
            InputError: If it is not an entry.
        """
        _refuse(problems(table))
        items = dict(cast("Mapping[str, Any]", table))
        order = tuple(items)
        known = {key: items.pop(key) for key in KEYS if key in items}
        return cls(**known, others=items, order=order)


KEYS = tuple(item.name for item in fields(Entry) if item.name not in ("others", "order"))
"""RobustBench's keys in its most frequent order, and ``overhead``."""


def _refuse(found: Sequence[str]) -> None:
    if found:
        raise InputError("; ".join(found))


def _order_keys(present: Sequence[str], order: list[str]) -> list[str]:
    """All keys: those of ``order`` in that order, and each new one after the known key that precedes it."""
    for key in present:
        if key not in order:
            before = [other for other in KEYS[: KEYS.index(key)] if other in order] if key in KEYS else order[-1:]
            order.insert(order.index(before[-1]) + 1 if before else 0, key)
    return order
