"""Attacks by name, discovered through entry points: those of this package and of any other."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cache
from importlib.metadata import entry_points
from inspect import Parameter, signature
from typing import Any

from empir_plugin._entry_points import discover, find, hint
from empir_plugin.attacks.batch import Attack
from empir_plugin.errors import EvaluationError, InputError

GROUP = "robustbench.attacks"
"""Entry-point group: the name is the attack's name, the value a :data:`Factory`."""

Factory = Callable[..., Attack]
"""What an entry point of the group points to: a function or class that takes settings and returns an attack."""


@cache
def attacks() -> Mapping[str, Factory]:
    """The factories of all discovered attacks, of this package and of others, by name.

    A broken entry point is skipped with a warning that names its distribution; so is a second one of the same name.

    Example:
        >>> attacks()["fgsm"]().steps
        1
    """
    return discover(entry_points(group=GROUP), "attack", _as_factory, "attack factory (settings in, an attack out)")


def load_attack(name: str, /, **settings: Any) -> Attack:
    """Create an attack by name; case, ``-`` and ``_`` make no difference.

    Args:
        name: A discovered name such as ``"pgd"``.
        settings: Keyword arguments of the attack's factory.

    Raises:
        InputError: If the attack is unknown, or a setting is unknown, missing or invalid.
        EvaluationError: If another package's factory does not return an attack.

    Example:
        >>> load_attack("pgd", steps=20, restarts=5).restarts
        5
    """
    factory = find(attacks(), name)
    if factory is None:
        advice = hint(name.lower(), attacks(), f"there are {', '.join(attacks())}")
        raise InputError(f"no attack {name!r} here: {advice}")
    takes = _check_settings(name, settings, signature(factory).parameters.values())
    try:
        attack = factory(**settings)
    except TypeError as error:
        given = ", ".join(f"{setting}={value!r}" for setting, value in settings.items())
        raise InputError(
            f"attack {name!r} cannot be created with {given or 'its defaults'} ({error}): {takes}"
        ) from error
    if not callable(attack):
        raise EvaluationError(
            f"the factory of attack {name!r} must return a callable, got {type(attack).__name__}: tell its authors"
        )
    return attack


def _as_factory(loaded: Any) -> Factory | None:
    """The loaded object if it is an attack factory; None if it is an attack itself, or something else."""
    try:
        parameters = signature(loaded).parameters
    except (TypeError, ValueError):  # not callable, or without a signature to check settings against
        return None
    is_attack = {"model", "x", "y", "threat"} <= parameters.keys()
    return None if is_attack else loaded


def _check_settings(name: str, settings: Mapping[str, Any], parameters: Collection[Parameter]) -> str:
    """Raise if a setting is unknown or missing; return a text that lists the settings of the attack."""
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    takes = f"it takes {', '.join(named) or 'no settings'}"
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    unknown = [setting for setting in settings if setting not in named and not takes_any]
    if unknown:
        raise InputError(f"attack {name!r} has no setting {', '.join(unknown)}: {takes}")
    missing = [key for key, each in named.items() if each.default is each.empty and key not in settings]
    if missing:
        raise InputError(f"attack {name!r} needs the setting {', '.join(missing)}: {takes}")
    return takes
