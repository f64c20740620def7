"""Write the README's tables from the model cards and the committed run records: ``python tools/readme_tables.py``."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from empir_plugin.evaluation.record import Record
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.registry import builders
from empir_plugin.zoo.show import rows

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "leaderboard" / "runs"
HEADLINE = (
    "cifarconv-fp-500",
    "empir-cifar-500",
    "cifarconv-at-fp-500",
    "empir-cifar-at-500",
    "mnistconv-fp-500",
    "empir-mnist-500",
    "mnistsmall-at-fp-500",
    "empir-mnist-at-500",
)


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
    tables = {
        "headline": headline(),
        "protocols": protocols(),
        "ways in": ways_in(),
        "models": models(),
        "quantized": quantized(),
    }
    for name, table in tables.items():
        pattern = rf"<!-- {name} -->\n.*?<!-- /{name} -->"
        text = re.sub(pattern, f"<!-- {name} -->\n{table}\n<!-- /{name} -->", text, flags=re.DOTALL)
    robust = {f"{model} fgsm": robust_fgsm(model) for model in ("empir-cifar-at", "empir-mnist-at")}
    for name, number in {"full": full(), "worst": worst(), **robust, **measured()}.items():
        text = re.sub(f"<!-- {name} -->.*?<!-- /{name} -->", f"<!-- {name} -->{number}<!-- /{name} -->", text)
    return text


WAYS_IN: Mapping[str, str] = MappingProxyType(
    {
        "transfer from member 2": "PGD on the full-precision member, which never sees the vote",
        "PGD-100 member:2 margin": "the same, stopped as soon as the vote falls",
        "PGD-100 mean_probability/identity": "PGD, the quantizers' clips taken for the identity",
        "square mean_probability": "Square: 5,000 queries, no gradient",
        "PGD-100 sharpened_vote:100": "PGD on a soft vote at temperature 100",
        "PGD-100 mean_probability": "PGD on the members' mean probability",
        "apgd-t mean_logits": "targeted APGD on the members' mean logits",
        "AutoAttack": "AutoAttack on the model's own output",
    }
)
"""Attacks of the protocol ``adaptive`` on the ensemble, in words."""


def ways_in() -> str:
    """What single attacks of ``adaptive`` leave of ``empir-cifar``, and all of them together."""
    record = Record.read(RUNS / "empir-cifar-adaptive-1000.json")
    left = {attack.name: attack.accuracy for attack in record.attacks}
    lines = [_row("attack at Linf:8/255, 1,000 images", "left"), _row("---", "---:")]
    lines += [_row(told, f"{left[name]:.1f} %") for name, told in WAYS_IN.items()]
    return "\n".join([*lines, _row(f"all {len(left)} attacks, per image", f"**{record.worst_case_accuracy:.1f} %**")])


QUANTIZED = ("wrn-10-1-fp", "wrn-10-1-w4a4", "wrn-10-1-w2a2", "empir-wrn-10-1")


def quantized() -> str:
    """What quantization costs a WideResNet-10-1 in accuracy, and what attacks leave of 1,000 images."""
    shown = ("PGD-100", "AutoAttack")
    head = ("model", "clean, 10,000 images", "points lost", *(f"{name}, 1,000 images" for name in shown))
    lines = [_row(*head), _row("---", *["---:"] * (len(head) - 1))]
    whole = {name: Record.read(RUNS / f"{name}.json").clean_accuracy for name in QUANTIZED}
    for name in QUANTIZED:
        left = {attack.name: attack.accuracy for attack in Record.read(RUNS / f"{name}-1000.json").attacks}
        lost = f"{whole[QUANTIZED[0]] - whole[name]:.2f}"
        lines.append(_row(name, f"{whole[name]:.2f} %", lost, *(f"{left[attack]:.1f} %" for attack in shown)))
    return "\n".join(lines)


def measured() -> dict[str, str]:
    """How long ``empir-cifar`` takes, by its full-precision member's time: simulated, and on int8 kernels."""
    overhead = json.loads((RUNS / "overhead" / "empir-cifar.json").read_text(encoding="utf-8"))
    rows = [row for row in overhead["measured"]["backends"] if row["network"] == "model"]
    names = ("simulated", "int8")
    return {name: f"{row['ratio']['median']:.1f}" for name in names for row in rows if name in row["backend"]}


def full() -> str:
    """What AutoAttack leaves of ``empir-cifar`` on the whole test set."""
    (found,) = (attack for attack in Record.read(RUNS / "empir-cifar.json").attacks if attack.name == "AutoAttack")
    return f"{found.accuracy:.2f} %"


def robust_fgsm(model: str) -> str:
    """What FGSM leaves of a robust ensemble on the whole test set."""
    (found,) = Record.read(RUNS / f"{model}.json").attacks
    return f"{found.accuracy:.2f} %"


def worst() -> str:
    """What the attacks of ``adaptive`` leave of ``empir-cifar`` on the whole test set."""
    return f"{Record.read(RUNS / 'empir-cifar-adaptive.json').worst_case_accuracy:.2f} %"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
