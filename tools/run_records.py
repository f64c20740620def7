"""The committed run records that the README and the documentation quote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from empir_plugin.evaluation.record import AttackRecord, Record

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "leaderboard" / "runs"
TIMES = ROOT / "benchmarks" / "records"


def read_run(name: str) -> Record:
    """The record of an evaluation, by the name of its file in ``leaderboard/runs``."""
    return Record.read(RUNS / f"{name}.json")


def read_full_run(name: str) -> Record:
    """The record of an evaluation on the whole official test set.

    Raises:
        ValueError: If the record covers fewer images.
    """
    record = read_run(name)
    if not record.data["full_official"]:
        raise ValueError(f"{name}.json must cover the official test set, got {record.data['n']} images: evaluate all")
    return record


def has_run(name: str) -> bool:
    """Whether an evaluation of that name is committed."""
    return (RUNS / f"{name}.json").is_file()


def find_attack(record: Record, name: str) -> AttackRecord:
    """One attack of a record.

    Raises:
        ValueError: If the record has no such attack.
    """
    attacks = {attack.name: attack for attack in record.attacks}
    if name not in attacks:
        raise ValueError(f"{record.model['name']} has no record of {name!r}: choose from {', '.join(attacks)}")
    return attacks[name]


def accuracy_under(record: Record, name: str) -> float:
    """Accuracy under one attack of a record, in percent."""
    return find_attack(record, name).accuracy


def read_overhead(model: str) -> dict[str, Any]:
    """The committed cost of a model."""
    return json.loads((RUNS / "overhead" / f"{model}.json").read_text(encoding="utf-8"))


def relative_times(model: str) -> dict[str, str]:
    """Measured times of a model, simulated and on int8 kernels, relative to one full-precision network."""
    rows = [row for row in read_overhead(model)["measured"]["backends"] if row["network"] == "model"]
    kinds = "simulated", "int8"
    return {kind: f"{row['ratio']['median']:.1f}" for kind in kinds for row in rows if kind in row["backend"]}


def read_times(name: str) -> dict[str, Any]:
    """A record of times in ``benchmarks/records``."""
    return json.loads((TIMES / f"{name}.json").read_text(encoding="utf-8"))
