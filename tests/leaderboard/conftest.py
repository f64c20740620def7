"""Records of full test sets with known accuracies, made without running an attack."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.data.corruptions import CORRUPTIONS, SEVERITIES
from empir_plugin.data.image_set import OFFICIAL_FINGERPRINTS
from empir_plugin.evaluation.audit.report import AuditReport, Finding, verdict_on
from empir_plugin.evaluation.corruptions import KIND, THREAT
from empir_plugin.evaluation.identity import IDENTITY
from empir_plugin.evaluation.record import AttackRecord, Record, percent, worst_case
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.eligibility import shipped_fingerprint, shipped_overhead
from empir_plugin.leaderboard.tree import Place, Tree

N = 10_000
AUTOATTACK = "AutoAttackSuite(version='standard', attacks=(), surrogate=Plain(), batch_size=250, queries=5000)"
VERSIONS = {"python": "3.11.7", "empir-plugin": "0.1.0", "torch": "2.15.0"}
RUN = {
    "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1], "processes": 1,
    "finished": "2026-11-21T08:43:43+00:00",
    "versions": VERSIONS, "code_sha256": "2" * 64,
}  # fmt: skip
"""What every record states of its run."""
THREATS = {"cifar10": "Linf:8/255", "mnist": "Linf:0.3"}


def robust(start: int, stop: int, n: int = N) -> str:
    """Verdicts: only images ``start`` to ``stop - 1`` are robust."""
    return "0" * start + "1" * (stop - start) + "0" * (n - stop)


def attack(name: str, verdicts: str, settings: str = "pgd()", **more: Any) -> AttackRecord:
    return AttackRecord(name, settings, verdicts, percent(verdicts), 1.0, **{"threat": "Linf:8/255", **more})


def model_table(model: str) -> dict[str, Any]:
    return {"name": model, "sha256": shipped_fingerprint(model), "identity": IDENTITY}


def record_of(
    *attacks: AttackRecord, model: str = "empir-cifar", dataset: str = "cifar10", clean: int = 7523, **more: Any
) -> Record:
    """A record of the whole official test set, of which the first ``clean`` images are classified correctly."""
    threat = more.pop("threat", THREATS[dataset])
    verdicts = robust(0, clean)
    worst = worst_case(verdicts, attacks)
    data = {"name": dataset, "split": "test", "source": "official", "n": N, "full_official": True}
    return Record(
        model=model_table(model) | {"weights_loaded": True} | more.pop("model_", {}),
        data=data | {"sha256": OFFICIAL_FINGERPRINTS[dataset, "test"]} | more.pop("data", {}),
        threat=threat,
        clean=verdicts,
        clean_accuracy=percent(verdicts),
        attacks=attacks,
        worst_case=worst,
        worst_case_accuracy=percent(worst),
        run=RUN | more,
        protocol={"name": "standard", "description": "", "headline": "WORST_CASE"},
    )


def autoattack(start: int = 0, stop: int = 140, **more: Any) -> AttackRecord:
    return attack("AutoAttack", robust(start, stop), AUTOATTACK, **{"kind": "autoattack-standard", **more})


def corruptions_of(mean: int = 5000, model: str = "empir-cifar", **more: Any) -> Record:
    """A record on CIFAR-10-C: at severity 3 ``mean`` of 10,000 images are right, at 1, 2, 4 and 5 more or less."""
    changes = {1: 200, 2: 100, 3: 0, 4: -100, 5: -200}
    attacks = tuple(
        attack(f"{name} {severity}", robust(0, mean + changes[severity]), f"{name}", kind=KIND, threat=THREAT)
        for name in CORRUPTIONS
        for severity in SEVERITIES
    )
    images = {"corruptions": {"name": "CIFAR-10-C", "source": "official"} | more.pop("images", {})}
    record = record_of(*more.pop("attacks", attacks), model=model, threat=THREAT, data=images, **more)
    return replace(record, protocol={"name": THREAT, "description": "", "headline": "AVERAGE"})


def audit_of(record: Record, *, masked: bool = False, **more: Any) -> AuditReport:
    value = 0.5 if masked else 0.0
    checks = (Finding("zero gradients", "Some.", value, 0.02, 1e-6 if masked else 1.0, "few are", not masked),)
    data = {"name": record.data["name"], "split": "test", "source": "official", "n": 200, "sha256": "ab"}
    model = {key: record.model[key] for key in ("name", "sha256", "identity")}
    report = AuditReport(model, data, record.threat, record.threat, 150, checks, (), verdict_on(checks))
    return replace(report, **more)


SHAPES = {"cifar10": (3, 32, 32), "mnist": (1, 28, 28)}


def overhead_of(record: Record, model: str = "") -> dict[str, Any]:
    """What is counted on the model of a record, or on another one, under the record's hash."""
    report = shipped_overhead(model or record.model["name"], SHAPES[record.data["name"]])
    assert report is not None
    identity = {"model_sha256": record.model["sha256"], "model_identity": record.model["identity"]}
    return json.loads(json.dumps(report.to_dict() | identity))


@dataclass(frozen=True)
class Make:
    """The functions above, for tests: ``tests`` is not a package, so they cannot import them."""

    robust: Callable[..., str] = robust
    attack: Callable[..., AttackRecord] = attack
    autoattack: Callable[..., AttackRecord] = autoattack
    record: Callable[..., Record] = record_of
    audit: Callable[..., AuditReport] = audit_of
    corruptions: Callable[..., Record] = corruptions_of
    overhead: Callable[..., dict[str, Any]] = overhead_of


@pytest.fixture(scope="session")
def make() -> Make:
    return Make()


@pytest.fixture
def standard() -> Record:
    """Robust to AutoAttack are images 0 to 139: 1.40 %."""
    return record_of(autoattack())


@pytest.fixture
def adaptive() -> Record:
    """Robust to an adaptive attack are images 50 to 199: 1.50 %, and to both attacks 0.90 %."""
    return record_of(attack("PGD-100 mean_probability", robust(50, 200)))


@pytest.fixture
def files(tmp_path: Path, standard: Record, adaptive: Record) -> Files:
    """Two records, a passed audit and an overhead, outside of any tree."""
    folder = tmp_path / "experiments"
    standard.write(folder / "aa.json")
    adaptive.write(folder / "adaptive.json")
    audit_of(standard).write(folder / "audit.json")
    (folder / "overhead.json").write_text(json.dumps(overhead_of(standard)))
    return Files((folder / "aa.json", folder / "adaptive.json"), folder / "audit.json", folder / "overhead.json")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "leaderboard")


@pytest.fixture
def place(tree: Tree, files: Files) -> Place:
    """The entry of ``empir-cifar`` in the tree."""
    return add(tree, "empir-cifar", files)
