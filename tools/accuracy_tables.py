"""Tables of models and of accuracy under attack: README, docs/models.md, docs/quantize.md and docs/results.md."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from markdown_tables import markdown_table
from run_records import accuracy_under, read_full_run, read_run

from empir_cli.names import model_rows
from empir_plugin.evaluation.record import Record
from empir_plugin.zoo.card import cards

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
"""Runs of the headline table, one per row: each ensemble after its own full-precision member."""


def headline_table() -> str:
    """Accuracy of the headline models under the protocol ``default``."""
    records = [read_run(name) for name in HEADLINE]
    columns = list(dict.fromkeys(attack.name for record in records for attack in record.attacks))
    head = "model", "threat", "clean", *columns, "worst case"
    return markdown_table(head, (_headline_row(record, columns) for record in records), "llr")


def _headline_row(record: Record, columns: list[str]) -> list[str]:
    accuracies = {attack.name: f"{attack.accuracy:.1f} %" for attack in record.attacks}
    cells = [f"{record.clean_accuracy:.1f} %", *(accuracies.get(column, "") for column in columns)]
    return [record.model["name"], record.threat, *cells, f"**{record.worst_case_accuracy:.1f} %**"]


def ensembles_table() -> str:
    """The ensembles that come with weights."""
    head = "ensemble", "data set", "members", "clean accuracy", "size"
    ensembles = [row for row in _rows() if " + " in row[2]]
    cells = (
        (name, dataset, members, f"{clean} %", f"{size} kB") for name, dataset, members, clean, _, size in ensembles
    )
    return markdown_table(head, cells, "lllr")


def models_table() -> str:
    """All models that come with weights."""
    head = "model", "data set", "precision", "clean accuracy, %", "parameters, millions", "size, kB"
    return markdown_table(head, _rows(), "lllr")


def _rows() -> list[tuple[str, ...]]:
    has_weights = {name for name, card in cards().items() if card.has_weights}
    return [row.cells() for row in model_rows() if row.name in has_weights]


PUBLISHED = {"CW": 48.51, "FGSM": 20.45, "BIM": 24.59, "PGD": 13.55}
"""Accuracy of EMPIR on CIFAR-10, in percent, published by its authors: https://github.com/sancharisen/EMPIR."""


def protocols_table() -> str:
    """EMPIR's four attacks on CIFAR-10 at eps 0.1: as published, as in the released code, and on the ensemble."""
    published = "published by EMPIR's authors", *(f"{value:.2f} %" for value in PUBLISHED.values())
    titles = {
        "released": "ours, attacks as in the released code",
        "paper": "ours, attacks on the ensemble, true labels",
    }
    ours = ((title, *_accuracies(read_run(f"empir-cifar-{name}-1000"))) for name, title in titles.items())
    return markdown_table(("attacks at Linf eps 0.1", *PUBLISHED), (published, *ours), "lr")


def _accuracies(record: Record) -> list[str]:
    return [f"{accuracy_under(record, attack):.1f} %" for attack in PUBLISHED]


SINGLE_ATTACKS: Mapping[str, str] = MappingProxyType(
    {
        "transfer from member 2": "PGD on the full-precision member, without access to the vote",
        "PGD-100 member:2 margin": "the same, stopped as soon as the vote is wrong",
        "PGD-100 mean_probability/identity": "PGD, with the identity as the gradient of the quantizers' clip",
        "square mean_probability": "Square: 5,000 queries, no gradient",
        "PGD-100 sharpened_vote:100": "PGD on a soft vote at temperature 100",
        "PGD-100 mean_probability": "PGD on the members' mean probability",
        "apgd-t mean_logits": "targeted APGD on the members' mean logits",
        "AutoAttack": "AutoAttack on the model's own output",
    }
)
"""Attacks of the protocol ``adaptive`` on the ensemble, described."""


def single_attacks_table() -> str:
    """Accuracy of ``empir-cifar`` under single attacks of ``adaptive``, and in the worst case."""
    record = read_run("empir-cifar-adaptive-1000")
    single = [(text, f"{accuracy_under(record, name):.1f} %") for name, text in SINGLE_ATTACKS.items()]
    worst_case = f"worst case over all {len(record.attacks)} attacks", f"**{record.worst_case_accuracy:.1f} %**"
    return markdown_table(("attack at Linf:8/255, 1,000 images", "accuracy"), (*single, worst_case), "lr")


QUANTIZED = ("wrn-10-1-fp", "wrn-10-1-w4a4", "wrn-10-1-w2a2", "empir-wrn-10-1")


def quantized_table() -> str:
    """Clean accuracy of a quantized WideResNet-10-1, and its accuracy under attack."""
    attacks = "PGD-100", "AutoAttack"
    head = "model", "clean, 10,000 images", "points lost", *(f"{name}, 1,000 images" for name in attacks)
    clean = {name: read_full_run(name).clean_accuracy for name in QUANTIZED}
    table = []
    for name, accuracy in clean.items():
        record = read_run(f"{name}-1000")
        attacked = (f"{accuracy_under(record, attack):.1f} %" for attack in attacks)
        table.append((name, f"{accuracy:.2f} %", f"{clean[QUANTIZED[0]] - accuracy:.2f}", *attacked))
    return markdown_table(head, table, "lr")
