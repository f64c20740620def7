"""The papers' published numbers, and in what ours differ from them, read from data files."""

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
"""Columns of Table 2."""

_DIFFERENCES = "What differs between the published numbers and ours."


@dataclass(frozen=True)
class PublishedNumbers:
    """Published numbers of one row of Table 2, in percent of the test set, in the order of :data:`COLUMNS`.

    Args:
        paper: From the review version of the paper.
        repository: From the authors' repository; empty if it has none.
    """

    paper: tuple[float, ...]
    repository: tuple[float, ...] = ()

    @property
    def reference(self) -> tuple[float, ...]:
        """The numbers ours are compared with: those of the published version, from the repository, if there are any."""
        return self.repository or self.paper


def data_table(name: str) -> dict[str, Any]:
    """Read a data file of this package.

    Example:
        >>> data_table("empir")["columns"][1]
        'CW'
    """
    return tables.loads((files("empir_plugin.reproduce") / "data" / f"{name}.toml").read_text(encoding="utf-8"))


@cache
def table2() -> Mapping[tuple[str, str], PublishedNumbers]:
    """Table 2 by data set and defence.

    Example:
        >>> table2()["cifar10", "empir"].reference[-1]
        26.78
    """
    rows = data_table("empir")["table2"]
    return MappingProxyType(
        {
            (row["dataset"], row["defence"]): PublishedNumbers(tuple(row["paper"]), tuple(row.get("repository", ())))
            for row in rows
        }
    )


@dataclass(frozen=True)
class Difference:
    """One difference between a published number and ours.

    Args:
        code: The letter that stands for it in tables.
        facet: What differs: weights, labels, attack, architecture ...
        text: A description, as a sentence.
        ours: Protocols of ours it applies to; empty for all.
        datasets: Data sets it applies to; empty for all.
        defences: Defences it applies to; empty for all.
    """

    code: str
    facet: str
    text: str
    ours: frozenset[str] = frozenset()
    datasets: frozenset[str] = frozenset()
    defences: frozenset[str] = frozenset()

    def applies(self, ours: str, dataset: str, defence: str) -> bool:
        """Whether the published number of a defence differs in this way from ours by the protocol ``ours``."""
        conditions = ((self.ours, ours), (self.datasets, dataset), (self.defences, defence))
        return all(not allowed or value in allowed for allowed, value in conditions)


@cache
def all_differences() -> tuple[Difference, ...]:
    """All differences, in the order of the data file.

    Example:
        >>> [each.code for each in all_differences() if each.applies("released", "mnist", "baseline")]
        ['W', 'N']
    """
    lists = "ours", "datasets", "defences"
    rows = data_table("differences")["differences"]
    return tuple(
        Difference(row["code"], row["facet"], row["text"], *(frozenset(row.get(name, ())) for name in lists))
        for row in rows
    )


def codes(ours: str, dataset: str, defence: str) -> str:
    """Letters of all differences between a published number and ours.

    Example:
        >>> codes("paper", "mnist", "fgsm")
        'W N F L I'
    """
    return " ".join(each.code for each in all_differences() if each.applies(ours, dataset, defence))


def facets_table(name: str) -> Table:
    """The differences that the data file of a target lists, without letters.

    Example:
        >>> facets_table("discretization").rows[0][0]
        'architecture'
    """
    rows = tuple((row["facet"], row["text"]) for row in data_table(name)["differences"])
    return Table(_DIFFERENCES, ("What", "How"), rows, texts=2)


def legend(used: Iterable[str]) -> Table:
    """Explain the letters used in tables."""
    letters = {letter for text in used for letter in text.split()}
    rows = tuple((each.code, each.facet, each.text) for each in all_differences() if each.code in letters)
    return Table(_DIFFERENCES, ("Code", "What", "How"), rows, texts=3)
