"""Everything that can be reproduced, by name."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from empir_plugin.errors import InputError
from empir_plugin.reproduce.discretization import DISCRETIZATION
from empir_plugin.reproduce.fig1 import FIG1
from empir_plugin.reproduce.fig3a import FIG3A
from empir_plugin.reproduce.fig3b import FIG3B
from empir_plugin.reproduce.fig4 import FIG4
from empir_plugin.reproduce.fig5 import FIG5
from empir_plugin.reproduce.table2 import TABLE2
from empir_plugin.reproduce.target import Target
from empir_plugin.reproduce.weight_quantized import WEIGHT_QUANTIZED

TARGETS: Mapping[str, Target] = MappingProxyType(
    {target.name: target for target in (TABLE2, FIG1, FIG3A, FIG3B, FIG4, FIG5, DISCRETIZATION, WEIGHT_QUANTIZED)}
)
"""Targets in the order of a report."""

ALL = "all"


def parse_targets(text: str) -> tuple[Target, ...]:
    """A target by its name, or all of them.

    Raises:
        InputError: If there is none of that name.

    Example:
        >>> [target.name for target in parse_targets("table2")]
        ['table2']
    """
    if text == ALL:
        return tuple(TARGETS.values())
    if text not in TARGETS:
        raise InputError(f"what to reproduce is one of {', '.join((*TARGETS, ALL))}, got {text!r}")
    return (TARGETS[text],)
