"""Write the README's tables from the model cards and the committed run records: ``python tools/readme_tables.py``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from committed import evaluated, execution_times, of_all
from markdown_tables import markdown_table

from empir_plugin.evaluation.record import Record
from empir_plugin.reproduce.results import attack_accuracy
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.registry import builders
from empir_plugin.zoo.show import rows

ROOT = Path(__file__).parents[1]
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
    records = [evaluated(name) for name in HEADLINE]
    columns = list(dict.fromkeys(attack.name for record in records for attack in record.attacks))
    head = "model", "threat", "images", "clean", *columns, "worst case per image"
    return markdown_table(head, (_attacked(record, columns) for record in records), "llr")


def _attacked(record: Record, columns: list[str]) -> list[str]:
    left = {attack.name: f"{attack.accuracy:.1f} %" for attack in record.attacks}
    cells = [f"{record.clean_accuracy:.1f} %", *(left.get(column, "") for column in columns)]
    return [
        record.model["name"],
        record.threat,
        str(record.data["n"]),
        *cells,
        f"**{record.worst_case_accuracy:.1f} %**",
    ]


PUBLISHED = {"CW": 48.51, "FGSM": 20.45, "BIM": 24.59, "PGD": 13.55}
"""Percent left of CIFARconv's EMPIR, by the authors' repository: https://github.com/sancharisen/EMPIR."""


def protocols() -> str:
    """EMPIR's four attacks on CIFAR-10 at eps 0.1: as published, as its code runs them, as its paper words them."""
    published = "published by EMPIR's authors", *(f"{value:.2f} %" for value in PUBLISHED.values())
    titles = {
        "released": "ours, attacks as their code runs them",
        "paper": "ours, attacks on the ensemble, true labels",
    }
    ours = ((title, *_protocol(evaluated(f"empir-cifar-{name}-1000"))) for name, title in titles.items())
    return markdown_table(("attacks at Linf eps 0.1", *PUBLISHED), (published, *ours), "lr")


def _protocol(record: Record) -> list[str]:
    return [f"{attack_accuracy(record, attack):.1f} %" for attack in PUBLISHED]


def models() -> str:
    """The models that have weights."""
    shown = {name: builder for name, builder in builders().items() if name in cards() and cards()[name].has_weights}
    return markdown_table(("model", "data set", "precision", "clean %", "Mparams", "kB"), rows(shown), "l")


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
    numbers = {f"{model} full": autoattack(run) for model, run in AUTOATTACK.items()}
    numbers |= {f"{model} worst": worst(f"{model}-adaptive") for model in ADAPTIVE}
    numbers |= execution_times("empir-cifar")
    for name, number in numbers.items():
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
    record = evaluated("empir-cifar-adaptive-1000")
    single = [(told, f"{attack_accuracy(record, name):.1f} %") for name, told in WAYS_IN.items()]
    every = f"all {len(record.attacks)} attacks, per image", f"**{record.worst_case_accuracy:.1f} %**"
    return markdown_table(("attack at Linf:8/255, 1,000 images", "left"), (*single, every), "lr")


QUANTIZED = ("wrn-10-1-fp", "wrn-10-1-w4a4", "wrn-10-1-w2a2", "empir-wrn-10-1")


def quantized() -> str:
    """What quantization costs a WideResNet-10-1 in accuracy, and what attacks leave of 1,000 images."""
    shown = "PGD-100", "AutoAttack"
    head = "model", "clean, 10,000 images", "points lost", *(f"{name}, 1,000 images" for name in shown)
    whole = {name: evaluated(name).clean_accuracy for name in QUANTIZED}
    table = []
    for name, clean in whole.items():
        first = evaluated(f"{name}-1000")
        left = (f"{attack_accuracy(first, attack):.1f} %" for attack in shown)
        table.append((name, f"{clean:.2f} %", f"{whole[QUANTIZED[0]] - clean:.2f}", *left))
    return markdown_table(head, table, "lr")


AUTOATTACK: Mapping[str, str] = MappingProxyType(
    {
        "empir-cifar": "empir-cifar",
        "empir-cifar-at": "empir-cifar-at-standard",
        "empir-mnist-at": "empir-mnist-at-standard",
    }
)
"""Which run has AutoAttack on the whole test set."""

ADAPTIVE = "empir-cifar", "empir-cifar-at", "empir-mnist-at"
"""Models with a run of ``adaptive`` on the whole test set."""


def autoattack(run: str) -> str:
    """What AutoAttack leaves of the whole test set."""
    return f"{attack_accuracy(of_all(run), 'AutoAttack'):.2f} %"


def worst(run: str) -> str:
    """What all attacks of a run together leave of the whole test set."""
    return f"{of_all(run).worst_case_accuracy:.2f} %"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(written(readme.read_text(encoding="utf-8")), encoding="utf-8")
