"""What the committed runs in ``leaderboard/runs`` say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from empir_plugin.evaluation.record import Record

RUNS = Path(__file__).parents[1] / "leaderboard" / "runs"
ROBUST = ("empir-cifar-at", "empir-mnist-at")
"""The ensembles trained adversarially."""


def evaluated(name: str) -> Record:
    """The record of an evaluation."""
    return Record.read(RUNS / f"{name}.json")


def of_all(run: str) -> Record:
    """The record of an evaluation, which must be of the whole official test set."""
    record = evaluated(run)
    if not record.data["full_official"]:
        raise ValueError(f"{run}.json must cover the official test set, got {record.data['n']} images")
    return record


def overhead(model: str) -> dict[str, Any]:
    """What a model costs."""
    return json.loads((RUNS / "overhead" / f"{model}.json").read_text(encoding="utf-8"))


def execution_times(model: str) -> dict[str, str]:
    """Measured time with quantization simulated and on int8 kernels, in times of one full-precision network."""
    rows = [row for row in overhead(model)["measured"]["backends"] if row["network"] == "model"]
    kinds = "simulated", "int8"
    return {kind: f"{row['ratio']['median']:.1f}" for kind in kinds for row in rows if kind in row["backend"]}
