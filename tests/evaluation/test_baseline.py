"""Baselines: which records a file holds, which of them belongs to a record, and what fell too far."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.baseline import BaselineRecords, pair_records, read_records
from empir_plugin.evaluation.record import AttackRecord, Record, percent, worst_case
from empir_plugin.suite.session import session_report

RUN = {
    "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1],
    "backend": {"verdicts": "float32", "queries": "float32", "gradients": "float32", "reason": ""},
    "batch_dependent": 0, "processes": 1, "finished": "2026-11-21T08:43:43+00:00",
    "versions": {"python": "3.11.7", "torch": "2.15.0"},
    "code_sha256": "c" * 64,
}  # fmt: skip
DATA = {"name": "toy", "split": "test", "source": "folder", "n": 4, "sha256": "b" * 64, "full_official": False}
PROTOCOL = {"name": "default", "description": "", "headline": "WORST_CASE"}


def record(model: str, **attacks: str) -> Record:
    rows = tuple(
        AttackRecord(name, settings="", robust=robust, accuracy=percent(robust), seconds=1.0)
        for name, robust in attacks.items()
    )
    worst = worst_case("1111", rows)
    identity = {"name": model, "sha256": "a" * 64, "identity": 2, "weights_loaded": True}
    about = {"model": identity, "data": DATA, "threat": "Linf:8/255", "run": RUN, "protocol": PROTOCOL}
    accuracies = {"clean": "1111", "clean_accuracy": 100.0, "worst_case": worst, "worst_case_accuracy": percent(worst)}
    return Record(attacks=rows, **about, **accuracies)


ONE, OTHER = record("one", PGD="1110"), record("other", PGD="1111")


def test_a_run_record_and_a_sessions_report_are_read(tmp_path: Path) -> None:
    ONE.write(tmp_path / "record.json")
    assert read_records(tmp_path / "record.json") == (ONE,)
    table = {"outcome": "passed", "order": 0}
    report = session_report([{**table, "record": json.loads(each.to_json())} for each in (ONE, OTHER)], 0)
    (tmp_path / "report.json").write_text(json.dumps(report))
    assert read_records(tmp_path / "report.json") == (ONE, OTHER)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"records": [{}]}', '{"records": 3}'])
def test_other_files_are_refused_by_name(content: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text(content)
    with pytest.raises(EvaluationError, match=r"other\.json"):
        read_records(tmp_path / "other.json")


def test_the_record_of_the_same_model_images_and_threat_is_found() -> None:
    baseline = BaselineRecords(Path("base.json"), (ONE, OTHER), 1.0)
    assert baseline.of(record("other", FGSM="1111")) is OTHER
    assert baseline.of(record("third", PGD="1111")) is None
    assert baseline.of(replace(OTHER, threat="L2:0.5")) is None
    assert baseline.of(replace(OTHER, data={**OTHER.data, "sha256": "cd"})) is None


def test_a_drop_beyond_the_limit_falls_short() -> None:
    worse = record("one", PGD="1000")
    for drop, count in ((None, 0), (49.0, 1), (50.0, 0)):
        baseline = BaselineRecords(Path("base.json"), (ONE,), drop)
        assert len(baseline.shortfalls(worse, baseline.compare(worse))) == count


def test_what_the_baseline_has_no_number_for_falls_short() -> None:
    baseline = BaselineRecords(Path("base.json"), (ONE,), 1.0)
    more = record("one", PGD="1110", AutoAttack="0000")
    (sentence,) = baseline.shortfalls(more, baseline.compare(more))
    assert all(text in sentence for text in ("base.json", "AutoAttack", "one", "Linf:8/255", "--rb-save"))
    (sentence,) = baseline.shortfalls(OTHER, baseline.compare(OTHER))
    assert "no result of PGD for other" in sentence


def test_single_records_are_paired_whatever_their_models_and_several_by_name() -> None:
    assert pair_records([ONE], [OTHER]) == [(ONE, OTHER)]
    assert pair_records([ONE, OTHER], [OTHER]) == [(OTHER, OTHER)]
    with pytest.raises(EvaluationError, match="nothing to compare"):
        pair_records([ONE, OTHER], [record("third", PGD="1111")])
