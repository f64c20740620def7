"""JSON schemas (https://json-schema.org, draft 2020-12), kept as data files, and what is wrong with a value in words.

A schema names every key of a format with its type and range, and says of each in ``description`` what it must be, so
that one file is the documentation, the check, and the source of the error messages.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any, cast

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError
from jsonschema.validators import extend

_LONGEST = 60


@dataclass(frozen=True)
class JsonSchema:
    """A schema that a package holds as a file.

    Args:
        package: Name of the package.
        file: Name of the file in it.

    Example:
        >>> problems = JsonSchema("empir_plugin.evaluation", "record.schema.json").problems({"data": {"n": 0}})
        >>> [text for text in problems if text.startswith("data.n ")]
        ['data.n must be a whole number, 1 or more, got 0']
    """

    package: str
    file: str

    @cached_property
    def table(self) -> Mapping[str, Any]:
        """The schema itself."""
        return json.loads(files(self.package).joinpath(self.file).read_text(encoding="utf-8"))

    @cached_property
    def _validator(self) -> Any:
        # JSON schema accepts 3.0 as an integer; our files have 3.
        strict = Draft202012Validator.TYPE_CHECKER.redefine("integer", lambda _, value: type(value) is int)
        return extend(Draft202012Validator, type_checker=strict)(self.table)

    def problems(self, value: object) -> Iterator[str]:
        """Everything that is wrong with a parsed JSON value, in sentences that name the key; nothing if it fits."""
        yield from dict.fromkeys(
            sentence for error in self._validator.iter_errors(value) for sentence in self._say(error)
        )

    def _say(self, error: ValidationError) -> Iterator[str]:
        path, wanted, place = _spell(error.absolute_path), cast("Any", error.validator_value), cast("Any", error.schema)
        instance: Any = error.instance
        if error.validator == "required":
            yield from (f"{_join(path, key)} is missing" for key in wanted if key not in instance)
        elif error.validator == "additionalProperties":
            known = place["properties"]
            yield from (f"{_join(path, key)} is unknown" for key in instance if key not in known)
        elif path or error.validator == "type":
            yield f"{path or 'it'} must be {self._description(error)}, got {shorten(instance)}"

    def _description(self, error: ValidationError) -> str:
        """The innermost description on the way to what failed."""
        place: Any = self.table
        top = place.get("description", "a JSON object")
        key = next(iter(error.absolute_path), None)
        found = place["properties"].get(key, {}).get("description", top)
        for step in error.absolute_schema_path:  # It leaves out references.
            while isinstance(place, Mapping) and step not in place:
                place = self.table["$defs"][place["$ref"].rpartition("/")[2]]
                found = place.get("description", found)
            place = place[step]
            if isinstance(place, Mapping) and isinstance(place.get("description"), str):
                found = place["description"]
        return found


def shorten(value: object) -> str:
    """A value as JSON text, cut where it is long.

    Example:
        >>> shorten("1" * 100)
        '"11111111111111111111111111111111111111111111111111111111111...'
    """
    text = json.dumps(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _spell(path: Any) -> str:
    """A path into a value as people write it: ``attacks[0].name``."""
    text = ""
    for step in path:
        text = f"{text}[{step}]" if isinstance(step, int) else _join(text, step)
    return text


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
