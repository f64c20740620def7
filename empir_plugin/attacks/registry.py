"""Attacks by name, discovered by entry point: those of this package and of any other."""

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
"""Entry-point group: name = name of the attack, value = a :data:`Factory`."""

Factory = Callable[..., Attack]
"""What an entry point of the group names, a function or a class: settings in, an attack out."""


@cache
def attacks() -> Mapping[str, Factory]:
    """The factory of every discovered attack by its name, of this package and of others.

    A broken entry point is skipped with a warning that names its distribution; so is a second one of the same name.

    Example:
        >>> attacks()["fgsm"]().steps
        1
    """
    return discover(entry_points(group=GROUP), "attack", _accepted, "attack factory (settings in, an attack out)")


def load_attack(name: str, /, **settings: Any) -> Attack:
    """Make an attack by its name; case, ``-`` and ``_`` make no difference.

    Args:
        name: A discovered name such as ``"pgd"``.
        settings: What the attack's factory takes; its defaults hold for what is left out.

    Raises:
        InputError: If the attack is not known, or a setting is unknown, lacking or not what it must be.
        EvaluationError: If what another package names by this makes no attack.

    Example:
        >>> load_attack("pgd", steps=20, restarts=5).restarts
        5
    """
    factory = find(attacks(), name)
    if factory is None:
        advice = hint(name.lower(), attacks(), f"there are {', '.join(attacks())}")
        raise InputError(f"no attack {name!r} here: {advice}")
    takes = _check(name, settings, signature(factory).parameters.values())
    try:
        attack = factory(**settings)
    except TypeError as error:
        given = ", ".join(f"{setting}={value!r}" for setting, value in settings.items())
        raise InputError(f"attack {name!r} cannot be made of {given or 'its defaults'} ({error}): {takes}") from error
    if not callable(attack):
        raise EvaluationError(
            f"attack {name!r} came out as {type(attack).__name__}, which cannot be called: tell its authors"
        )
    return attack


def _accepted(loaded: Any) -> Factory | None:
    try:
        parameters = signature(loaded).parameters
    except (TypeError, ValueError):  # not callable, or without a signature to check settings by
        return None
    is_attack = {"model", "x", "y", "threat"} <= parameters.keys()
    return None if is_attack else loaded


def _check(name: str, settings: Mapping[str, Any], parameters: Collection[Parameter]) -> str:
    """Refuse settings that are unknown or lacking; which ones there are, in words."""
    named = {each.name: each for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)}
    takes = f"it takes {', '.join(named) or 'no settings'}"
    takes_any = any(each.kind is each.VAR_KEYWORD for each in parameters)
    unknown = [setting for setting in settings if setting not in named and not takes_any]
    if unknown:
        raise InputError(f"attack {name!r} has no setting {', '.join(unknown)}: {takes}")
    lacking = [key for key, each in named.items() if each.default is each.empty and key not in settings]
    if lacking:
        raise InputError(f"attack {name!r} needs the setting {', '.join(lacking)}: {takes}")
    return takes
