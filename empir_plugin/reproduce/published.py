"""Published numbers, as data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from empir_plugin._files import tables
from empir_plugin.reproduce.document import Table

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
    return tables.loads((files("empir_plugin.reproduce") / "data" / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def table2() -> Mapping[tuple[str, str], Published]:
    """Table 2 by data set and defence.

    Example:
        >>> table2()["cifar10", "empir"].reference[-1]
        26.78
    """
    rows = tables.tables_of(data_table("empir")["table2"], "[[table2]]")
    return MappingProxyType(dict(tables.build(_table2_row, row, "[[table2]]") for row in rows))


def _table2_row(
    dataset: str, defence: str, paper: tuple[float, ...], repository: tuple[float, ...] = ()
) -> tuple[tuple[str, str], Published]:
    return (dataset, defence), Published(paper, repository)


@dataclass(frozen=True)
class Difference:
    """One thing that is not the same in a published number and in ours.

    Args:
        code: A letter for tables.
        facet: What kind of thing: weights, labels, attack, architecture ...
        text: A sentence.
        ours: Protocols of ours it holds for; empty for all.
        datasets: Data sets it holds for; empty for all.
        defences: Defences it holds for; empty for all.
    """

    code: str
    facet: str
    text: str
    ours: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()
    defences: frozenset[str] = frozenset()

    def holds(self, ours: str, dataset: str, defence: str) -> bool:
        """Whether it is between the published number of a defence and ours by a protocol."""
        asked = ((self.ours, ours), (self.datasets, dataset), (self.defences, defence))
        return all(not wanted or found in wanted for wanted, found in asked)


@cache
def all_differences() -> tuple[Difference, ...]:
    """All of them, in order.

    Example:
        >>> [found.code for found in all_differences() if found.holds("released", "mnist", "baseline")]
        ['W', 'N']
    """
    rows = tables.tables_of(data_table("differences")["differences"], "[[differences]]")
    return tuple(tables.build(Difference, row, "[[differences]]") for row in rows)


def codes(ours: str, dataset: str, defence: str) -> str:
    """The letters of what differs.

    Example:
        >>> codes("paper", "mnist", "fgsm")
        'W N F L I'
    """
    return " ".join(found.code for found in all_differences() if found.holds(ours, dataset, defence))


def legend(used: Iterable[str]) -> Table:
    """What the letters in a table mean."""
    letters = {letter for text in used for letter in text.split()}
    rows = tuple((found.code, found.facet, found.text) for found in all_differences() if found.code in letters)
    return Table("What differs between the published numbers and ours.", ("Code", "What", "How"), rows, texts=3)
