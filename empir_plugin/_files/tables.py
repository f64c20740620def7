"""Tables from TOML or JSON, and the values in them: :func:`build` turns a table into an object.

Every error is an :class:`~empir_plugin.errors.InputError` that names the table and the key, and says what was expected
and what came.
"""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from empir_plugin.errors import InputError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pyright: ignore[reportMissingImports]

TOMLDecodeError = tomllib.TOMLDecodeError

T = TypeVar("T")
E = TypeVar("E", bound=Enum)

_READER = "read"
_DEPTH = 16
"""Tables and lists inside one another; those of this package have 4."""


def loads(text: str) -> dict[str, Any]:
    """The table of a TOML text.

    Raises:
        TOMLDecodeError: If the text is not TOML, is nested deeper than 16 levels, or has a number of thousands of
            digits.

    Example:
        >>> loads("epochs = 3")
        {'epochs': 3}
    """
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise TOMLDecodeError("it is nested too deep") from error
    except TOMLDecodeError:
        raise
    except ValueError as error:  # Python reads no integer of more than a few thousand digits.
        raise TOMLDecodeError(str(error)) from error
    if is_nested_deeper(table, _DEPTH):
        raise TOMLDecodeError(f"it is nested deeper than {_DEPTH} levels")
    return table


def is_nested_deeper(value: object, levels: int) -> bool:
    """Whether tables and lists lie in one another at more levels than that; found without recursion.

    Example:
        >>> is_nested_deeper({"a": [1]}, 2), is_nested_deeper({"a": [[1]]}, 2)
        (False, True)
    """
    level: list[Any] = [value]
    for _ in range(levels):
        level = [item for each in level for item in _inner(each)]
        if not any(isinstance(each, (dict, list)) for each in level):
            return False
    return True


def _inner(value: Any) -> Collection[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def build(target: Callable[..., T], table: Mapping[str, Any], where: str, **given: Any) -> T:
    """Call a dataclass or function with the keys of a table as its arguments.

    Its annotations say what the values must be, and how they are read:

    - numbers, booleans, texts and ``Literal`` values are taken as they are; a whole number will do for a ``float``;
    - a member of an enumeration is read from its text, and a class with a method ``parse``, such as
      :class:`~empir_plugin.attacks.threat.Threat`, by that method;
    - a dataclass is built from a table, ``tuple[X, ...]``, ``Collection[X]`` and ``frozenset[X]`` from a list;
    - of ``X | Y``, the first that fits is taken;
    - a dataclass field with the metadata of :func:`read_with` is read by the function given there.

    Args:
        target: What to call; its signature gives the known and the required keys.
        table: Values by key.
        where: What the table describes, for error messages.
        given: Arguments that do not come from the table; the table must not have them.

    Raises:
        InputError: If a key is missing, unknown or of the wrong kind, or the target refuses a value.

    Example:
        >>> def area(width: float, height: float = 1.0) -> float:
        ...     return width * height
        >>> build(area, {"width": 3}, "the field")
        3.0
        >>> build(area, {"width": "wide"}, "the field")
        Traceback (most recent call last):
        empir_plugin.errors.InputError: width of the field must be a number, got 'wide'
    """
    parameters = {name: item for name, item in inspect.signature(target).parameters.items() if name not in given}
    required = {name for name, item in parameters.items() if item.default is inspect.Parameter.empty}
    check_keys(table, required=required, known=parameters.keys(), where=where)
    hints, readers = get_type_hints(target), _readers(target)
    arguments = {
        key: readers[key](value, f"{key} of {where}")
        if key in readers
        else _read(value, hints[key], f"{key} of {where}")
        for key, value in table.items()
    }
    try:
        return target(**arguments, **given)
    except InputError as error:
        if where in str(error):
            raise
        raise InputError(f"{where}: {error}") from error  # The target need not know where its values come from.


def build_kind(targets: Mapping[str, Callable[..., T]], table: Any, where: str) -> T:
    """Build what a table's key ``kind`` names from the table's other keys.

    Args:
        targets: For each kind, what :func:`build` is to call.
        table: Values by key, ``kind`` among them.
        where: What the table describes, for error messages.

    Raises:
        InputError: If this is no table, its kind is missing or unknown, or :func:`build` refuses the other keys.

    Example:
        >>> build_kind({"integer": int, "complex": complex}, {"kind": "real"}, "[number]")
        Traceback (most recent call last):
        empir_plugin.errors.InputError: kind of [number] must be one of integer, complex, got 'real'
    """
    arguments = dict(table_of(table, where))
    kind = arguments.pop("kind", None)
    if not isinstance(kind, str) or kind not in targets:
        raise InputError(f"kind of {where} must be one of {', '.join(targets)}, got {kind!r}")
    return build(targets[kind], arguments, where)


def read_with(reader: Callable[[Any, str], Any]) -> Mapping[str, Any]:
    """Metadata of a dataclass field whose value :func:`build` is to read with a function.

    Args:
        reader: Called with the value and with what error messages call it.

    Example:
        >>> from dataclasses import dataclass, field
        >>> @dataclass
        ... class Song:
        ...     seconds: int = field(metadata=read_with(lambda value, where: 60 * int(value)))
        >>> build(Song, {"seconds": "3"}, "a song").seconds
        180
    """
    return {_READER: reader}


def check_keys(table: Mapping[str, Any], *, required: Collection[str], known: Collection[str], where: str) -> None:
    """Check that a table has all required keys, and none that is neither required nor known.

    Raises:
        InputError: If it lacks a key or has an unknown one.
    """
    missing = sorted(set(required) - table.keys())
    unknown = sorted(table.keys() - set(required) - set(known))
    every = ", ".join(sorted(set(known) | set(required))) or "none"
    if missing:
        raise InputError(f"{where} lacks the key(s) {', '.join(missing)}; known are {every}")
    if unknown:
        raise InputError(f"{where} has unknown key(s) {', '.join(unknown)}; known are {every}")


def table_of(value: Any, where: str) -> Mapping[str, Any]:
    """The value itself, checked to be a table.

    Raises:
        InputError: If it is none.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a table, got {value!r}")
    return value


def tables_of(value: Any, where: str) -> list[Mapping[str, Any]]:
    """The value itself, checked to be a list of tables, such as ``[[members]]`` in TOML.

    Raises:
        InputError: If it is none.

    Example:
        >>> tables_of(loads("[[members]]")["members"], "[[members]]")
        [{}]
    """
    if not isinstance(value, list):
        raise InputError(f"{where} must be a list of tables, got {value!r}")
    return [table_of(item, where) for item in value]


def check_positive(name: str, value: float) -> None:
    """Check that a number is above 0 and finite.

    Raises:
        InputError: If it is not.

    Example:
        >>> check_positive("temperature", 0.0)
        Traceback (most recent call last):
        empir_plugin.errors.InputError: temperature must be above 0 and finite, got 0.0
    """
    if not 0 < value < float("inf"):
        raise InputError(f"{name} must be above 0 and finite, got {value!r}")


def check_not_negative(name: str, value: float) -> None:
    """Check that a number is 0 or more and finite.

    Raises:
        InputError: If it is not.

    Example:
        >>> check_not_negative("beta", -1.0)
        Traceback (most recent call last):
        empir_plugin.errors.InputError: beta must be 0 or more and finite, got -1.0
    """
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} must be 0 or more and finite, got {value!r}")


def choice(kind: type[E], setting: str, value: E | str) -> E:
    """The member of an enumeration that a text names; a member is returned as it is.

    Args:
        kind: The enumeration.
        setting: What error messages call the value.
        value: A member or its text.

    Raises:
        InputError: If the text names no member.

    Example:
        >>> from empir_plugin.models.weight_quantizers import OneBit
        >>> choice(OneBit, "one_bit", "xnor")
        <OneBit.XNOR: 'xnor'>
    """
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(member.value for member in kind)
        raise InputError(f"{setting} must be one of {known}, got {value!r}") from error


def _readers(target: Callable[..., Any]) -> dict[str, Callable[[Any, str], Any]]:
    if not is_dataclass(target):
        return {}
    return {item.name: item.metadata[_READER] for item in fields(target) if _READER in item.metadata}


def _read(value: Any, kind: Any, name: str) -> Any:
    """A value of a table as its annotation wants it."""
    origin, options = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if origin in (Union, types.UnionType):
        return _read_union(value, options, name)
    if origin in _SEQUENCES:
        if not isinstance(value, (list, tuple)):
            raise _wrong(value, kind, name)
        return _SEQUENCES[origin](_read(item, options[0], f"item {i} of {name}") for i, item in enumerate(value, 1))
    if origin is None and isinstance(kind, type) and not (kind in _PLAIN or isinstance(value, kind)):
        return _read_object(value, kind, name)
    if not _is_plain(value, kind):
        raise _wrong(value, kind, name)
    return value


def _read_union(value: Any, options: tuple[Any, ...], name: str) -> Any:
    kinds = [kind for kind in options if kind is not type(None)]
    if value is None and len(kinds) < len(options):
        return None
    if len(kinds) == 1:
        return _read(value, kinds[0], name)
    for kind in kinds:
        with suppress(InputError):
            return _read(value, kind, name)
    raise InputError(f"{name} must be {' or '.join(map(_spell, kinds))}, got {value!r}")


def _read_object(value: Any, kind: type, name: str) -> Any:
    if issubclass(kind, Enum):
        return choice(kind, name, value)
    if hasattr(kind, "parse") and isinstance(value, str):
        try:
            return kind.parse(value)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    if is_dataclass(kind) and not hasattr(kind, "parse"):
        return build(kind, table_of(value, name), name)
    raise _wrong(value, kind, name)


def _is_plain(value: Any, kind: Any) -> bool:
    if get_origin(kind) is Literal:
        return any(value == option and type(value) is type(option) for option in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, (int, float) if kind is float else kind)


def _wrong(value: Any, kind: Any, name: str) -> InputError:
    cure = ": put it in quotes" if _spell(kind) == "a text" else ""
    return InputError(f"{name} must be {_spell(kind)}, got {value!r}{cure}")


def _spell(kind: Any) -> str:
    """A kind of value in words."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) in _SEQUENCES:
        return "a list"
    if hasattr(kind, "parse"):
        return "a text"
    return _PLAIN.get(kind, "a table")


_PLAIN: Mapping[Any, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}
_SEQUENCES: Mapping[Any, Callable[..., Any]] = {tuple: tuple, frozenset: frozenset, Collection: tuple}
