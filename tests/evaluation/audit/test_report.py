from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.audit.report import AuditReport, Finding

ROOT = Path(__file__).parents[3]
GOOD = Finding(
    "one step beats many", "FGSM breaks 3.", 0.0, 0.02, 1.0, "PGD goes wherever FGSM goes", True, {"images": 64}
)
BAD = Finding("eps to 1", "9 of 64 survive.", 9 / 64, 0.01, 1e-9, "an unbounded attacker wins", False, {"survivors": 9})


def report(*checks: Finding, verdict: str = "passed") -> AuditReport:
    return AuditReport(
        model={"name": "net", "sha256": "a" * 64},
        data={"name": "mnist", "split": "test", "source": "bundled sample", "n": 70, "sha256": "b" * 64},
        threat="Linf:0.3",
        compared_at="Linf:0.15",
        images=64,
        checks=checks or (GOOD,),
        flags=("a warning",),
        verdict=verdict,
        run={"seed": 0},
    )


def test_a_report_survives_the_file(tmp_path: Path) -> None:
    masked = report(GOOD, BAD, verdict="masked")
    masked.write(tmp_path / "new" / "audit.json")
    again = AuditReport.read(tmp_path / "new" / "audit.json")
    assert again == masked
    assert again.run == masked.run
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["audit.json"]


def test_the_json_holds_every_field_of_every_check() -> None:
    table = json.loads(report(GOOD, BAD, verdict="masked").to_json())
    assert table["verdict"] == "masked"
    assert table["model"]["sha256"] == "a" * 64
    assert set(table["checks"][1]) == {
        "name", "measured", "value", "threshold", "p_value", "reason", "passed", "evidence",
    }  # fmt: skip
    assert table["checks"][1]["evidence"] == {"survivors": 9}


def test_the_verdict_in_words() -> None:
    assert report().summary.startswith("passed: no sign of gradient masking in 1 checks on 64 images under Linf:0.3")
    masked = report(GOOD, BAD, verdict="masked")
    assert masked.masked
    assert masked.failed == (BAD,)
    assert masked.summary.startswith("masked: 1 of 2 checks")
    assert "(eps to 1)" in masked.summary


def _verdict(table: dict[str, Any]) -> None:
    table["verdict"] = "passed"


def _passed(table: dict[str, Any]) -> None:
    table["checks"][1]["passed"] = True


def _value(table: dict[str, Any]) -> None:
    table["checks"][1]["value"] = math.nan


def _no_checks(table: dict[str, Any]) -> None:
    table["checks"] = []


def _twice(table: dict[str, Any]) -> None:
    table["checks"] *= 2


def _unknown_field(table: dict[str, Any]) -> None:
    table["remark"] = "trust me"


def _too_many_images(table: dict[str, Any]) -> None:
    table["images"] = 71


def _no_name(table: dict[str, Any]) -> None:
    del table["model"]["name"]


def _other_format(table: dict[str, Any]) -> None:
    table["schema"] = 3


def _threat(table: dict[str, Any]) -> None:
    table["threat"] = 0.3


FORGERIES = _verdict, _passed, _value, _no_checks, _twice, _unknown_field, _too_many_images, _no_name, _other_format
FORGERIES = (*FORGERIES, _threat)


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_report_that_contradicts_itself_is_refused(forge: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    table = report(GOOD, BAD, verdict="masked").to_table()
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(table))
    assert AuditReport.read(path).masked
    forge(table)
    path.write_text(json.dumps(table))
    with pytest.raises(EvaluationError, match=r"audit\.json is not an audit report"):
        AuditReport.read(path)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"schema": 1}', "[" * 5000], ids=str)
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match="is not an audit report"):
        AuditReport.read(path)
    with pytest.raises(EvaluationError, match=r"nowhere\.json cannot be read as an audit report"):
        AuditReport.read(tmp_path / "nowhere.json")


def test_a_report_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    old = tmp_path / "audit.json"
    old.write_text("old")
    odd = replace(GOOD, evidence={"images": object()})
    with pytest.raises(EvaluationError, match="texts and finite numbers only"):
        report(odd).write(old)
    assert old.read_text() == "old"
    with pytest.raises(EvaluationError, match="cannot be written"):
        report().write(old / "below-a-file.json")


def test_two_reports_are_compared_without_the_time_of_day() -> None:
    assert report() == replace(report(), run={"seed": 0, "finished": "later"})
    assert report() != replace(report(), images=63)


def test_reports_of_schema_1_are_read(tmp_path: Path) -> None:
    """They called the p-value chance; every committed report is one."""
    table = report(GOOD, BAD, verdict="masked").to_table()
    checks = [{"chance" if key == "p_value" else key: item for key, item in row.items()} for row in table["checks"]]
    path = tmp_path / "audit.json"
    path.write_text(json.dumps({**table, "checks": checks, "schema": 1}))
    assert AuditReport.read(path) == report(GOOD, BAD, verdict="masked")
    assert json.loads(AuditReport.read(path).to_json())["schema"] == 2


@pytest.mark.parametrize(
    "path", sorted((ROOT / "leaderboard" / "runs" / "audits").glob("*.json")), ids=lambda p: p.stem
)
def test_committed_reports_are_read(path: Path) -> None:
    found, table = AuditReport.read(path), json.loads(path.read_text())
    assert [check.p_value for check in found.checks] == [row["chance"] for row in table["checks"]]
    assert found.verdict == table["verdict"]
