"""How a page writes numbers, radii and what there is none of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError

NOT_MEASURED = "not measured"
"""Stands where nothing was measured: an empty cell or a 0 would read as a result."""

NOT_RECORDED = "not recorded"
"""Stands where a record does not say."""

TIMES = "\u00d7"
"""Stands behind ratios."""

_NORMS = {"Linf": "L∞"}
_DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


def threat_text(text: str) -> str:
    """A threat for people.

    Example:
        >>> threat_text("Linf:8/255"), threat_text("L2:inf"), threat_text("something else")
        ('L∞, ε = 8/255', 'L2, any size', 'something else')
    """
    try:
        threat = Threat.parse(text)
    except InputError:
        return text
    norm = norm_text(str(threat.norm))
    return f"{norm}, any size" if threat.eps_text == "inf" else f"{norm}, ε = {threat.eps_text}"


def norm_text(norm: str) -> str:
    """A norm for people.

    Example:
        >>> norm_text("Linf"), norm_text("L2")
        ('L∞', 'L2')
    """
    return _NORMS.get(norm, norm)


def dataset_text(name: str) -> str:
    """A data set for people.

    Example:
        >>> dataset_text("cifar10")
        'CIFAR-10'
    """
    return _DATASETS.get(name, name)


def counted(count: int, noun: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "image"), counted(10_000, "image")
        ('1 image', '10,000 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def number_at(table: object, *keys: str) -> float | None:
    """A number inside tables of tables; None if it is not there, or something else is.

    Example:
        >>> number_at({"eq6": {"time": {"ideal": 1.25}}}, "eq6", "time", "ideal"), number_at({"eq6": 1}, "eq6", "time")
        (1.25, None)
    """
    for key in keys:
        if not isinstance(table, Mapping):
            return None
        table = table.get(key)
    return float(table) if isinstance(table, (int, float)) and not isinstance(table, bool) else None


def times(number: float | None) -> str:
    """A ratio to the full-precision network.

    Example:
        >>> times(1.7732), times(0.0364), times(None)
        ('1.77', '0.036', 'not measured')
    """
    if number is None:
        return NOT_MEASURED
    return f"{number:.3f}" if abs(number) < 0.1 else f"{number:.2f}"


def recorded(table: Mapping[str, Any], key: str) -> str:
    """What a record says under a key, as text.

    Example:
        >>> recorded({"threads": [2]}, "threads"), recorded({"cascade": False}, "cascade"), recorded({}, "seed")
        ('2', 'no', 'not recorded')
    """
    value = table.get(key)
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or NOT_RECORDED
    return str(value)
