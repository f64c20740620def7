"""Records as tables: rows of numbers, CSV text, a data frame, and HTML for a notebook."""

from __future__ import annotations

import csv
import html
import io
from typing import TYPE_CHECKING, Any

from empir_plugin.evaluation.intervals import wilson_interval

if TYPE_CHECKING:
    from empir_plugin.evaluation.record import Record

COLUMNS: tuple[str, ...] = ("attack", "accuracy", "low", "high", "seconds", "in_worst_case")


def record_rows(record: Record) -> list[dict[str, Any]]:
    """A row for the clean images, each attack and the worst case; accuracies and 95 % intervals in percent."""
    return [
        _row("none (clean)", record.clean, record.clean_accuracy),
        *(_row(each.name, each.robust, each.accuracy, each.seconds, each.in_worst_case) for each in record.attacks),
        _row("worst case per image", record.worst_case, record.worst_case_accuracy),
    ]


def _row(
    name: str, verdicts: str, accuracy: float, seconds: float | None = None, in_worst_case: bool | None = None
) -> dict[str, Any]:
    low, high = (round(100 * end, 2) for end in wilson_interval(verdicts.count("1"), len(verdicts)))
    return dict(zip(COLUMNS, (name, accuracy, low, high, seconds, in_worst_case), strict=True))


def record_csv(record: Record) -> str:
    """The rows as CSV, with a heading."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(record_rows(record))
    return out.getvalue()


def record_html(record: Record) -> str:
    """A table in HTML, in the colours of whatever surrounds it; names are escaped."""
    about = (
        f"{record.model.get('name')} under {record.threat}, {len(record.clean):,} images of {record.data.get('name')}"
    )
    head = "".join(f"<th>{text}</th>" for text in ("attack", "accuracy", "95 % interval", "seconds"))
    body = "".join(map(_html_row, record_rows(record)))
    flags = "".join(f"<li>{html.escape(flag)}</li>" for flag in _flags(record))
    warnings = f"<p>Warnings:</p><ul>{flags}</ul>" if flags else ""
    caption = f"<caption style='text-align: left'>{html.escape(about)}</caption>"
    return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{warnings}"


def _html_row(row: dict[str, Any]) -> str:
    name, seconds = html.escape(row["attack"]), "" if row["seconds"] is None else f"{row['seconds']:.1f}"
    cells = f"{row['accuracy']:.2f} %", f"{row['low']:.1f}-{row['high']:.1f}", seconds
    numbers = "".join(f"<td style='text-align: right'>{cell}</td>" for cell in cells)
    return f"<tr><th style='text-align: left'>{name}</th>{numbers}</tr>"


def _flags(record: Record) -> list[str]:
    return [*record.flags, *(f"{attack.name}: {flag}" for attack in record.attacks for flag in attack.flags)]
