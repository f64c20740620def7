"""Numbers that only make sense above 0, or not below it."""

from __future__ import annotations

from empir_plugin.errors import InputError


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
