"""``empir compare``: the table, the JSON, the exit code, and one sentence for what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from empir_cli import main
from empir_plugin.evaluation.record import AttackRecord, Record


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["compare", *map(str, arguments)])


@pytest.fixture
def records(tmp_path: Path) -> tuple[Path, Path]:
    attack = AttackRecord("PGD-100 mean_probability", settings="", robust="1110", accuracy=75.0, seconds=1.0)
    data = {"name": "toy", "source": "made", "n": 4, "sha256": "ab"}
    about = {"model": {"name": "one"}, "data": data, "threat": "Linf:8/255", "run": {}}
    one = Record(
        clean="1111", clean_accuracy=100.0, attacks=(attack,), worst_case="1110", worst_case_accuracy=75.0, **about
    )
    broken = replace(attack, robust="0001", accuracy=25.0)
    other = replace(one, model={"name": "other"}, attacks=(broken,), worst_case="0001", worst_case_accuracy=25.0)
    for record in (one, other):
        record.write(tmp_path / f"{record.model['name']}.json")
    return tmp_path / "one.json", tmp_path / "other.json"


def test_the_table_fits_a_terminal_and_names_the_images(records: tuple[Path, Path]) -> None:
    result = run(*records)
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    (row,) = (line for line in lines if line.split()[:2] == ["PGD-100", "mean_probability"])
    assert row.split()[2:] == ["75.00", "%", "25.00", "%", "-50.00", "-3", "0.62"]
    assert lines[lines.index(row) + 1].split() == ["30.1-95.4", "4.6-69.9", "+1"]
    assert max(map(len, lines)) <= 80
    assert "PGD-100 mean_probability: images lost: 0-2; gained: 3" in result.output


def test_a_drop_beyond_the_limit_is_exit_code_1(records: tuple[Path, Path]) -> None:
    assert run(*records, "--fail-on-drop", "50").exit_code == 0
    failed = run(*records, "--fail-on-drop", "49.9")
    assert failed.exit_code == 1
    assert "robust accuracy fell by 50.00 points" in failed.output
    assert run(*reversed(records), "--fail-on-drop", "0").exit_code == 0


def test_json_has_every_image(records: tuple[Path, Path]) -> None:
    (comparison,) = json.loads(run(*records, "--json").stdout)
    assert (comparison["baseline"]["model"]["name"], comparison["candidate"]["model"]["name"]) == ("one", "other")
    assert comparison["changes"][1]["lost"] == [0, 1, 2]


def test_records_of_other_images_and_other_files_are_one_sentence(records: tuple[Path, Path], tmp_path: Path) -> None:
    record = Record.read(records[1])
    replace(record, data={**record.data, "sha256": "cd"}).write(records[1])
    assert "evaluate both on the same images" in run(*records).output
    missing = run(records[0], tmp_path / "nothing.json")
    assert missing.exit_code == 2
    assert "nothing.json cannot be read" in missing.output
    assert "Traceback" not in missing.output
