"""Members of an enumeration, by their text."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from empir_plugin.errors import InputError

if sys.version_info >= (3, 11):
    from tomllib import TOMLDecodeError as TOMLDecodeError
    from tomllib import loads as loads
else:
    from tomli import TOMLDecodeError as TOMLDecodeError  # pyright: ignore[reportMissingImports]
    from tomli import loads as loads  # pyright: ignore[reportMissingImports]


T = TypeVar("T")


def build(target: Callable[..., T], table: Mapping[str, Any], where: str, **given: Any) -> T:
    """Call a dataclass or function with the keys of a TOML table as its arguments.

    Args:
        target: What is called; its signature says which keys there are, which are required, and of what kind.
        table: Key and value.
        where: What the table describes, for the messages.
        given: Arguments that do not come from the table; they are no keys of it.

    Raises:
        InputError: If a key is missing, unknown or of the wrong kind, or what is called refuses its value.

    Example:
        >>> def area(width: float, height: float = 1.0) -> float:
        ...     return width * height
        >>> build(area, {"width": 3}, "the field")
        3.0
    """
    parameters = {name: item for name, item in inspect.signature(target).parameters.items() if name not in given}
    required = {name for name, item in parameters.items() if item.default is inspect.Parameter.empty}
    check_keys(table, required=required, known=parameters.keys(), where=where)
    hints = get_type_hints(target)
    for key, value in table.items():
        if not _fits(hints[key], value):
            raise InputError(f"{key} of {where} must be {_spelled(hints[key])}, got {value!r}")
    try:
        return target(**table, **given)
    except InputError as error:
        if where in str(error):
            raise
        raise InputError(f"{where}: {error}") from error  # What refuses a value need not know whose it is.


def check_keys(table: Mapping[str, Any], *, required: Collection[str], known: Collection[str], where: str) -> None:
    """Refuse a table that lacks a required key or has one that is neither required nor known.

    Raises:
        InputError: In both cases.
    """
    missing = sorted(set(required) - table.keys())
    unknown = sorted(table.keys() - set(required) - set(known))
    if missing:
        raise InputError(f"{where} lacks the key(s) {', '.join(missing)}")
    if unknown:
        every = ", ".join(sorted(set(known) | set(required)))
        raise InputError(f"{where} has unknown key(s) {', '.join(unknown)}; known are {every}")


def table_of(value: Any, where: str) -> Mapping[str, Any]:
    """The value itself, if it is a table.

    Raises:
        InputError: If it is not.
    """
    if not isinstance(value, Mapping):
        raise InputError(f"{where} must be a table, got {value!r}")
    return value


def _fits(hint: Any, value: object) -> bool:
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_args(hint):
        return any(_fits(option, value) for option in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _spelled(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, get_args(hint)))}"
    options = [option for option in get_args(hint) or (hint,) if option is not type(None)]
    return " or ".join(_KINDS.get(option, str(option)) for option in options)


_KINDS: Mapping[type, str] = {float: "a number", int: "a whole number", bool: "true or false", str: "a text"}


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0 or not finite.

    Raises:
        InputError: If it is one.

    Example:
        >>> check_positive("temperature", 0.0)
        Traceback (most recent call last):
        empir_plugin.errors.InputError: temperature must be above 0 and finite, got 0.0
    """
    if not 0 < value < float("inf"):
        raise InputError(f"{name} must be above 0 and finite, got {value!r}")


def check_not_negative(name: str, value: float) -> None:
    """Refuse a number that is below 0 or not finite.

    Raises:
        InputError: If it is one.

    Example:
        >>> check_not_negative("beta", -1.0)
        Traceback (most recent call last):
        empir_plugin.errors.InputError: beta must be 0 or more and finite, got -1.0
    """
    if not 0 <= value < float("inf"):
        raise InputError(f"{name} must be 0 or more and finite, got {value!r}")


E = TypeVar("E", bound=Enum)


def choice(kind: type[E], setting: str, value: E | str) -> E:
    """The member a text names; a member stays what it is.

    Args:
        kind: The enumeration.
        setting: What the error calls the value.
        value: A member or its text.

    Raises:
        InputError: If the text names none.

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
