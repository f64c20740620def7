"""Surrogates by name: the only place where a text becomes one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from empir_plugin.attacks.surrogates import (
    Surrogate,
    mean_logits,
    mean_probability,
    member,
    plain,
    reweighted,
    sharpened_vote,
    voters,
    weighted,
)
from empir_plugin.attacks.through import Through
from empir_plugin.errors import InputError
from empir_plugin.models.backward import parse_backward

_NAMED: Mapping[str, Surrogate] = MappingProxyType(
    {str(surrogate): surrogate for surrogate in (plain, voters, mean_probability, mean_logits)}
)
_WITH_NUMBER: Mapping[str, Callable[[str], Surrogate]] = MappingProxyType(
    {
        "member": lambda text: member(int(text)),
        "sharpened_vote": lambda text: sharpened_vote(float(text)),
        "weighted": lambda text: weighted(map(float, text.split(","))),
        "reweighted": lambda text: reweighted(float(text)),
    }
)


def parse_surrogate(text: str) -> Surrogate:
    """Read a surrogate's text form, the one ``str`` gives.

    Args:
        text: ``plain``, ``voters``, ``mean_probability``, ``mean_logits``, ``member:0``, ``sharpened_vote:0.1``,
            ``weighted:0.5,0.5,1`` or ``reweighted:1``; each can be followed by a backward rule for quantizers,
            ``/clip``, ``/identity``, ``/soft`` or ``/soft:0.25``.

    Raises:
        InputError: If the text has another form.

    Example:
        >>> print(parse_surrogate("weighted:1,1,2/identity"))
        weighted:1,1,2/identity
    """
    what, slash, rule = text.partition("/")
    surrogate = _parse(what, text)
    return Through(surrogate, parse_backward(rule)) if slash else surrogate


def _parse(what: str, text: str) -> Surrogate:
    name, _, number = what.partition(":")
    try:
        return _WITH_NUMBER[name](number) if number else _NAMED[name]
    except (KeyError, ValueError) as error:
        forms = ", ".join([*_NAMED, "member:0", "sharpened_vote:0.1", "weighted:0.5,0.5,1", "reweighted:1"])
        raise InputError(f"a surrogate is written as one of {forms}, got {text!r}") from error
