"""Text for the page: threats, data sets, counts, ratios and values of records, as people read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError

NOT_MEASURED = "not measured"
"""Shown if nothing was measured: an empty cell or a 0 would look like a result."""

NOT_RECORDED = "not recorded"
"""Shown if a record lacks a value."""

TIMES = "\u00d7"
"""The unit of ratios."""

_NORMS = {"Linf": "L∞"}
_DATASETS = {"mnist": "MNIST", "cifar10": "CIFAR-10", "cifar100": "CIFAR-100", "imagenet": "ImageNet"}


def threat_text(text: str) -> str:
    """A threat as text; what is not a threat stays as it is.

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
    """A norm as text.

    Example:
        >>> norm_text("Linf"), norm_text("L2")
        ('L∞', 'L2')
    """
    return _NORMS.get(norm, norm)


def dataset_text(name: str) -> str:
    """The name of a data set as text.

    Example:
        >>> dataset_text("cifar10")
        'CIFAR-10'
    """
    return _DATASETS.get(name, name)


def count_text(count: int, noun: str) -> str:
    """A count with its noun, in the plural if needed.

    Example:
        >>> count_text(1, "image"), count_text(10_000, "image")
        ('1 image', '10,000 images')
    """
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def ratio_text(ratio: float | None) -> str:
    """A ratio to the full-precision network.

    Example:
        >>> ratio_text(1.7732), ratio_text(0.0364), ratio_text(None)
        ('1.77', '0.036', 'not measured')
    """
    if ratio is None:
        return NOT_MEASURED
    return f"{ratio:.3f}" if abs(ratio) < 0.1 else f"{ratio:.2f}"


def record_text(table: Mapping[str, Any], key: str) -> str:
    """A value of a record as text.

    Example:
        >>> record_text({"threads": [2]}, "threads"), record_text({"cascade": False}, "cascade")
        ('2', 'no')
        >>> record_text({}, "seed")
        'not recorded'
    """
    value = table.get(key)
    if value is None:
        return NOT_RECORDED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or NOT_RECORDED
    return str(value)
