"""Entries of others: files in RobustBench's format as they are found, read with notes on what is unusual.

RobustBench's own ``model_info`` (https://github.com/RobustBench/robustbench) and the files that its
``benchmark(to_disk=True)`` writes lack keys, have null for a text or one decimal for two. Such a file says nothing
about this package's entries, so it is shown and never refused, unless it has no accuracy to rank it by.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empir_plugin._files.atomic import write_atomically
from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import InputError
from empir_plugin.leaderboard.entry import KEYS, accuracy, contradictions, escape_html, problems
from empir_plugin.leaderboard.papers import require_stem

_KIND = JsonKind("a leaderboard entry", InputError)
_BREAK = re.compile(r"<br ?/?>")
_LINK = re.compile(r"https?://[^\s\"'<>]+")
BY_ATTACKS = ("external", "autoattack_acc")
BY_CORRUPTIONS = ("corruptions_acc",)
"""The accuracies that RobustBench ranks by on boards of attacks and of corruptions: the first that is there."""

_OF_ROBUSTBENCH = {*KEYS, "corruptions_mce", "corruptions_acc_3d", "corruptions_mce_3d"} - {"overhead"}


@dataclass(frozen=True)
class ForeignEntry:
    """An entry that this package did not make. Its texts are HTML on one line, empty where the file has none.

    Args:
        values: Keys and values as in the file.
        stem: Of the file.
        content: The bytes of the file, which is what :meth:`write` writes.
        repeated: Keys that occur more than once in the file; as in every reader of JSON, the last one counts.
        ranked_by: The accuracies that its board ranks by: the first that is there.

    Raises:
        InputError: If the file has no accuracy to rank it by.

    Example:
        >>> table = {"venue": "GitHub,<br>Oct 2019", "clean_acc": "87.03", "autoattack_acc": "49.2", "footnote": None}
        >>> entry = ForeignEntry(table, "Engstrom2019Robustness")
        >>> entry.venue, entry.lowest_acc
        ('GitHub, Oct 2019', '49.20')
        >>> entry.notes[0]
        'footnote is null'
    """

    values: Mapping[str, Any]
    stem: str
    content: bytes = b""
    repeated: tuple[str, ...] = ()
    ranked_by: tuple[str, ...] = BY_ATTACKS

    def __post_init__(self) -> None:
        if self._rank is None:
            keys = " or ".join(self.ranked_by)
            got = ", ".join(f"{key} {json.dumps(self.values[key])}" for key in self.ranked_by if key in self.values)
            wanted = f"it has no accuracy to rank it by: {keys} must be a number in percent"
            raise InputError(f"{wanted}, got {got or 'none of them'}")

    @property
    def link(self) -> str:
        """Address of the paper; empty if it is not one of the web."""
        link = self.values.get("link")
        return link if isinstance(link, str) and _LINK.fullmatch(link) else ""

    @property
    def name(self) -> str:
        """Title of the paper; the stem if there is none."""
        return self._line("name") or escape_html(self.stem)

    @property
    def architecture(self) -> str:
        """Of the model."""
        return self._line("architecture")

    @property
    def venue(self) -> str:
        """Where and when the paper appeared."""
        return self._line("venue")

    @property
    def clean_acc(self) -> str:
        """Clean accuracy in percent with two decimals."""
        return self._percent(accuracy(self.values.get("clean_acc")))

    @property
    def board_acc(self) -> str:
        """The accuracy that its board is about, in percent with two decimals: under AutoAttack or corruptions."""
        return self._percent(accuracy(self.values.get(self.ranked_by[-1])))

    @property
    def lowest_acc(self) -> str:
        """The accuracy that RobustBench ranks by, in percent with two decimals."""
        return self._percent(self._rank)

    @property
    def unreliable(self) -> bool | None:
        """Whether AutoAttack's number is likely to be too high; None if the file does not say."""
        flag = self.values.get("unreliable")
        return flag if isinstance(flag, bool) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What is unusual in the file, in sentences; empty if this package would have written it like that."""
        try:
            return tuple(dict.fromkeys(map(_printable, self._notes())))
        except RecursionError:
            return ("a value is nested too deep to be examined",)

    def write(self, path: Path) -> None:
        """Write the entry as it was found, byte for byte.

        Raises:
            InputError: If it cannot be written.
        """
        if not self.content:
            _KIND.write(path, dict(self.values))
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, self.content)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"the entry cannot be written to {path} ({reason}): choose another file") from error

    @classmethod
    def read(cls, path: Path, ranked_by: tuple[str, ...] = BY_ATTACKS) -> ForeignEntry:
        """Read an entry of others.

        Args:
            path: Of the file.
            ranked_by: The accuracies that its board ranks by.

        Raises:
            InputError: If the file is missing, is not a JSON object, or has no accuracy to rank it by.
        """
        try:
            content = path.read_bytes()
            values, repeated = _parse(content)
            return cls(values, path.stem, content, repeated, ranked_by)
        except OSError as error:
            reason = error.strerror or error
            raise InputError(f"{path} cannot be read as a leaderboard entry ({reason}): check the path") from error
        except InputError as error:
            raise InputError(f"{path} is not a leaderboard entry: {error}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a leaderboard entry: it is not valid JSON ({error})") from error

    @property
    def _rank(self) -> float | None:
        numbers = (accuracy(self.values.get(key)) for key in self.ranked_by)
        return next((number for number in numbers if number is not None), None)

    def _may_be_null(self, key: str) -> bool:
        return key == "eps" and self.values.get("corruptions_acc") is not None

    def _line(self, key: str) -> str:
        value = self.values.get(key)
        if not isinstance(value, str):
            return ""
        return escape_html(_printable(" ".join(html.unescape(_BREAK.sub(" ", value)).split())))

    @staticmethod
    def _percent(number: float | None) -> str:
        return "" if number is None else f"{number:.2f}"

    def _notes(self) -> Iterator[str]:
        yield from (f"{key} occurs more than once, and the last one counts" for key in self.repeated)
        empty = [key for key, value in self.values.items() if value is None and not self._may_be_null(key)]
        if empty:
            yield f"{', '.join(empty)} {'is' if len(empty) == 1 else 'are'} null"
        present = {key: value for key, value in self.values.items() if key not in empty}
        missing = {f"{key} is missing" for key in empty}
        yield from (problem for problem in problems(present) if problem not in missing)
        yield from contradictions(present)
        for key, value in present.items():
            if key not in _OF_ROBUSTBENCH:
                yield f"{key} is not a key of RobustBench"
            if isinstance(value, str) and value != " ".join(value.split()):
                yield f"{key} has spaces or line breaks that are not shown"
        try:
            require_stem(self.stem)
        except InputError as error:
            yield str(error).removesuffix(": rename it")


def _printable(text: str) -> str:
    """A text that every file can hold: JSON may have one half of a surrogate pair."""
    return text.encode("utf-8", "replace").decode()


def _parse(content: bytes) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The keys and values of a file, and the keys that occur more than once."""
    repeated: list[str] = []

    def collect(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in pairs]
        repeated.extend(key for key in dict.fromkeys(keys) if keys.count(key) > 1)
        return dict(pairs)

    values = json.loads(content.decode("utf-8-sig"), object_pairs_hook=collect)
    if not isinstance(values, dict):
        raise InputError(f"an entry is a JSON object, got a {type(values).__name__}")
    return values, tuple(repeated)
