"""Write the README's tables from the model cards and the committed run records: ``python tools/readme_tables.py``."""

from __future__ import annotations

import re
from pathlib import Path

from empir_plugin.evaluation.record import Record
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.registry import builders
from empir_plugin.zoo.show import rows

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "leaderboard" / "runs"
HEADLINE = ("cifarconv-fp", "empir-cifar", "empir-mnist")


def headline() -> str:
    """What attacks leave of the headline models: one row for each record ``NAME-500.json``."""
    records = [Record.read(RUNS / f"{name}-500.json") for name in HEADLINE]
    columns = list(dict.fromkeys(attack.name for record in records for attack in record.attacks))
    lines = [
        _row("model", "threat", "clean", *columns, "worst case"),
        _row(*["---"] * 2, *["---:"] * (len(columns) + 2)),
    ]
    for record in records:
        left = {attack.name: f"{attack.accuracy:.1f} %" for attack in record.attacks}
        cells = [left.get(column, "") for column in columns]
        worst = f"**{record.worst_case_accuracy:.1f} %**"
        lines.append(_row(record.model["name"], record.threat, f"{record.clean_accuracy:.1f} %", *cells, worst))
    n = {record.data["n"] for record in records}
    return "\n".join(
        [*lines, "", f"(First {min(n):,} images of the official test set; records in `leaderboard/runs`.)"]
    )


def models() -> str:
    """The models that have weights."""
    head = [_row("model", "data set", "precision", "clean %", "Mparams", "kB"), _row(*["---"] * 6)]
    shown = {name: builder for name, builder in builders().items() if name in cards() and cards()[name].has_weights}
    return "\n".join([*head, *(_row(*row) for row in rows(shown))])


def written(text: str) -> str:
    """The README with its tables renewed."""
    for name, table in (("headline", headline()), ("models", models())):
        pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        text = re.sub(pattern, f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text, flags=re.DOTALL)
    return text


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
