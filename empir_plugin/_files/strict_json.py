"""JSON files that all readers understand alike: finite numbers, no key twice, and each there whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import EmpirError

_T = TypeVar("_T")
_LONGEST = 20


@dataclass(frozen=True)
class JsonKind:
    """One kind of JSON file, in UTF-8, read and written strictly.

    Args:
        name: Of it, with its article: ``"a run record"``.
        error: Type of every error about such files.
        schema: Version of its format, which the files have under the key ``schema``; None for a kind without.
        upgrades: For each older schema that is still read, what turns such a table into one of a newer schema.
        cure: What to do about a damaged file, as the end of a sentence.

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
        """A value as the text of a file: ASCII, indented by two spaces.

        Raises:
            EmpirError: Of this kind, if a number is NaN or infinite, or something is no JSON.
        """
        try:
            return json.dumps(value, indent=2, allow_nan=False) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise self.error(f"{self.name} holds texts and finite numbers only ({error})") from error

    def write(self, path: Path, value: object) -> None:
        """Write a value; a kill leaves what was there, or all of the new file. Missing folders are made.

        Raises:
            EmpirError: Of this kind, if the value is no JSON, or the file cannot be written.
        """
        text = self.text(value)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode())
        except OSError as error:
            reason = error.strerror or error
            raise self.error(f"the {self._noun} cannot be written to {path} ({reason}): choose another file") from error

    def load(self, path: Path) -> Any:
        """What a file holds, whatever that is.

        Raises:
            EmpirError: Of this kind, if the file is missing, or not such JSON.
        """
        try:
            return _parsed(path.read_text(encoding="utf-8"))
        except OSError as error:
            reason = error.strerror or error
            raise self.error(f"{path} cannot be read as {self.name} ({reason}): check the path") from error
        except (ValueError, RecursionError) as error:
            raise self.error(f"{path} is no {self._noun}: it is no valid JSON ({error}){self._end}") from error

    def read(self, path: Path, parse: Callable[[Any], _T]) -> _T:
        """What a file describes.

        Args:
            path: The file.
            parse: Makes it of what the file holds; that it cannot, is said of the file.

        Raises:
            EmpirError: Of this kind, if the file is missing, no such JSON, of another version, or not to be parsed.
        """
        value = self.load(path)
        try:
            return parse(self._current(value))
        except EmpirError as error:
            raise self.error(f"{path} is no {self._noun}: {error}{self._end}") from error
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise self.error(f"{path} is no {self._noun} ({type(error).__name__}: {error}){self._end}") from error

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
            raise self.error(f"it holds no table of fields, but a {type(value).__name__}")
        found: Any = value.get("schema")
        while found in self.upgrades:
            value = self.upgrades[found](value)
            found = value.get("schema")
        if found != self.schema:
            got = "no schema" if found is None else f"schema {found!r}"
            raise self.error(f"it has {got}, this release reads {', '.join(map(str, (*self.upgrades, self.schema)))}")
        return value


def _parsed(text: str) -> Any:
    return json.loads(text, parse_constant=_refuse, parse_float=_finite, object_pairs_hook=_unique)


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"there is no {text}")


def _finite(text: str) -> float:
    # Python reads 1e999 as infinity; others refuse it, or read the largest number they have.
    if not math.isfinite(number := float(text)):
        raise ValueError(f"{text[:_LONGEST]} is no finite number")
    return number


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"{next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return table
