"""The table at the end of a session, as plain text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

_HEAD = ("model", "threat", "images", "attack", "clean", "robust", "seconds", "verdict")
_TEXTS = frozenset({"model", "threat", "attack", "verdict"})
_VERDICTS = {"failed": "FAILED", "error": "ERROR"}


def lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """One line for each attack and, where a test ran several, one for their worst case; then AutoAttack's warnings.

    Args:
        rows: Cases in order, each with its outcome and, unless it ended before, its record.
    """
    if not rows:
        return
    table = [_HEAD, *_without_repetition([line for row in rows for line in _case(row)])]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        cells = zip(_HEAD, line, widths, strict=True)
        yield "  ".join(
            cell.ljust(width) if name in _TEXTS else cell.rjust(width) for name, cell, width in cells
        ).rstrip()
    yield from dict.fromkeys(
        f"{row['record']['model']['name']}: {attack['name']} warns: {flag}"
        for row in rows
        for attack in row.get("record", {}).get("attacks", ())
        for flag in attack["flags"]
    )


def _case(row: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    verdict = _verdict(row)
    if "record" not in row:
        yield row["model"] or row["test"], "", "", row["label"], "", "", "", verdict
        return
    record = row["record"]
    head = record["model"]["name"], record["threat"], f"{record['data']['n']:,}"
    attacks, clean = record["attacks"], _percent(record["clean_accuracy"])
    for attack in attacks:
        own = verdict if len(attacks) == 1 else ""
        yield *head, attack["name"], clean, _percent(attack["accuracy"]), f"{attack['seconds']:.1f}", own
    if len(attacks) != 1:
        worst = _percent(record["worst_case_accuracy"])
        yield *head, f"worst case of {row['label']}", clean, worst, _seconds(attacks), verdict


def _without_repetition(table: Sequence[tuple[str, ...]]) -> Iterator[tuple[str, ...]]:
    """A worst case's attacks only where no line above says the same of them."""
    seen: set[tuple[str, ...]] = set()
    for line in table:
        if line[-1] or line[:-1] not in seen:
            yield line
        seen.add(line[:-1])


def _verdict(row: dict[str, Any]) -> str:
    if row["outcome"] == "passed" and row["min_robust"] is None and row["min_clean"] is None:
        return "no threshold"
    return _VERDICTS.get(row["outcome"], row["outcome"])


def _percent(accuracy: float) -> str:
    return f"{accuracy:.2f} %"


def _seconds(attacks: Sequence[dict[str, Any]]) -> str:
    return f"{sum(attack['seconds'] for attack in attacks):.1f}"
