"""Names that become names of files: one rule for models, members, recipes, records and entries.

A name that keeps to it stays in the folder it is written to, on every system: it is one part of a path, is not hidden,
and is no device of Windows.
"""

from __future__ import annotations

import re

from empir_plugin.errors import InputError

LONGEST = 128
"""Characters of a name; what is added to it, such as ``.checkpoint.safetensors``, still fits into 255."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_OTHER = re.compile(r"[^A-Za-z0-9._+-]+")
_DEVICES = frozenset(
    {"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))}
)


def check_name(what: str, name: object) -> str:
    """The name itself, checked to be a plain name of a file.

    Args:
        what: What has the name, with an article, for the message.
        name: 1 to 128 ASCII letters, digits, ``.``, ``_``, ``+`` and ``-``; it begins with a letter or a digit, does
            not end with a dot, and its part before the first dot is no device of Windows, such as ``nul``.

    Raises:
        InputError: If it is anything else.

    Example:
        >>> check_name("a recipe", "empir-cifar")
        'empir-cifar'
        >>> check_name("a recipe", "../x")
        Traceback (most recent call last):
        empir_plugin.errors.InputError: the name of a recipe must begin with a letter or digit, and have only letters, \
digits, '.', '_', '+' and '-', 128 at most, got '../x': rename it
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name) or len(name) > LONGEST or name.endswith("."):
        raise InputError(
            f"the name of {what} must begin with a letter or digit, and have only letters, digits, '.', '_', '+' and "
            f"'-', {LONGEST} at most, got {_shorten(name)}: rename it"
        )
    if name.partition(".")[0].lower() in _DEVICES:
        raise InputError(f"the name of {what} must not be a device of Windows, got {name!r}: rename it")
    return name


def plain_name(text: str) -> str:
    """A text as a name: whatever a name cannot have becomes ``-``.

    Raises:
        InputError: If nothing is left.

    Example:
        >>> plain_name("empir-cifar-at (max_vote)")
        'empir-cifar-at-max_vote'
    """
    return check_name("a file", _OTHER.sub("-", text).strip("._+-")[:LONGEST].rstrip("."))


def _shorten(name: object) -> str:
    text = repr(name) if isinstance(name, str) else f"a {type(name).__name__}"
    return text if len(text) <= LONGEST else f"{text[:40]}... ({len(text) - 2} characters)"
