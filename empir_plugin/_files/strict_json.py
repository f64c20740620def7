"""Strict JSON files, which every parser reads alike: finite numbers, no duplicate keys, written atomically."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import EmpirError

_T = TypeVar("_T")
_LONGEST = 20
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class JsonKind:
    """One kind of JSON file, in UTF-8, read and written strictly.

    Args:
        name: Its name with an article: ``"a run record"``.
        error: Type of the exceptions raised about such files.
        schema: Version of the format, stored under the key ``schema``; None for a kind without versions.
        cure: What to do about a damaged file, as the end of a sentence.
        upgrades: For each older schema that is still read, a function to a table of a newer schema.

    Example:
        >>> import tempfile
        >>> from empir_plugin.errors import InputError
        >>> path = Path(tempfile.mkdtemp(), "costs.json")
        >>> costs = JsonKind("an overhead", InputError)
        >>> costs.write(path, {"storage_ratio": 1.77})
        >>> costs.load(path)
        {'storage_ratio': 1.77}
    """

    name: str
    error: type[EmpirError]
    schema: int | None = None
    cure: str = ""
    upgrades: Mapping[int, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = field(default_factory=dict)

    def text(self, value: object) -> str:
        """A value as JSON text: ASCII, indented by two spaces.

        Raises:
            EmpirError: Of type ``error``, if a number is NaN or infinite, or something cannot be written as JSON.
        """
        try:
            return json.dumps(value, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(f"{self.name} holds texts and finite numbers only ({error})") from error

    def write(self, path: Path, value: object) -> None:
        """Write a value atomically; missing folders are created.

        Raises:
            EmpirError: Of type ``error``, if the value cannot be written as JSON, or the file cannot be written.
        """
        text = self.text(value)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            reason = error.strerror or error
            raise self.error(f"the {self._noun} cannot be written to {path} ({reason}): choose another file") from error

    def load(self, path: Path) -> Any:
        """The content of a file, in whatever schema.

        Raises:
            EmpirError: Of type ``error``, if the file is missing or is not strict JSON.
        """
        try:
            return _parsed(path.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or error
            raise self.error(f"{path} cannot be read as {self.name} ({reason}): check the path") from error
        except (ValueError, RecursionError) as error:
            raise self.error(f"{path} is not {self.name}: it is not valid JSON ({error}){self._end}") from error

    def read(self, path: Path, parse: Callable[[Any], _T]) -> _T:
        """Read and parse a file.

        Args:
            path: The file.
            parse: From its content, in the current schema, to the result; its exceptions are raised with the path.

        Raises:
            EmpirError: Of type ``error``, if the file is missing, is not strict JSON, has an unknown schema, or cannot
                be parsed.
        """
        value = self.load(path)
        try:
            return parse(self._current(value))
        except EmpirError as error:
            raise self.error(f"{path} is not {self.name}: {error}{self._end}") from error
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise self.error(f"{path} is not {self.name} ({type(error).__name__}: {error}){self._end}") from error

    @property
    def _noun(self) -> str:
        return self.name.partition(" ")[2]

    @property
    def _end(self) -> str:
        return f": {self.cure}" if self.cure else ""

    def _current(self, value: Any) -> Any:
        """The value in the current schema."""
        if self.schema is None:
            return value
        if not isinstance(value, Mapping):
            raise self.error(f"it must hold a JSON object, got a {type(value).__name__}")
        found: Any = value.get("schema")
        while type(found) is int and found in self.upgrades:
            value = self.upgrades[found](value)
            found = value.get("schema")
        if type(found) is not int or found != self.schema:
            got = "no schema" if found is None else f"schema {found!r}"
            raise self.error(f"it has {got}, this release reads {', '.join(map(str, (*self.upgrades, self.schema)))}")
        return value


def _parsed(text: str) -> Any:
    value = json.loads(text, parse_constant=_refuse, parse_float=_finite, parse_int=_whole, object_pairs_hook=_unique)
    if _SURROGATE.search(text):  # A pair of them is a letter; alone, one cannot be written in any encoding.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")


def _finite(text: str) -> float:
    # Python reads 1e999 as infinity; others refuse it, or read the largest number they have.
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:_LONGEST]} is not a finite number")
    return number


def _whole(text: str) -> int:
    # A whole number beyond the largest float is read as infinity elsewhere, and fails in arithmetic here.
    _finite(text)
    return int(text)


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return table
