"""Records as CSV, data frame and HTML."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

import pytest

from empir_plugin.evaluation.record import AttackRecord, Record

RECORD = Record(
    model={"name": "<b>toy</b>"},
    data={"name": "toy", "n": 4},
    threat="Linf:8/255",
    clean="1110",
    clean_accuracy=75.0,
    attacks=(AttackRecord("F & G", "", "1100", 50.0, 0.25, flags=("a < b",)),),
    worst_case="1100",
    worst_case_accuracy=50.0,
    run={},
)


def test_csv_has_a_row_for_each_accuracy(tmp_path: Path) -> None:
    rows = list(csv.DictReader(io.StringIO(RECORD.to_csv(tmp_path / "record.csv"))))
    assert (tmp_path / "record.csv").read_text() == RECORD.to_csv()
    assert [(row["attack"], row["accuracy"]) for row in rows] == [
        ("none (clean)", "75.0"), ("F & G", "50.0"), ("worst case per image", "50.0")
    ]  # fmt: skip
    assert (rows[0]["low"], rows[0]["high"], rows[1]["seconds"]) == ("30.06", "95.44", "0.25")


def test_the_frame_has_the_same_numbers() -> None:
    pytest.importorskip("pandas")
    frame = RECORD.to_frame()
    assert list(frame.index) == ["none (clean)", "F & G", "worst case per image"]
    assert frame.loc["F & G", "accuracy"] == 50.0


def test_html_shows_numbers_and_warnings_and_escapes_names() -> None:
    text = RECORD._repr_html_()
    assert "<b>toy" not in text
    assert "&lt;b&gt;toy&lt;/b&gt; under Linf:8/255, 4 images of toy" in text
    assert "F &amp; G</th>" in text
    assert "30.1-95.4" in text
    assert "F &amp; G: a &lt; b" in text
    assert "Warnings" not in replace(RECORD, attacks=(replace(RECORD.attacks[0], flags=()),))._repr_html_()
