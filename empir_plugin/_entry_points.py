"""Discover the entry points of a group, of this package and of others, and look names up in them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from difflib import get_close_matches
from importlib.metadata import EntryPoint
from types import MappingProxyType
from typing import Any, TypeVar

from empir_plugin._files.names import check_name
from empir_plugin.errors import InputError

T = TypeVar("T")


def discover(
    points: Iterable[EntryPoint], kind: str, accept: Callable[[Any], T | None], wanted: str
) -> Mapping[str, T]:
    """Load entry points, this package's first.

    A broken entry point, one whose name is not plain, or a second one of the same name, is skipped with a warning that
    names its distribution.

    Args:
        points: The entry points of one group.
        kind: What they name, such as ``"model"``, for the warning.
        accept: Returns the loaded object, converted if need be, or None if it is of the wrong type.
        wanted: The right type in words, for the warning.

    Example:
        >>> point = EntryPoint("gcd", "math:gcd", "a.group")
        >>> list(discover([point], "function", lambda loaded: loaded if callable(loaded) else None, "function"))
        ['gcd']
    """
    found: dict[str, T] = {}
    names = _DistributionNames()
    for point in sorted(points, key=names.ours_first):
        problem, value = _problem_of_name(kind, point.name, found), None
        if not problem:
            value, problem = _load(point, accept, wanted)
        if value is None:
            message = f"{kind} {point.name!r} of {_distribution(point)} is ignored: {problem}"
            warnings.warn(message, stacklevel=3)
        else:
            found[point.name] = value
    return MappingProxyType(found)


class _DistributionNames:
    """The names of distributions, each read once: reading one parses the distribution's metadata."""

    def __init__(self) -> None:
        self._names: dict[int, str] = {}

    def ours_first(self, point: EntryPoint) -> tuple[bool, str]:
        """A key to sort entry points by."""
        name = self._names.setdefault(id(point.dist), "") or _distribution(point)
        self._names[id(point.dist)] = name
        return name != "empir-plugin", name


def _problem_of_name(kind: str, name: str, found: Collection[str]) -> str:
    """What is wrong with a name; empty if nothing is."""
    if name in found:
        return "the name is taken"
    try:
        check_name(f"a {kind}", name)
    except InputError as error:
        return str(error)
    return ""


def _distribution(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else "an unknown distribution"


def _load(point: EntryPoint, accept: Callable[[Any], T | None], wanted: str) -> tuple[T | None, str]:
    try:
        loaded = point.load()
    except Exception as error:  # an error in one package must not break the others
        return None, f"it cannot be loaded ({type(error).__name__}: {error})"
    return accept(loaded), f"it is no {wanted} but a {type(loaded).__name__}"


def find(entries: Mapping[str, T], name: str) -> T | None:
    """The entry of a name; as in RobustBench, case, ``-`` and ``_`` make no difference.

    Example:
        >>> find({"empir-cifar": 3}, "EMPIR_cifar")
        3
    """
    return next((value for known, value in entries.items() if _plain(known) == _plain(name)), None)


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def hint(name: str, known: Iterable[str], otherwise: str) -> str:
    """Advice on an unknown name: the closest known one, or else ``otherwise``.

    Example:
        >>> hint("pdg", ["fgsm", "pgd"], "install one")
        "did you mean 'pgd'?"
    """
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else otherwise
