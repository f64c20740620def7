"""The table of a board: one row for each entry, and in every cell what is shown and what it is sorted by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from empir_plugin.leaderboard.markup import plain
from empir_plugin.leaderboard.page_published import Published
from empir_plugin.leaderboard.page_text import NOT_MEASURED, TIMES, number_at, threat_text, times

STORAGE = ("storage_ratio",)
"""Where an overhead has the size of the weight file, relative to that of the full-precision network."""

TIME = ("eq6", "time", "as_built")
"""Where it has the time by Equation 6 of EMPIR, layers that stay in full precision counted as such."""

NO_CLAIM = "none"
"""Stands where the paper publishes no number for the model."""


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        key: Short name.
        label: Its heading.
        unit: Of its numbers; empty for text.
        descending: Whether the first click puts the largest first.
        hint: What it means.
    """

    key: str
    label: str
    unit: str
    descending: bool
    hint: str


COLUMNS = (
    Column("rank", "Rank", "", False, "By worst case, the highest first, as RobustBench ranks."),
    Column("model", "Model", "", False, "Name on the leaderboard, and what it is."),
    Column("clean", "Clean", "%", True, "Images of the test set classified correctly without an attack."),
    Column("autoattack", "AutoAttack", "%", True, "Images that withstand standard AutoAttack."),
    Column("worst", "Worst case", "%", True, "Images that withstand every attack run, image by image."),
    Column("claim", "Paper's claim", "%", True, "Robust accuracy the paper publishes, under the threat it names."),
    Column("audit", "Masking audit", "", False, "Whether checks for gradient masking found a sign of it."),
    Column("storage", "Storage", TIMES, False, "Size of the weight file, relative to one full-precision network."),
    Column("time", "Time", TIMES, False, "Equation 6 of EMPIR, as built, relative to one full-precision network."),
)
"""The columns that can be sorted by, in order."""


@dataclass(frozen=True)
class Verdict:
    """What an audit for gradient masking says.

    Args:
        kind: ``passed``, ``masked`` or ``unknown``; each has a shape and a colour of its own.
        text: In words.
        note: The checks that failed, or nothing.
    """

    kind: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        column: It stands in.
        text: Shown.
        sort: What rows are sorted by; None if there is nothing, and the row comes last.
        note: Shown below, smaller.
        warning: Shown as a warning.
    """

    column: Column
    text: str
    sort: float | str | None
    note: str = ""
    warning: str = ""


def cells(rank: int, row: Published) -> Iterator[Cell]:
    """The cells of an entry, in the order of :data:`COLUMNS`."""
    entry, verdict = row.entry, verdict_of(row)
    claim, where = _claim(row)
    storage, time = (number_at(entry.overhead, *keys) for keys in (STORAGE, TIME))
    made: tuple[tuple[str, float | str | None, str, str], ...] = (
        (str(rank), rank, "", ""),
        (row.place.stem, row.place.stem.lower(), plain(entry.architecture), ""),
        (entry.clean_acc, float(entry.clean_acc), "", ""),
        (entry.autoattack_acc, float(entry.autoattack_acc), "", "unreliable" if entry.unreliable else ""),
        (entry.lowest_acc, row.lowest, "", ""),
        (claim, float(claim) if where else None, where, ""),
        (verdict.text, None if verdict.kind == "unknown" else verdict.kind, verdict.note, ""),
        (times(storage), storage, "", ""),
        (times(time), time, "", ""),
    )
    for column, (text, sort, note, warning) in zip(COLUMNS, made, strict=True):
        yield Cell(column, text, sort, note, warning)


def verdict_of(row: Published) -> Verdict:
    """What the audit of an entry says; that there was none, if there was none."""
    audit = row.findings.audit
    if audit is None:
        return Verdict("unknown", NOT_MEASURED)
    if audit.masked:
        return Verdict("masked", "masked", ", ".join(finding.name for finding in audit.failed))
    return Verdict("passed", "passed")


def _claim(row: Published) -> tuple[str, str]:
    """The claim under the board's threat, else the first; and under which threat it is."""
    claims, threat = row.findings.facts.claims, row.place.board.threat
    for claim in sorted(claims, key=lambda claim: claim.threat != threat):
        return claim.accuracy, "same radius" if claim.threat == threat else f"at {threat_text(str(claim.threat))}"
    return NO_CLAIM, ""
