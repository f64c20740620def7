"""Records are read back as written, refused if they contradict themselves, upgraded, and merged."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from empir_plugin.attacks import fgsm, pgd, uniform_noise
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.record import (
    AttackRecord,
    PartRecord,
    Record,
    merge_compatible,
    merge_records,
    parse_record,
    percent,
)
from empir_plugin.evaluation.run import evaluate

PARTS = (PartRecord("clean", "1110", 75.0), PartRecord("apgd-ce", "1000", 25.0))
ATTACKS = (
    AttackRecord("FGSM", "fgsm()", "1100", 50.0, 0.25, threat="Linf:8/255", rules="FGSM: attacks."),
    AttackRecord("CW", "cw()", "0001", 25.0, 3.0, in_worst_case=False),
    AttackRecord("AutoAttack", "aa()", "1000", 25.0, 60.5, ("a “flag”",), parts=PARTS, kind="autoattack-standard"),
)
RECORD = Record(
    model={"name": "toy", "sha256": "a" * 64, "identity": 2, "weights_loaded": True},
    data={"name": "toy", "split": "test", "source": "folder", "n": 4, "sha256": "b" * 64, "full_official": False},
    threat="Linf:8/255",
    clean="1110",
    clean_accuracy=75.0,
    attacks=ATTACKS,
    worst_case="1000",
    worst_case_accuracy=25.0,
    run={
        "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1],
        "backend": {"verdicts": "float32", "queries": "float32", "gradients": "float32", "reason": ""},
        "batch_dependent": 0, "processes": 1, "finished": "2026-11-21T08:43:43+00:00",
        "versions": {"python": "3.11.7", "torch": "2.15.0"}, "code_sha256": "c" * 64,
    },
    protocol={"name": "default", "description": "", "headline": "WORST_CASE"},
)  # fmt: skip


def test_records_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "record.json"
    RECORD.write(path)
    assert Record.read(path) == RECORD
    assert [entry.name for entry in path.parent.iterdir()] == ["record.json"]


def test_the_format_is_stable() -> None:
    table = json.loads(RECORD.to_json())
    assert list(table) == [
        "model", "data", "threat", "clean", "clean_accuracy", "attacks", "worst_case", "worst_case_accuracy", "run",
        "protocol", "flags", "schema",
    ]  # fmt: skip
    assert list(table["attacks"][2]) == [
        "name", "kind", "version", "settings", "robust", "accuracy", "seconds", "flags", "rules", "threat",
        "in_worst_case", "parts",
    ]  # fmt: skip
    assert table["attacks"][2]["parts"][1] == {"name": "apgd-ce", "robust": "1000", "accuracy": 25.0}
    assert (table["attacks"][2]["kind"], table["attacks"][2]["version"]) == ("autoattack-standard", 1)
    assert table["schema"] == 2


def test_the_protocol_chooses_the_headline() -> None:
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
    with pytest.raises(EvaluationError, match="not a run record"):
        Record.read(path)
    with pytest.raises(EvaluationError, match="seconds"):
        replace(ATTACKS[0], seconds=value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"clean_accuracy": 74.0}, "75.0 %.*74.0"),
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
    with pytest.raises(EvaluationError, match=r"forged\.json is not a run record"):
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
        b'{"schema": 1}',
        b"[" * 100_000,
        RECORD.to_json()[:-200].encode(),
    ],
    ids=["empty", "brace", "list", "number", "null", "table", "bytes", "schema 2", "schema 1", "deep", "cut"],
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
        ('"schema": 2', '"schema": 3', "schema 3, this release reads 1, 2"),
        ('"kind": "autoattack-standard",', "", r"attacks\[2\]\.kind is missing"),
        ('"version": 1,', "", r"attacks\[0\]\.version is missing"),
        ('"seed": 0', '"seed": 1e999', "1e999 is not"),
        ('"clean": "1110"', '"clean": "1111", "clean": "1110"', "'clean' occurs twice"),
    ],
    ids=["schema", "no kind", "no version", "infinite", "twice"],
)
def test_ambiguous_files_are_refused(old: str, new: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(RECORD.to_json().replace(old, new))
    with pytest.raises(EvaluationError, match=f"not a run record.*{reason}"):
        Record.read(path)


@pytest.mark.parametrize("key", list(json.loads(RECORD.to_json())))
@pytest.mark.parametrize("value", [None, 3, [], {}, "text", [[]]], ids=str)
def test_wrong_types_are_evaluation_errors(key: str, value: object, tmp_path: Path) -> None:
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
    with pytest.raises(EvaluationError, match=r"nothing\.json.*No such file.*check the path"):
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


SCHEMA_1_KINDS = {
    "AutoAttackSuite(version='standard', attacks=(), surrogate=Plain(), batch_size=77, queries=5000)": (
        "autoattack-standard"
    ),
    "AutoAttackSuite(version='standard', attacks=(), surrogate=Plain(), batch_size=250, queries=100)": "autoattack",
    "AutoAttackSuite(version='plus', attacks=(), surrogate=Plain(), batch_size=250, queries=5000)": "autoattack",
    "AutoAttackSuite(version='standard', attacks=('square'), surrogate=Plain(), batch_size=1, queries=5000)": (
        "autoattack"
    ),
    "AutoAttackSuite(version='standard', attacks=(), surrogate=OverMembers(rule=MeanProbability()), batch_size=250, "
    "queries=5000)": "autoattack",
    "GradientAttack(steps=1)": "gradient",
    "CarliniWagner(search_steps=1)": "carlini-wagner",
    "Transfer(source=x, attack=y)": "transfer",
    "OnMember(index=2, attack=AutoAttackSuite(version='standard', attacks=(), surrogate=Plain(), batch_size=250, "
    "queries=5000))": "on-member",
    "Logged(attack=GradientAttack(steps=1))": "custom",
    "": "custom",
}


def of_schema_1(settings: str) -> str:
    table = json.loads(RECORD.to_json())
    attacks = [{key: row[key] for key in row if key not in ("kind", "version")} for row in table["attacks"]]
    attacks[0]["settings"] = settings
    return json.dumps({**table, "attacks": attacks, "schema": 1})


@pytest.mark.parametrize(("settings", "kind"), SCHEMA_1_KINDS.items())
def test_a_record_of_schema_1_gets_its_kinds_from_the_settings(settings: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    path.write_text(of_schema_1(settings))
    record = Record.read(path)
    assert (record.attacks[0].kind, record.attacks[0].version, record.schema) == (kind, 1, 2)
    record.write(path)
    assert Record.read(path) == record


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"kind": ""}, "kind of FGSM.*'custom'"),
        ({"kind": 3}, "kind of FGSM.*3"),
        ({"version": 0}, "version of FGSM.*0"),
        ({"version": True}, "version of FGSM.*True"),
        ({"version": "1"}, "version of FGSM.*'1'"),
    ],
)
def test_kind_and_version_are_checked(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(EvaluationError, match=sentence):
        replace(ATTACKS[0], **change)


PLAN = (AttackSpec("noise", uniform_noise(2)), AttackSpec("FGSM", fgsm()), AttackSpec("PGD", pgd(3)))


@pytest.fixture(scope="module")
def parts(toys: ModuleType) -> tuple[Record, ...]:
    return tuple(_run_toy(toys, planned) for planned in PLAN)


def _run_toy(toys: ModuleType, *plan: AttackSpec, **settings: Any) -> Record:
    return evaluate(toys.network(), toys.noise_images(), toys.THREAT, plan, settings=Settings(**settings))


def _without_times(record: Record) -> Record:
    attacks = tuple(replace(attack, seconds=0.0) for attack in record.attacks)
    return replace(record, attacks=attacks, run={**record.run, "finished": ""})


def test_merging_gives_the_record_of_one_evaluation(toys: ModuleType, parts: tuple[Record, ...]) -> None:
    together = _run_toy(toys, *PLAN)
    assert _without_times(merge_records(parts)) == _without_times(together)
    assert together.worst_case_accuracy < max(part.worst_case_accuracy for part in parts), "the attacks must differ"


def test_merging_a_record_again_changes_nothing(parts: tuple[Record, ...]) -> None:
    assert merge_records(parts[:1]) == parts[0]
    assert merge_records((parts[0], merge_records(parts), parts[2])) == merge_records(parts)


@pytest.mark.parametrize(
    "change",
    [{"model": {"name": "other"}}, {"data": {"n": 40}}, {"threat": "Linf:1/255"}, {"run": {"seed": 1}}],
    ids=lambda change: next(iter(change)),
)
def test_records_of_different_subjects_are_not_merged(parts: tuple[Record, ...], change: Any) -> None:
    other = replace(parts[1], **change)
    with pytest.raises(EvaluationError, match="no common worst case"):
        merge_records((parts[0], other))
    assert merge_compatible((parts[0], other, parts[2])) == (merge_records((parts[0], parts[2])), other)


def test_different_attacks_with_one_name_are_not_merged(toys: ModuleType, parts: tuple[Record, ...]) -> None:
    longer = _run_toy(toys, AttackSpec("PGD", pgd(4)))
    with pytest.raises(EvaluationError, match=r"PGD.*different names"):
        merge_records((parts[2], longer))
    assert merge_compatible((parts[0], parts[2], longer)) == (merge_records((parts[0], parts[2])), longer)


def test_merging_no_records_gives_none() -> None:
    assert merge_compatible(()) == ()


def test_a_record_is_parsed_from_its_table(parts: tuple[Record, ...]) -> None:
    assert parse_record(json.loads(merge_records(parts).to_json())) == merge_records(parts)
    for damaged in ({}, {"attacks": [{}]}, {**json.loads(parts[0].to_json()), "more": 1}):
        with pytest.raises(EvaluationError, match="not a run record"):
            parse_record(damaged)
    with pytest.raises(EvaluationError, match="make"):
        parse_record({**json.loads(parts[0].to_json()), "clean_accuracy": 1.0})
