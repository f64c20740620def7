"""Why a published number and ours may differ, as data."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from empir_plugin.reproduce.document import Table
from empir_plugin.reproduce.published import data_table


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
    lists = "ours", "datasets", "defences"
    rows = data_table("differences")["differences"]
    return tuple(
        Difference(row["code"], row["facet"], row["text"], *(frozenset(row.get(name, ())) for name in lists))
        for row in rows
    )


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
