"""Tables of docs/robust.md, from committed records: the ensembles trained adversarially, and the ablations."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

from markdown_tables import markdown_table
from run_records import (
    RUNS,
    accuracy_under,
    find_attack,
    has_run,
    read_full_run,
    read_overhead,
    read_run,
    relative_times,
)

from empir_plugin.evaluation.audit.mcnemar import binomial_tail
from empir_plugin.evaluation.record import Record
from empir_plugin.training.networks import member_of
from empir_plugin.training.recipe import find_recipe
from empir_plugin.zoo.card import cards

ENSEMBLES = "empir-cifar-at", "empir-mnist-at"
FIRST_IMAGES = 500


def accuracy_table() -> str:
    """Accuracy of both ensembles and of each member, clean and under attack."""
    on_all, on_first = ("FGSM", "AutoAttack", "adaptive"), ("PGD-100", "AutoAttack")
    head = "model", "precision", "clean", *on_all, *(f"{name}, first {FIRST_IMAGES}" for name in on_first)
    rows = []
    for name in (name for ensemble in ENSEMBLES for name in (ensemble, *_members(ensemble))):
        full, first = _full_accuracies(name), read_run(f"{name}-{FIRST_IMAGES}")
        cells = [f"{full[attack]:.2f} %" if attack in full else "not run" for attack in ("clean", *on_all)]
        cells += [f"{accuracy_under(first, attack):.1f} %" for attack in on_first]
        rows.append((name, cards()[name].precisions, *cells))
    return markdown_table(head, rows, "llr")


def _full_accuracies(name: str) -> dict[str, float]:
    """Accuracies on the whole test set; only of attacks that have run on it."""
    record = read_full_run(name)
    accuracies = {"clean": record.clean_accuracy, "FGSM": accuracy_under(record, "FGSM")}
    if has_run(f"{name}-standard"):
        accuracies["AutoAttack"] = accuracy_under(read_full_run(f"{name}-standard"), "AutoAttack")
    if has_run(f"{name}-adaptive"):
        accuracies["adaptive"] = read_full_run(f"{name}-adaptive").worst_case_accuracy
    return accuracies


def longer_attacks_table() -> str:
    """Accuracy of ``empir-mnist-at`` under AutoAttack followed by longer attacks."""
    record = read_run("empir-mnist-at-longer-1000")
    head = f"empir-mnist-at, Linf 0.3, first {record.data['n']:,}", "accuracy after it"
    return markdown_table(head, ((attack.name, f"{attack.accuracy:.1f} %") for attack in record.attacks), "lr")


def cost_table() -> str:
    """Equation 6 and measured times of both ensembles, relative to one full-precision network."""
    head = "model", "Eq. 6, time", "ideal", "Eq. 6, storage", "ideal", "measured, simulated", "measured, int8"
    return markdown_table(head, ((name, *_costs(name)) for name in ENSEMBLES), "lr")


def _costs(name: str) -> list[str]:
    equation = read_overhead(name)["eq6"]
    values = [equation[quantity][form] for quantity in ("time", "storage") for form in ("as_built", "ideal")]
    return [*(f"{value:.2f}" for value in values), *relative_times(name).values()]


def training_table() -> str:
    """The stages in which both ensembles were trained."""
    head = "ensemble", "stage", "epochs", "PGD steps", "eps", "hours"
    rows = ((ensemble, *stage) for ensemble in ENSEMBLES for stage in _stages(ensemble))
    return markdown_table(head, rows, "llrrlr")


def _stages(ensemble: str) -> list[list[str]]:
    names = _members(ensemble)
    reports = [json.loads((RUNS / "training" / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    alone = [_stage(f"{name} alone", report) for name, report in zip(names, reports, strict=True)]
    titles = {"joint": "all members together", "finish": "bounded loss"}
    shared = [_stage(title, reports[0][key]) for key, title in titles.items() if key in reports[0]]
    return [*alone, *shared]


def _stage(title: str, report: dict[str, Any]) -> list[str]:
    recipe, history = report["recipe"], report["history"]
    hours = sum(epoch["seconds"] for epoch in history) / 3600
    match = re.search(r"eps_text='([^']+)'\), steps=(\d+)", recipe["objective"])
    if match is None:
        raise ValueError(f"{recipe['name']} must be trained with an adversarial objective, got {recipe['objective']}")
    return [title, str(recipe["epochs"]), match[2], match[1], f"{hours:.1f}"]


def _members(ensemble: str) -> list[str]:
    return [network.name for network in cards()[ensemble].networks]


ABLATIONS = (
    "alone-fp",
    "alone-w4a4",
    "alone-w4a4-b",
    "apart-mean-probability",
    "apart-vote",
    "together-2",
    "together-3",
    "together-3-logits",
    "together-3-vote",
    "together-4",
)
PAIRS = (
    ("together-3", "alone-fp"),
    ("apart-mean-probability", "alone-fp"),
    ("together-3", "apart-mean-probability"),
    ("together-3", "together-3-vote"),
    ("apart-mean-probability", "apart-vote"),
    ("together-3", "together-3-logits"),
    ("together-3", "together-2"),
    ("together-3", "together-4"),
)
"""Pairs of ablations that are tested against each other."""


def ablations_table() -> str:
    """One network, and ensembles of two to four members trained separately or jointly, under different rules.

    Raises:
        ValueError: If the records differ in images or threat.
    """
    records = [_ablation(name) for name in ABLATIONS]
    if len({(record.data["sha256"], record.threat) for record in records}) != 1:
        raise ValueError("all ablations must be evaluated on the same images under the same threat, got several")
    head = "members", "training", "rule", "clean", "PGD-100", "AutoAttack"
    return markdown_table(head, map(_ablation_row, records), "lllr")


def comparisons_table() -> str:
    """Exact McNemar tests between pairs of ablations, on their verdicts under AutoAttack."""
    head = "first", "second", "robust in the first only", "robust in the second only", "p-value"
    return markdown_table(head, (_comparison(*names) for names in PAIRS), "llr")


@cache
def _ablation(name: str) -> Record:
    return read_run(f"ablations/{name}")


def _ablation_row(record: Record) -> list[str]:
    attacked = (accuracy_under(record, name) for name in ("PGD-100", "AutoAttack"))
    return [*_describe(record), *(f"{value:.1f} %" for value in (record.clean_accuracy, *attacked))]


def _describe(record: Record) -> tuple[str, str, str]:
    """Members, training and rule, from the name ``RECIPE (RULE)`` of the model, or from the name of one member."""
    name = record.model["name"]
    recipe_name, _, rule = name.removesuffix(")").partition(" (")
    if not rule:
        return str(member_of(find_recipe("empir-cifar-at-apart"), name).precision), "alone", ""
    recipe = find_recipe(recipe_name)
    members = " + ".join(str(member.precision) for member in recipe.members if member.in_ensemble)
    return members, "joint" if recipe.joint else "separate", rule.replace("_", " ")


def _comparison(first: str, second: str) -> list[str]:
    records = _ablation(first), _ablation(second)
    verdicts = list(zip(*(find_attack(record, "AutoAttack").robust for record in records), strict=True))
    only_first, only_second = verdicts.count(("1", "0")), verdicts.count(("0", "1"))
    p_value = min(1.0, 2 * binomial_tail(max(only_first, only_second), only_first + only_second, 0.5))
    return [*(_label(record) for record in records), str(only_first), str(only_second), f"{p_value:.2g}"]


def _label(record: Record) -> str:
    members, training, rule = _describe(record)
    return f"{members}, {training}, {rule}" if rule else f"{members} {training}"
