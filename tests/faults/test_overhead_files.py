"""A damaged overhead is never published: every number in it is computed again, or has a form and a range."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from empir_plugin.data.image_set import OFFICIAL_FINGERPRINTS
from empir_plugin.errors import EmpirError, EvaluationError
from empir_plugin.evaluation.overhead.verify import parse_overhead
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.check import check
from empir_plugin.leaderboard.eligibility import require_same_overhead_subject, shipped_fingerprint, shipped_overhead
from empir_plugin.leaderboard.evidence import OVERHEAD
from empir_plugin.leaderboard.tree import Tree

MODEL, SHAPE = "empir-cifar", (3, 32, 32)
UNSEEN = (
    "pytorch",
    "float32",
    "int8",
    "bf16",
    "model",
    "backend",
    "unavailable",
    "device",
    "threads",
    "batch_size",
    "repeats",
)
"""Keys of the measured times that no file can tell from others of the same form."""


@pytest.fixture(scope="module")
def record() -> Record:
    robust = "1" * 140 + "0" * 9860
    clean = "1" * 7523 + "0" * 2477
    return Record(
        model={"name": MODEL, "sha256": shipped_fingerprint(MODEL), "identity": 2, "weights_loaded": True},
        data={
            "name": "cifar10", "split": "test", "source": "official", "n": 10_000, "full_official": True,
            "sha256": OFFICIAL_FINGERPRINTS["cifar10", "test"],
        },
        threat="Linf:8/255", clean=clean, clean_accuracy=75.23,
        attacks=(AttackRecord("AutoAttack", "", robust, 1.4, 1.0, threat="Linf:8/255", kind="autoattack-standard"),),
        worst_case=robust, worst_case_accuracy=1.4,
        run={
            "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1],
            "processes": 1, "finished": "2026-11-21T08:43:43+00:00", "versions": {"python": "3", "torch": "2"},
            "code_sha256": "c" * 64,
        },
        protocol={"name": "standard", "description": "", "headline": "WORST_CASE"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def report(record: Record) -> dict[str, Any]:
    counted = shipped_overhead(MODEL, SHAPE)
    assert counted is not None
    model, baseline = {"median": 6.0, "p10": 5.0, "p90": 7.0}, {"median": 2.0, "p10": 1.0, "p90": 3.0}
    ratio = {"median": 3.0, "p10": 2.0, "p90": 4.0}
    measured = {
        "device": "cpu: x86_64",
        "processor": {"name": "x86_64", "pytorch": "AVX2", "float32": "AVX2", "int8": "AVX2", "bf16": "none"},
        "backend": "float32", "threads": 1, "batch_size": 32, "repeats": 20,
        "execution": "sequential", "baseline_layout": "contiguous",
        "model": model, "baseline": baseline, "ratio": ratio,
        "backends": [
            {"network": "model", "backend": "float32", "milliseconds": model, "ratio": ratio, "unavailable": ""},
            {"network": "baseline", "backend": "float32, contiguous", "milliseconds": baseline, "ratio": ratio,
             "unavailable": ""},
            {"network": "model", "backend": "int8", "milliseconds": None, "ratio": None, "unavailable": "no kernel"},
        ],
    }  # fmt: skip
    return json.loads(json.dumps({**counted.to_dict(), "model_sha256": record.model["sha256"], "measured": measured}))


def published(path: Path, text: str, record: Record) -> bool:
    path.write_text(text)
    try:
        require_same_overhead_subject(OVERHEAD.load(path), record)
    except EmpirError as error:
        text = str(error)
    else:
        return True
    assert "\n" not in text
    return False


def is_allowed(path: tuple[Any, ...], value: Any) -> bool:
    if path in {("measured",), ("measured", "processor")}:
        return value is ... or value is None
    if path in {("measured", "backends", 2), ("measured_by_batch_size",)}:
        return value is ...
    if path[-1] == "unavailable":
        return value in (..., "x")
    return path[:1] == ("measured",) and path[-1] in UNSEEN and value == "x"


def damaged(folder: Path, record: Record, cases: list[Any], toys: ModuleType) -> list[Any]:
    path = folder / "costs.json"
    return [case[:2] for case in cases if published(path, toys.text(case[2]), record) and not is_allowed(*case[:2])]


def test_the_report_itself_is_accepted(report: dict[str, Any], record: Record) -> None:
    assert require_same_overhead_subject(report, record) == report


def test_no_damaged_report_is_published(
    report: dict[str, Any], record: Record, toys: ModuleType, tally: Any, tmp_path: Path
) -> None:
    cases = toys.sample(report, 60)
    wrong = damaged(tmp_path, record, cases, toys)
    assert wrong == []
    tally("overhead: mutated value", len(cases), len(cases) - len(wrong))


@pytest.mark.slow
def test_no_damaged_report_at_all(
    report: dict[str, Any], record: Record, toys: ModuleType, tally: Any, tmp_path: Path
) -> None:
    cases = list(toys.mutations(report))
    wrong = damaged(tmp_path, record, cases, toys)
    assert wrong == []
    tally("overhead: mutated value, all", len(cases), len(cases) - len(wrong))


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("bops_ratio",), "x", "bops_ratio of the overhead must be a table"),
        (("macs",), 1, "overhead.macs is 1, its layers make it 32291712"),
        (("members", 0, "layers", 0, "weights"), -5, "conv1: weights must be 0 or more, got -5"),
        (("storage_ratio",), 0.1, "overhead.storage_ratio is 0.1, its layers make it 1.77"),
        (("baseline",), "member 1", "overhead.baseline is 'member 1'"),
        (("measured", "ratio", "median"), 0.5, "0 < p10|model and ratio"),
        (("image_shape",), [3, 28, 28], "images of 3x28x28, the records are of images of 3x32x32"),
    ],
)
def test_the_key_is_named(
    path: tuple[Any, ...], value: Any, sentence: str, report: dict[str, Any], record: Record, toys: ModuleType
) -> None:
    table = json.loads(json.dumps(report))
    toys.at(table, path[:-1])[path[-1]] = value
    with pytest.raises(EmpirError, match=sentence):
        require_same_overhead_subject(table, record)


def test_numbers_that_agree_with_each_other_and_not_with_the_model(report: dict[str, Any], record: Record) -> None:
    table = {**report, "storage_bytes_packed": 467_256, "storage_ratio": 1.0}
    assert parse_overhead(table).storage_ratio == 1.0
    with pytest.raises(EvaluationError, match=r"storage_bytes_packed is 467256, the model makes it \d+: measure it"):
        require_same_overhead_subject(table, record)


def test_check_finds_what_add_would_not_have_published(report: dict[str, Any], record: Record, tmp_path: Path) -> None:
    record.write(tmp_path / "aa.json")
    (tmp_path / "costs.json").write_text(json.dumps(report))
    tree = Tree(tmp_path / "board")
    place = add(tree, MODEL, Files((tmp_path / "aa.json",), overhead=tmp_path / "costs.json"))
    assert check(tree) == []
    forged = json.dumps({**report, "bops_with_sums_ratio": 0.5})
    entry, evidence = json.loads(place.entry.read_text()), json.loads(place.evidence.read_text())
    (tree.runs / "costs.json").write_text(forged)
    evidence["overhead"]["sha256"] = hashlib.sha256(forged.encode()).hexdigest()
    place.evidence.write_text(json.dumps(evidence))
    place.entry.write_text(json.dumps({**entry, "overhead": json.loads(forged)}))
    assert ["bops_with_sums_ratio is 0.5" in problem.reason for problem in check(tree)] == [True]


def test_measurements_at_several_batch_sizes_are_read_and_checked(report: dict[str, Any]) -> None:
    latency = {**report["measured"], "batch_size": 32}
    other = {**latency, "batch_size": 256}
    table = {**report, "measured": latency, "measured_by_batch_size": {"32": latency, "256": other, "1": "too slow"}}
    found = parse_overhead(table)
    assert [key for key in found.measured_by_batch_size] == [32, 256, 1]
    assert found.measured_by_batch_size[1] == "too slow"
    for damaged, named in (
        ({"32": latency, "x": "no"}, r"measured_by_batch_size.*'x'|\"x\""),
        ({"32": latency, "7": other}, r"measured_by_batch_size\[7\].*256"),
        ({"256": other}, "overhead.measured"),
        ({"32": 5}, r"measured_by_batch_size.*\[32\]"),
    ):
        with pytest.raises(EmpirError, match=named):
            parse_overhead({**table, "measured_by_batch_size": damaged})
