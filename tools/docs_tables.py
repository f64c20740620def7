"""Write the documentation's tables and its picture from records and code: ``python tools/docs_tables.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ablation_tables
import architecture
import robust_tables
from committed import RUNS
from markdown_tables import markdown_table

from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.protocols import PROTOCOLS

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
TIMES = ROOT / "benchmarks" / "records"
AUDITED = ("empir-cifar", "empir-mnist", "empir-cifar-at", "empir-mnist-at")


def protocols() -> str:
    """What each protocol's numbers mean, in its own words."""
    lines = []
    for name, protocol in PROTOCOLS.items():
        lines.append(f"- **`{name}`**: {protocol.summary}")
        lines += [f"    - {rule}" for rule in (*protocol.rules, f"The number to quote: {protocol.headline.value}.")]
    return re.sub(r"(https://[^\s()]+)", r"<\1>", "\n".join(lines))


def checks() -> str:
    """Every check of the audit: what it may find at most, why, and what it found."""
    reports = [AuditReport.read(RUNS / "audits" / f"{name}.json") for name in AUDITED]
    rows = [
        ("images it measures on", "", "those classified correctly", *(_images(report) for report in reports)),
        ("compared under", "", "not all attacks win there", *(report.compared_at for report in reports)),
    ]
    for findings in zip(*(report.checks for report in reports), strict=True):
        first = findings[0]
        values = [f"{each.value:.2f}{'' if each.passed else ' (fails)'}" for each in findings]
        rows.append((first.name, f"{first.threshold:.2f}", first.reason, *values))
    rows.append(("verdict", "", "", *(report.verdict for report in reports)))
    return markdown_table(("check", "at most", "because", *AUDITED), rows, "lrlr")


def _images(report: AuditReport) -> str:
    return f"{report.images} of {report.data['n']}"


def attack_times(record: str, case: str) -> Callable[[], str]:
    """One case of ``benchmarks/attacks.py``: how many times longer each contender took than this package."""

    def write() -> str:
        rows = _read(record)["cases"][case]["contenders"]
        head = "contender", "times ours", "by round", "image passes", "with gradient", "left"
        return markdown_table(head, map(_contender, rows), "lr")

    return write


def _contender(row: Mapping[str, Any]) -> list[str]:
    forward, gradient = row["image_passes"]["forward"], row["image_passes"]["gradient"]
    left = f"{row['robust_accuracy']:.1f} %" if "robust_accuracy" in row else ""
    ratio = f"**{row['times_ours']:.2f}**"
    return [row["name"], ratio, _range(row["times_ours_by_round"]), f"{forward + gradient:,}", f"{gradient:,}", left]


def growth(series: str, what: str) -> Callable[[], str]:
    """One series of ``benchmarks/scaling.py``: processor time, as a multiple of the first row's."""

    def write() -> str:
        rows = _read("scaling")["series"][series]["rows"]
        cells = [(row["name"], f"**{row['ratio']:.2f}**", _range(row["ratio_by_round"])) for row in rows]
        return markdown_table((what, "time", "by round"), cells, "r")

    return write


def integer_times() -> str:
    """``benchmarks/integer.py``: time of each execution, as a multiple of float32's in its better memory layout."""
    head = "network", "execution", "time", "10th to 90th percentile", "meant to be at most"
    rows = []
    for case in _read("integer")["cases"].values():
        for name, row in case["rows"].items():
            if not name.startswith("float32"):
                target = case["targets"].get(name, {}).get("at_most")
                ratio, spread = row["ratio"], f"{row['ratio']['p10']:.3f} to {row['ratio']['p90']:.3f}"
                title = case["title"].partition(";")[0]
                rows.append((title, name, f"**{ratio['median']:.3f}**", spread, "" if target is None else str(target)))
    return markdown_table(head, rows, "llr")


def measured_on(record: str) -> Callable[[], str]:
    """Where and when a record's times were taken, and how many of whom."""

    def write() -> str:
        found = _read(record)
        machine, settings = found["machine"], found["settings"]
        cases = [*found.get("cases", {}).values(), *found.get("series", {}).values()]
        images = sorted({case.get("n_images", settings.get("batch_size")) for case in cases})
        facts = [
            f"{machine['processor']} ({machine['instructions']}), {machine['cores']} cores",
            f"load average {machine['load_average'][0]:g}",
            f"{_counted(settings['threads'], 'thread')}, {_counted(settings['repeats'], 'round')}",
            f"{' or '.join(map(str, images))} images",
            f"torch {found['versions']['torch']}",
            found["finished"][:10],
        ]
        return "; ".join(facts)

    return write


def agreement() -> str:
    """``benchmarks/integer_agreement.py``: how far the forms of each network are apart, image by image."""
    ends = "largest difference", "median", "decisions that differ"
    lines = []
    for name, rows in _read("integer-agreement")["models"].items():
        for row in rows:
            sizes = f"{row['max_logit_difference']:.1g}", f"{row['median_logit_difference']:.1g}"
            beyond = f"**{row['beyond_tolerance']}** of {row['images']:,}"
            lines.append((name, "; ".join(row["between"]), beyond, *sizes, str(row["differing_decisions"])))
    return markdown_table(("network", "compared", "images off by more than 1e-4", *ends), lines, "llr")


def _read(record: str) -> dict[str, Any]:
    return json.loads((TIMES / f"{record}.json").read_text(encoding="utf-8"))


def _range(ends: list[float]) -> str:
    low, high = ends
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


BLOCKS: Mapping[str, Mapping[str, Callable[[], str]]] = MappingProxyType(
    {
        "architecture.md": {"rooms": architecture.table},
        "believe.md": {"protocols": protocols, "checks": checks},
        "benchmarks.md": {
            "pgd": attack_times("attacks", "pgd"),
            "pgd-standing": attack_times("attacks", "pgd-standing"),
            "pgd on": measured_on("attacks"),
            "autoattack": attack_times("autoattack", "autoattack"),
            "autoattack on": measured_on("autoattack"),
            "images": growth("images", "images"),
            "members": growth("members", "members"),
            "precision": growth("precision", "precision"),
            "growth on": measured_on("scaling"),
            "agreement": agreement,
            "integer": integer_times,
            "integer on": measured_on("integer"),
        },
        "robust.md": {
            "left": robust_tables.left,
            "longer": robust_tables.longer,
            "ablations": ablation_tables.ablations,
            "comparisons": ablation_tables.comparisons,
            "course": robust_tables.course,
            "cost": robust_tables.cost,
        },
    }
)
"""Of each page, what stands between ``<!-- name -->`` and ``<!-- /name -->``."""


def written(page: str, text: str) -> str:
    """A page with its blocks renewed.

    Raises:
        ValueError: If a block is missing.
    """
    for name, write in BLOCKS[page].items():
        text = _filled(page, text, name, write())
    return text


def _filled(page: str, text: str, name: str, made: str) -> str:
    """A text with one block renewed; a block on lines of its own stays so."""
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, found, rest = text.partition(start)
    old, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{page} must have a block {start} ... {end}, and has none: put it back")
    space = "\n\n" if old.startswith("\n") else ""
    return f"{before}{start}{space}{made}{space}{end}{after}"


def main() -> None:
    """Renew every page and the picture."""
    for page in BLOCKS:
        path = DOCS / page
        path.write_text(written(page, path.read_text(encoding="utf-8")), encoding="utf-8")
    (DOCS / "rooms.svg").write_text(architecture.picture(), encoding="utf-8")


if __name__ == "__main__":
    main()
