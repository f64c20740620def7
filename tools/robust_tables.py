"""The tables of docs/robust.md, from committed records; ``python tools/docs_tables.py`` writes them."""

from __future__ import annotations

import json
import re
from typing import Any

from committed import ROBUST, RUNS, evaluated, execution_times, of_all, overhead
from markdown_tables import markdown_table

from empir_plugin.reproduce.results import attack_accuracy
from empir_plugin.zoo.card import cards

_FIRST = 500
_ON_ALL = "FGSM", "AutoAttack", "adaptive"
_ON_FIRST = "PGD-100", "AutoAttack"


def left() -> str:
    """What attacks leave of every ensemble and of each member on its own."""
    head = "model", "precision", "clean", *_ON_ALL, *(f"{name}, first {_FIRST}" for name in _ON_FIRST)
    names = [name for ensemble in ROBUST for name in (ensemble, *_members(ensemble))]
    return markdown_table(head, map(_attacked, names), "llr")


def _attacked(name: str) -> list[str]:
    told = name, cards()[name].precisions, f"{of_all(name).clean_accuracy:.2f} %"
    whole, first = _whole(name), evaluated(f"{name}-{_FIRST}")
    on_all = (f"{whole[attack]:.2f} %" if attack in whole else "not run" for attack in _ON_ALL)
    on_first = (f"{attack_accuracy(first, attack):.1f} %" for attack in _ON_FIRST)
    return [*told, *on_all, *on_first]


def _whole(name: str) -> dict[str, float]:
    """What FGSM, AutoAttack and all of ``adaptive`` together left of the whole test set; only what has run."""
    left = {"FGSM": attack_accuracy(of_all(name), "FGSM")}
    if _ran(f"{name}-standard"):
        left["AutoAttack"] = attack_accuracy(of_all(f"{name}-standard"), "AutoAttack")
    if _ran(f"{name}-adaptive"):
        left["adaptive"] = of_all(f"{name}-adaptive").worst_case_accuracy
    return left


def _ran(run: str) -> bool:
    return (RUNS / f"{run}.json").exists()


def longer() -> str:
    """What attacks longer than AutoAttack's still take of MNIST's first images."""
    record = evaluated("empir-mnist-at-longer-1000")
    head = f"empir-mnist-at, Linf 0.3, first {record.data['n']:,}", "left after it"
    return markdown_table(head, ((attack.name, f"{attack.accuracy:.1f} %") for attack in record.attacks), "lr")


def cost() -> str:
    """Equation 6 and measured times of every ensemble, beside one full-precision network."""
    head = "model", "Eq. 6, time", "ideal", "Eq. 6, storage", "ideal", "measured, simulated", "measured, int8"
    return markdown_table(head, ((name, *_costs(name)) for name in ROBUST), "lr")


def _costs(name: str) -> list[str]:
    equation = overhead(name)["eq6"]
    shown = [equation[what][form] for what in ("time", "storage") for form in ("as_built", "ideal")]
    return [*(f"{value:.2f}" for value in shown), *execution_times(name).values()]


def course() -> str:
    """How every ensemble was trained, stage by stage."""
    head = "ensemble", "stage", "epochs", "PGD steps", "within", "hours"
    rows = ((ensemble, *stage) for ensemble in ROBUST for stage in _stages(ensemble))
    return markdown_table(head, rows, "llrrlr")


def _stages(ensemble: str) -> list[list[str]]:
    names = _members(ensemble)
    reports = [json.loads((RUNS / "training" / f"{name}.json").read_text(encoding="utf-8")) for name in names]
    alone = [_stage(f"{name} alone", report) for name, report in zip(names, reports, strict=True)]
    shared = [(key, told) for key, told in (("joint", "together"), ("finish", "bounded loss")) if key in reports[0]]
    return [*alone, *(_stage(told, reports[0][key]) for key, told in shared)]


def _stage(told: str, report: dict[str, Any]) -> list[str]:
    recipe, history = report["recipe"], report["history"]
    hours = sum(epoch["seconds"] for epoch in history) / 3600
    found = re.search(r"eps_text='([^']+)'\), steps=(\d+)", recipe["objective"])
    if found is None:
        raise ValueError(f"{recipe['name']} must have been trained against an adversary, got {recipe['objective']}")
    return [told, str(recipe["epochs"]), found[2], found[1], f"{hours:.1f}"]


def _members(ensemble: str) -> list[str]:
    return [network.name for network in cards()[ensemble].networks]
