"""The tables of docs/robust.md, from committed records; ``python tools/docs_tables.py`` writes them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from empir_plugin.evaluation.record import Record
from empir_plugin.zoo.card import cards

RUNS = Path(__file__).parents[1] / "leaderboard" / "runs"
ENSEMBLES = ("empir-cifar-at", "empir-mnist-at")
_FIRST = 500


def left() -> str:
    """What attacks leave of every ensemble and of each member on its own."""
    head = "model", "precision", "clean", "FGSM", f"PGD-100, first {_FIRST}", f"AutoAttack, first {_FIRST}"
    lines = [_row(*head), _row("---", "---", *["---:"] * (len(head) - 2))]
    for ensemble in ENSEMBLES:
        lines += [_row(*_attacked(name)) for name in (ensemble, *_members(ensemble))]
    return "\n".join(lines)


def _attacked(name: str) -> list[str]:
    whole = Record.read(RUNS / f"{name}.json")
    if whole.data["n"] != 10_000:
        raise ValueError(f"{name}.json must cover the 10,000 test images, got {whole.data['n']}")
    some = RUNS / f"{name}-{_FIRST}.json"
    first = {attack.name: attack.accuracy for attack in Record.read(some).attacks} if some.exists() else {}
    (fgsm,) = (attack.accuracy for attack in whole.attacks if attack.name == "FGSM")
    shown = [f"{first[attack]:.1f} %" if attack in first else "not run" for attack in ("PGD-100", "AutoAttack")]
    precision = " + ".join(str(network.precision) for network in cards()[name].networks)
    return [name, precision, f"{whole.clean_accuracy:.2f} %", f"{fgsm:.2f} %", *shown]


def cost() -> str:
    """Equation 6 and measured times of every ensemble, beside one full-precision network."""
    head = "model", "Eq. 6, time", "ideal", "Eq. 6, storage", "ideal", "measured, simulated", "measured, int8"
    lines = [_row(*head), _row("---", *["---:"] * (len(head) - 1))]
    return "\n".join([*lines, *(_row(name, *_costs(name)) for name in ENSEMBLES)])


def _costs(name: str) -> list[str]:
    table = json.loads((RUNS / "overhead" / f"{name}.json").read_text(encoding="utf-8"))
    equation = [table["eq6"][what][form] for what in ("time", "storage") for form in ("as_built", "ideal")]
    rows = [row for row in table["measured"]["backends"] if row["network"] == "model"]
    times = [row["ratio"]["median"] for kind in ("simulated", "int8") for row in rows if kind in row["backend"]]
    return [*(f"{value:.2f}" for value in equation), *(f"{value:.1f}" for value in times)]


def course() -> str:
    """How every ensemble was trained, stage by stage."""
    head = "ensemble", "stage", "epochs", "PGD steps", "within", "hours"
    lines = [_row(*head), _row("---", "---", "---:", "---:", "---", "---:")]
    for ensemble in ENSEMBLES:
        lines += [_row(ensemble, *stage) for stage in _stages(ensemble)]
    return "\n".join(lines)


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


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
