"""Tables of docs/benchmarks.md, from the records in ``benchmarks/records``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markdown_tables import markdown_table
from run_records import read_times


def attack_times_table(record: str, case: str) -> str:
    """One case of ``benchmarks/attacks.py``: each library's time relative to this package's."""
    head = "library", "relative time", "range over rounds", "image passes", "with gradient", "accuracy"
    return markdown_table(head, map(_attack_row, read_times(record)["cases"][case]["contenders"]), "lr")


def _attack_row(row: Mapping[str, Any]) -> list[str]:
    forward, gradient = row["image_passes"]["forward"], row["image_passes"]["gradient"]
    accuracy = f"{row['robust_accuracy']:.1f} %" if "robust_accuracy" in row else ""
    relative = f"**{row['times_ours']:.2f}**"
    passes = f"{forward + gradient:,}", f"{gradient:,}"
    return [row["name"], relative, _range(row["times_ours_by_round"]), *passes, accuracy]


def scaling_table(series: str, parameter: str) -> str:
    """One series of ``benchmarks/scaling.py``: processor time relative to the first row's."""
    rows = read_times("scaling")["series"][series]["rows"]
    cells = [(row["name"], f"**{row['ratio']:.2f}**", _range(row["ratio_by_round"])) for row in rows]
    return markdown_table((parameter, "relative time", "range over rounds"), cells, "r")


def integer_times_table() -> str:
    """``benchmarks/integer.py``: time of each execution relative to float32's in its faster memory layout."""
    head = "network", "execution", "relative time", "10th to 90th percentile", "target"
    rows = []
    for case in read_times("integer")["cases"].values():
        title = case["title"].partition(";")[0]
        for name, row in case["rows"].items():
            if not name.startswith("float32"):
                ratio, target = row["ratio"], case["targets"].get(name, {}).get("at_most", "")
                spread = f"{ratio['p10']:.3f} to {ratio['p90']:.3f}"
                rows.append((title, name, f"**{ratio['median']:.3f}**", spread, target and f"at most {target}"))
    return markdown_table(head, rows, "llr")


def agreement_table() -> str:
    """``benchmarks/integer_agreement.py``: whether sums and logits of each network are the same however it runs."""
    head = "network", "compared", "images whose logits differ", "largest difference", "decisions", "wrong sums"
    lines = []
    for name, found in read_times("integer-agreement")["models"].items():
        total = f"{sum(layer['sums'] for layer in found['sums']):,}"
        for row in found["logits"]:
            first, other = row["between"]
            if first == "float32, channels last":
                wrong = sum(layer["wrong"].get(other, 0) for layer in found["sums"])
                cells = f"**{row['differing_images']}** of {row['images']:,}", f"{row['max_logit_difference']:.1g}"
                lines.append((name, other, *cells, str(row["differing_decisions"]), f"{wrong} of {total}"))
    return markdown_table(head, lines, "llr")


def faults_table() -> str:
    """``benchmarks/faults.py``: how many cases of each kind were tried, and survived."""
    table = read_times("faults")
    rows = [(kind, f"{count['tried']:,}", f"{count['survived']:,}") for kind, count in table["kinds"].items()]
    total = table["total"]
    rows.append(("all", f"**{total['tried']:,}**", f"**{total['survived']:,}**"))
    return markdown_table(("kind", "tried", "survived"), rows, "lr")


def machine_line(record: str) -> str:
    """A link to a record of times, with the machine, the settings and the date."""
    table = read_times(record)
    machine, settings = table["machine"], table["settings"]
    cases = [*table.get("cases", {}).values(), *table.get("series", {}).values()]
    images = sorted({case.get("n_images", settings.get("batch_size")) for case in cases} or {settings["n_images"]})
    rounds = settings["rounds"] if "rounds" in settings else settings["repeats"]
    facts = [
        f"{machine['processor']} ({machine['instructions']}), {machine['cores']} cores",
        f"load average {machine['load_average'][0]:g}",
        f"{_count(settings['threads'], 'thread')}, {_count(rounds, 'round')}",
        f"{' or '.join(map(str, images))} images",
        f"torch {table['versions']['torch']}",
        table["finished"][:10],
    ]
    return f"Record: [{record}.json](../benchmarks/records/{record}.json) ({'; '.join(facts)})."


def _range(ends: list[float]) -> str:
    low, high = ends
    return f"{low:.2f}" if low == high else f"{low:.2f} to {high:.2f}"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
