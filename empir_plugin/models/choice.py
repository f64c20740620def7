"""Members of an enumeration, by their text."""

from __future__ import annotations

from enum import Enum
from typing import TypeVar

from empir_plugin.errors import InputError

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
        >>> from empir_plugin.models.binary import OneBit
        >>> choice(OneBit, "one_bit", "xnor")
        <OneBit.XNOR: 'xnor'>
    """
    try:
        return kind(value)
    except ValueError as error:
        known = ", ".join(member.value for member in kind)
        raise InputError(f"{setting} must be one of {known}, got {value!r}") from error
