"""Records: what is written is read back, and what contradicts itself is not."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.record import AttackRecord, PartRecord, Record, percent

PARTS = (PartRecord("clean", "1110", 75.0), PartRecord("apgd-ce", "1000", 25.0))
ATTACKS = (
    AttackRecord("FGSM", "fgsm()", "1100", 50.0, 0.25, threat="Linf:8/255", rules="FGSM: attacks."),
    AttackRecord("CW", "cw()", "0001", 25.0, 3.0, in_worst_case=False),
    AttackRecord("AutoAttack", "aa()", "1000", 25.0, 60.5, ("a “flag”",), parts=PARTS),
)
RECORD = Record(
    model={"name": "toy", "sha256": "ab", "weights_loaded": True},
    data={"name": "toy", "n": 4},
    threat="Linf:8/255",
    clean="1110",
    clean_accuracy=75.0,
    attacks=ATTACKS,
    worst_case="1000",
    worst_case_accuracy=25.0,
    run={"seed": 0, "threads": [1]},
    protocol={"name": "default", "headline": "WORST_CASE"},
)


def test_a_record_is_read_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    RECORD.write(path)
    assert Record.read(path) == RECORD
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_the_format_is_stable() -> None:
    table = json.loads(RECORD.to_json())
    assert list(table) == [
        "model", "data", "threat", "clean", "clean_accuracy", "attacks", "worst_case", "worst_case_accuracy", "run",
        "protocol", "schema",
    ]  # fmt: skip
    assert list(table["attacks"][2]) == [
        "name", "settings", "robust", "accuracy", "seconds", "flags", "rules", "threat", "in_worst_case", "parts",
    ]  # fmt: skip
    assert table["attacks"][2]["parts"][1] == {"name": "apgd-ce", "robust": "1000", "accuracy": 25.0}
    assert table["schema"] == 1


def test_the_headline_is_the_protocols() -> None:
    assert RECORD.headline_accuracy == 25.0
    assert replace(RECORD, protocol={"headline": "AVERAGE"}).headline_accuracy == 33.33
    assert replace(RECORD, protocol={}).headline_accuracy == 25.0


def test_percent_has_two_decimals() -> None:
    assert (percent("1"), percent("0"), percent("100"), percent("1" * 8703 + "0" * 1297)) == (100, 0, 33.33, 87.03)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_is_neither_written_nor_read(value: float, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match="finite"):
        replace(RECORD, run={"seconds": value}).write(tmp_path / "record.json")
    assert not list(tmp_path.iterdir())
    path = tmp_path / "record.json"
    path.write_text(RECORD.to_json().replace("60.5", json.dumps(value)))
    with pytest.raises(EvaluationError, match="no run record"):
        Record.read(path)
    with pytest.raises(EvaluationError, match="seconds"):
        replace(ATTACKS[0], seconds=value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clean_accuracy": 74.0}, "make 75.0 %, the record says 74.0"),
        ({"worst_case": "1100", "worst_case_accuracy": 50.0}, "worst case does not follow"),
        ({"clean": "11x0"}, "0 or 1"),
        ({"clean": ""}, "0 or 1"),
        ({"data": {"n": 5}}, "speaks of 5 images"),
        ({"worst_case": "100", "worst_case_accuracy": 33.33}, "speaks of 3 images"),
        ({"attacks": (replace(ATTACKS[0], robust="11", accuracy=100.0),)}, "2 verdicts for 4 images"),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=sentence):
        replace(RECORD, **change)
    table = json.loads(RECORD.to_json())
    table.update({key: item for key, item in change.items() if key != "attacks"})
    if "attacks" in change:
        table["attacks"][0].update(robust="11", accuracy=100.0)
    path = tmp_path / "forged.json"
    path.write_text(json.dumps(table))
    with pytest.raises(EvaluationError, match=r"forged\.json is no run record"):
        Record.read(path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b"\xff\xfe",
        b'{"schema": 2}',
        b"[" * 100_000,
        RECORD.to_json()[:-200].encode(),
    ],
    ids=["empty", "brace", "list", "number", "null", "table", "bytes", "schema", "deep", "cut"],
)
def test_a_damaged_file_is_named_in_one_sentence(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "damaged.json"
    path.write_bytes(content)
    with pytest.raises(EvaluationError, match=r"damaged\.json") as caught:
        Record.read(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ('"schema": 1', '"schema": 2', "it has schema 2, this release reads 1"),
        ('"seed": 0', '"seed": 1e999', "1e999 is no finite number"),
        ('"clean": "1110"', '"clean": "1111", "clean": "1110"', "'clean' occurs twice"),
    ],
    ids=["version", "infinite", "twice"],
)
def test_what_readers_could_understand_differently_is_refused(old: str, new: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(RECORD.to_json().replace(old, new))
    with pytest.raises(EvaluationError, match=f"is no run record: .*{reason}"):
        Record.read(path)


@pytest.mark.parametrize("key", list(json.loads(RECORD.to_json())))
@pytest.mark.parametrize("value", [None, 3, [], {}, "text", [[]]], ids=str)
def test_wrong_types_are_errors_of_ours(key: str, value: object, tmp_path: Path) -> None:
    table = json.loads(RECORD.to_json())
    if table[key] == value:
        return
    table[key] = value
    path = tmp_path / "record.json"
    path.write_text(json.dumps(table))
    try:
        Record.read(path)
    except EvaluationError:
        return
    assert type(value) is type(json.loads(RECORD.to_json())[key])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EvaluationError, match=r"nothing\.json cannot be read as a run record \(No such file"):
        Record.read(tmp_path / "nothing.json")


def test_a_failed_write_leaves_the_old_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    RECORD.write(path)
    before = path.read_bytes()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EvaluationError, match="No space left on device"):
        replace(RECORD, threat="L2:0.5").write(path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
