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
HEADLINE = ("cifarconv-fp-500", "empir-cifar-500", "empir-mnist-200")


def headline() -> str:
    """What attacks leave of the headline models, in percent: one row for each record of :data:`HEADLINE`."""
    records = [Record.read(RUNS / f"{name}.json") for name in HEADLINE]
    columns = list(dict.fromkeys(attack.name for record in records for attack in record.attacks))
    lines = [
        _row("model", "threat", "images", "clean", *columns, "worst case per image"),
        _row("---", "---", *["---:"] * (len(columns) + 3)),
    ]
    for record in records:
        left = {attack.name: f"{attack.accuracy:.1f} %" for attack in record.attacks}
        cells = [left.get(column, "") for column in columns]
        worst = f"**{record.worst_case_accuracy:.1f} %**"
        clean = f"{record.clean_accuracy:.1f} %"
        lines.append(_row(record.model["name"], record.threat, str(record.data["n"]), clean, *cells, worst))
    return "\n".join(lines)


PUBLISHED = {"CW": 48.51, "FGSM": 20.45, "BIM": 24.59, "PGD": 13.55}
"""Percent left of CIFARconv's EMPIR, by the authors' repository: https://github.com/sancharisen/EMPIR."""


def protocols() -> str:
    """EMPIR's four attacks on CIFAR-10 at eps 0.1: as published, as its code runs them, as its paper words them."""
    lines = [_row("attacks at Linf eps 0.1", *PUBLISHED), _row("---", *["---:"] * len(PUBLISHED))]
    lines.append(_row("published by EMPIR's authors", *(f"{value:.2f} %" for value in PUBLISHED.values())))
    titles = {
        "released": "ours, attacks as their code runs them",
        "paper": "ours, attacks on the ensemble, true labels",
    }
    for name, title in titles.items():
        record = Record.read(RUNS / f"empir-cifar-{name}-1000.json")
        left = {attack.name: f"{attack.accuracy:.1f} %" for attack in record.attacks}
        lines.append(_row(title, *(left[attack] for attack in PUBLISHED)))
    return "\n".join(lines)


def models() -> str:
    """The models that have weights."""
    head = [_row("model", "data set", "precision", "clean %", "Mparams", "kB"), _row(*["---"] * 6)]
    shown = {name: builder for name, builder in builders().items() if name in cards() and cards()[name].has_weights}
    return "\n".join([*head, *(_row(*row) for row in rows(shown))])


def written(text: str) -> str:
    """The README with its tables renewed."""
    for name, table in (("headline", headline()), ("protocols", protocols()), ("models", models())):
        pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        text = re.sub(pattern, f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text, flags=re.DOTALL)
    return re.sub("<!-- full -->.*?<!-- /full -->", f"<!-- full -->{full()}<!-- /full -->", text)


def full() -> str:
    """What PGD on the mean probability leaves of ``empir-cifar`` on the whole test set."""
    record = Record.read(RUNS / "empir-cifar.json")
    (found,) = (attack for attack in record.attacks if attack.name == "PGD-100 mean_probability")
    return f"{found.accuracy:.2f} %"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
