"""The table of a board: one row for each entry, and in every cell what is shown and what it is sorted by."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.leaderboard.entry import unescape_html
from empir_plugin.leaderboard.page.published import Published

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
        (row.place.stem, row.place.stem.lower(), unescape_html(entry.architecture), ""),
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
