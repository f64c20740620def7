"""The ranking table of a board: its columns, and the cells of each entry with their text and sort key."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from empir_plugin.evaluation.corruptions import mean_accuracies
from empir_plugin.evaluation.intervals import wilson_interval
from empir_plugin.leaderboard.entry import unescape_html
from empir_plugin.leaderboard.page.entries import STORAGE, TIME, PublishedEntry, number_at
from empir_plugin.leaderboard.page.text import NOT_MEASURED, TIMES, ratio_text, threat_text
from empir_plugin.leaderboard.tree import Board

NO_CLAIM = "none"
"""Shown if the paper publishes no number for the model."""


@dataclass(frozen=True)
class Column:
    """A column of the ranking table.

    Args:
        key: Short name.
        label: Its heading.
        unit: Of its numbers; empty for text.
        descending: Whether the first click sorts from the largest to the smallest.
        hint: What the column means.
    """

    key: str
    label: str
    unit: str
    descending: bool
    hint: str


COLUMNS = (
    Column("rank", "Rank", "", False, "By worst case, highest first, as RobustBench ranks."),
    Column("model", "Model", "", False, "Name on the leaderboard, and architecture."),
    Column(
        "worst",
        "Worst case",
        "%",
        True,
        "Share of images classified correctly under every attack (worst case per image), and its 95 % interval.",
    ),
    Column("clean", "Clean", "%", True, "Accuracy on the clean test set."),
    Column("autoattack", "AutoAttack", "%", True, "Accuracy under standard AutoAttack."),
    Column("claim", "Paper's claim", "%", True, "Robust accuracy in the paper, under the paper's own threat."),
    Column("audit", "Masking audit", "", False, "Whether the audit found signs of gradient masking."),
    Column("storage", "Storage", TIMES, False, "Size of the weight file, relative to one full-precision network."),
    Column("time", "Time", TIMES, False, "Equation 6 of EMPIR, as built, relative to one full-precision network."),
)
"""The sortable columns, in order."""

_UNDER_CORRUPTIONS = {
    "rank": Column("rank", "Rank", "", False, "By the mean over all corruptions, highest first, as RobustBench ranks."),
    "autoattack": Column("autoattack", "Corruptions", "%", True, "Mean over 15 corruptions at 5 severities."),
    "worst": Column("worst", "Worst corruption", "%", True, "The lowest mean over 5 severities of one corruption."),
}


def columns_of(board: Board) -> tuple[Column, ...]:
    """The columns of the entries on a board.

    Example:
        >>> from empir_plugin.leaderboard.tree import board_of
        >>> [column.label for column in columns_of(board_of("cifar10", "corruptions"))][2:5]
        ['Worst corruption', 'Clean', 'Corruptions']
    """
    return COLUMNS if board.threat else tuple(_UNDER_CORRUPTIONS.get(column.key, column) for column in COLUMNS)


@dataclass(frozen=True)
class Verdict:
    """The verdict of the audit for gradient masking.

    Args:
        kind: ``passed``, ``masked`` or ``unknown``; each has its own shape and colour.
        text: The verdict in words.
        note: The checks that failed.
    """

    kind: str
    text: str
    note: str = ""


@dataclass(frozen=True)
class Cell:
    """A cell of the ranking table.

    Args:
        column: Its column.
        text: Its text.
        sort: Its sort key; None without a value, which sorts last.
        note: Smaller text below.
        warning: A warning below.
    """

    column: Column
    text: str
    sort: float | str | None
    note: str = ""
    warning: str = ""


def cells(rank: int, row: PublishedEntry) -> Iterator[Cell]:
    """The cells of an entry, in the order of :data:`COLUMNS`."""
    entry, verdict = row.entry, verdict_of(row)
    claim, where = _claim(row)
    storage, time = (number_at(entry.overhead, *keys) for keys in (STORAGE, TIME))
    values: tuple[tuple[str, float | str | None, str, str], ...] = (
        (str(rank), rank, "", ""),
        (row.place.stem, row.place.stem.lower(), unescape_html(entry.architecture), ""),
        _worst(row),
        (entry.clean_acc, float(entry.clean_acc), "", ""),
        (entry.board_acc, float(entry.board_acc), "", "unreliable" if entry.unreliable else ""),
        (claim, float(claim) if where else None, where, ""),
        (verdict.text, None if verdict.kind == "unknown" else verdict.kind, verdict.note, ""),
        (ratio_text(storage), storage, "", ""),
        (ratio_text(time), time, "", ""),
    )
    for column, (text, sort, note, warning) in zip(columns_of(row.place.board), values, strict=True):
        yield Cell(column, text, sort, note, warning)


def _worst(row: PublishedEntry) -> tuple[str, float, str, str]:
    if not row.under_corruptions:
        n = len(row.findings.records[0].clean)
        low, high = (100 * end for end in wilson_interval(round(row.lowest * n / 100), n))
        return row.entry.lowest_acc, row.lowest, f"{low:.2f}-{high:.2f}", ""
    means = mean_accuracies(row.findings.records[0])
    name = min(means, key=means.__getitem__)
    return f"{means[name]:.2f}", means[name], name.replace("_", " "), ""


def verdict_of(row: PublishedEntry) -> Verdict:
    """The verdict of an entry's audit; ``unknown`` without one."""
    audit = row.findings.audit
    if audit is None:
        return Verdict("unknown", NOT_MEASURED)
    if audit.masked:
        return Verdict("masked", "masked", ", ".join(finding.name for finding in audit.failed))
    return Verdict("passed", "passed")


def _claim(row: PublishedEntry) -> tuple[str, str]:
    """The claim under the board's threat, else the first one; and a note on its threat."""
    claims, threat = row.findings.facts.claims, row.place.board.threat
    for claim in sorted(claims, key=lambda claim: claim.threat != threat):
        return claim.accuracy, "same radius" if claim.threat == threat else f"at {threat_text(str(claim.threat))}"
    return NO_CLAIM, ""
