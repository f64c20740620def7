"""The claims ledger: what was published, what we measured, and what follows. No verdict is typed by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from empir_plugin.evaluation.protocols import adaptive
from empir_plugin.reproduce.document import Cell, Table, points
from empir_plugin.reproduce.published import data_table
from empir_plugin.reproduce.results import Results, mean_accuracy
from empir_plugin.reproduce.table2 import ATTACKS, slug_of

HOLDS, FAILS, OPEN = "holds", "does not hold", "not measured"


@dataclass(frozen=True)
class Relation:
    """When a measurement bears a claim out.

    Args:
        sign: As readers know it.
        holds: Of claim, measurement and tolerance.
    """

    sign: str
    holds: Callable[[float, float, float], bool]


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "at_least": Relation(">=", lambda claim, found, tolerance: found >= claim - tolerance),
        "less_than": Relation("<", lambda claim, found, tolerance: found < claim + tolerance),
        "at_most": Relation("<=", lambda claim, found, tolerance: found <= claim + tolerance),
        "about": Relation("=", lambda claim, found, tolerance: abs(found - claim) <= tolerance),
    }
)
"""By the names that data files use."""


@dataclass(frozen=True)
class Found:
    """A measurement.

    Args:
        how: By what it was measured.
        slugs: Records it follows from.
        value: The number; None if a record is missing, or those to be compared are about different images.
    """

    how: str
    slugs: tuple[str, ...]
    value: float | None


@dataclass(frozen=True)
class Line:
    """One claim beside one measurement.

    Args:
        claim: In words.
        source: Where it was published.
        value: Its number.
        unit: Of both numbers.
        relation: A key of :data:`RELATIONS`.
        tolerance: In that unit.
        found: The measurement.
    """

    claim: str
    source: str
    value: float
    unit: str
    relation: str
    tolerance: float
    found: Found

    @property
    def verdict(self) -> str:
        """What follows from the two numbers.

        Example:
            >>> Line("", "", 42.6, "points", "at_least", 5.0, Found("", (), 40.0)).verdict
            'holds'
            >>> Line("", "", 42.6, "points", "at_least", 5.0, Found("", (), 1.0)).verdict
            'does not hold'
        """
        if self.found.value is None:
            return OPEN
        held = RELATIONS[self.relation].holds(self.value, self.found.value, self.tolerance)
        return HOLDS if held else FAILS


def _gain(results: Results, dataset: str, by: str) -> Found:
    slugs = tuple(slug_of(dataset, defence, by) for defence in ("baseline", "empir"))
    told = "worst cases" if by == adaptive.name else "averages of CW, FGSM, BIM, PGD"
    how = f"difference of the {told}, {by}"
    records = [results.record(slug) for slug in slugs if results.has(slug)]
    if len(records) < len(slugs) or len({record.data["sha256"] for record in records}) > 1:
        return Found(how, slugs, None)
    baseline, empir = (
        record.worst_case_accuracy if by == adaptive.name else mean_accuracy(record, ATTACKS) for record in records
    )
    return Found(how, slugs, round(empir - baseline, 2))


def _overhead(results: Results, dataset: str, cost: str, form: str) -> Found:
    slug = f"{dataset}-empir-cost"
    told = f"Equation 6, {'the ideal' if form == 'ideal' else 'layers as built'}"
    if not results.has(slug):
        return Found(told, (slug,), None)
    return Found(told, (slug,), round(100 * (results.table(slug)["eq6"][cost][form] - 1), 2))


def _worst(results: Results, slug: str) -> Found:
    value = results.record(slug).worst_case_accuracy if results.has(slug) else None
    return Found("worst case, adaptive", (slug,), value)


def _clean(results: Results, slug: str) -> Found:
    return Found("clean accuracy", (slug,), results.record(slug).clean_accuracy if results.has(slug) else None)


def _narrowest(results: Results, dataset: str) -> Found:
    slug = f"{dataset}-empir-cost"
    if not results.has(slug):
        return Found("bits of the weights in the model", (slug,), None)
    layers = [layer for member in results.table(slug)["members"] for layer in member["layers"]]
    return Found(
        "bits of the weights in the model", (slug,), min(layer["precision"]["weight_bits"] for layer in layers)
    )


_MEASURES: Mapping[str, Callable[..., Found]] = MappingProxyType(
    {"gain": _gain, "overhead": _overhead, "worst": _worst, "clean": _clean, "narrowest": _narrowest}
)


@cache
def _claims() -> tuple[Mapping[str, Any], ...]:
    return tuple(data_table("claims")["claims"])


def ledger(results: Results) -> tuple[Line, ...]:
    """Every claim beside every measurement that decides it.

    Example:
        >>> from pathlib import Path
        >>> {line.verdict for line in ledger(Results(Path("no such folder")))}
        {'not measured'}
    """
    return tuple(
        Line(
            row["claim"], row["source"], row["value"], row["unit"], row["relation"], row["tolerance"],
            _MEASURES[measure["kind"]](results, **{key: value for key, value in measure.items() if key != "kind"}),
        )
        for row in _claims()
        for measure in row["measures"]
    )  # fmt: skip


def ledger_table(results: Results) -> Table:
    """The ledger as a report shows it."""
    header = ("Claim", "Where", "Measured by", "Records", "Verdict", "Claimed", "Measured", "Tolerance")
    rows = tuple(_row(results, line) for line in ledger(results))
    return Table("Claims about EMPIR. A verdict compares the two numbers, within the tolerance.", header, rows, texts=5)


def _row(results: Results, line: Line) -> tuple[Cell, ...]:
    records = "-" if line.found.value is None else tuple(map(results.link, line.found.slugs))
    claimed = f"{RELATIONS[line.relation].sign} {line.value:g} {line.unit}"
    words = line.claim, line.source, line.found.how, records, line.verdict
    return (*words, claimed, points(line.found.value), f"{line.tolerance:g}")
