"""Published numbers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from empir_plugin import _toml

COLUMNS = ("clean", "CW", "FGSM", "BIM", "PGD", "average")
"""Of a row of Table 2."""


@dataclass(frozen=True)
class Published:
    """One row of Table 2, in percent of the test set, in the order of :data:`COLUMNS`.

    Args:
        paper: By the review version of the paper.
        repository: By the authors' repository; empty if it does not say.
    """

    paper: tuple[float, ...]
    repository: tuple[float, ...] = ()

    @property
    def reference(self) -> tuple[float, ...]:
        """What ours is compared with: the repository, whose numbers are those of the published version, if it can."""
        return self.repository or self.paper


def data_table(name: str) -> dict[str, Any]:
    """A data file of this room.

    Example:
        >>> data_table("empir")["columns"][1]
        'CW'
    """
    return _toml.loads((files("empir_plugin.reproduce") / "data" / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def table2() -> Mapping[tuple[str, str], Published]:
    """Table 2 by data set and defence.

    Example:
        >>> table2()["cifar10", "empir"].reference[-1]
        26.78
    """
    rows = data_table("empir")["table2"]
    return MappingProxyType(
        {
            (row["dataset"], row["defence"]): Published(tuple(row["paper"]), tuple(row.get("repository", ())))
            for row in rows
        }
    )
