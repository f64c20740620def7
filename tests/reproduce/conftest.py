"""Fixtures shared by the tests of ``reproduce``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.protocols import adaptive
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.reproduce.attacks import strong
from empir_plugin.reproduce.parts import Confusion, ConfusionMatrix, Cost, Evaluation
from empir_plugin.reproduce.results import Target
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]
Fill = Callable[[Target], None]
RUN = {
    "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1], "processes": 1,
    "finished": "2026-11-21T08:43:43+00:00",
    "versions": {"python": "3.11.7", "torch": "2.15.0"}, "code_sha256": "2" * 64,
}  # fmt: skip
"""What every record states of its run."""


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.fixture
def write_record(workspace: Workspace) -> Write:
    """Writes a record of 100 images: how many are classified correctly without and under each attack."""

    def write(slug: str, clean: int = 100, accuracy: dict[str, int] | None = None, worst: int | None = None) -> None:
        attacks = tuple(
            AttackRecord(name, "", _bits(count), float(count), 1.0, in_worst_case=False)
            for name, count in (accuracy or {}).items()
        )
        if worst is not None:
            attacks = (*attacks, AttackRecord("all", "", _bits(worst), float(worst), 1.0))
        least = _bits(clean if worst is None else min(worst, clean))
        Record(
            {"name": slug, "sha256": "0" * 64, "weights_loaded": True},
            {"name": "toy", "split": "test", "source": "folder", "n": 100, "sha256": "1" * 64, "full_official": False},
            str(Threat.parse("Linf:0.1")), _bits(clean), float(clean), attacks, least, float(least.count("1")),
            RUN, {"name": "toy", "description": "", "headline": "WORST_CASE"},
        ).write(workspace.records / f"{slug}.json")  # fmt: skip

    return write


def _bits(count: int) -> str:
    return "1" * count + "0" * (100 - count)


@pytest.fixture
def fill(workspace: Workspace, write_record: Write) -> Fill:
    """Writes made-up records for all parts of a target."""

    def write(target: Target) -> None:
        workspace.records.mkdir(parents=True, exist_ok=True)
        for index, part in enumerate(target.parts):
            if isinstance(part, Evaluation):
                names = [spec.name for spec in part.protocol.attacks(nn.Flatten(), part.dataset)]
                accuracy = {} if part.protocol in (adaptive, strong) else dict.fromkeys(names, index % 90)
                write_record(part.slug, 95, accuracy, worst=index % 7)
            elif isinstance(part, Confusion):
                counts = tuple(tuple(10 if row == column else 0 for column in range(10)) for row in range(10))
                data = {"n": 100, "sha256": "1" * 64}
                matrix = ConfusionMatrix({"name": "m", "sha256": ""}, data, "FGSM", "Linf:0.3", counts, {})
                matrix.write(workspace.records / f"{part.slug}.json")
            else:
                assert isinstance(part, Cost)
                ratios = {"ideal": 1.5, "as_built": 2.5}
                table = {"eq6": {"time": ratios, "storage": ratios}, "storage_ratio": 3.5, "members": []}
                (workspace.records / f"{part.slug}.json").write_text(json.dumps(table))

    return write
