"""Thresholds: what is missed, by how many images, and which images fell to what."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.errors import InputError
from empir_plugin.evaluation.record import AttackRecord, Record, percent
from empir_plugin.suite.thresholds import Thresholds, numbers


def _record(clean: str, *attacks: str, counts: bool = True) -> Record:
    columns = tuple(
        AttackRecord(f"attack {i}", "", left, percent(left), 1.0, in_worst_case=counts)
        for i, left in enumerate(attacks)
    )
    counted = [clean, *(attacks if counts else ())]
    worst = "".join("1" if set(column) == {"1"} else "0" for column in zip(*counted, strict=True))
    about: dict[str, Any] = {"data": {"name": "toy", "n": len(clean), "source": "folder"}, "run": {"seed": 3}}
    model = {"name": "net", "sha256": "ab"}
    return Record(
        model, about["data"], "Linf:8/255", clean, percent(clean), columns, worst, percent(worst), about["run"]
    )


RECORD = _record("111110", "101110", "110010")


def test_what_is_kept_is_no_shortfall() -> None:
    assert Thresholds().shortfalls(RECORD) == ()
    assert Thresholds(min_clean=83.33, min_robust=33.33).shortfalls(RECORD) == ()
    assert Thresholds(min_clean=83.33, min_robust=33.33).explain(RECORD) == ""


def test_the_worst_case_counts_and_no_column() -> None:
    assert Thresholds(min_robust=33.34).shortfalls(RECORD) == (
        "robust accuracy 33.33 % is below min_robust 33.34 %: 2 of 6 images withstood everything, 3 are needed",
    )


def test_both_can_be_missed() -> None:
    clean, robust = Thresholds(min_clean=90, min_robust=90).shortfalls(RECORD)
    assert (
        clean == "clean accuracy 83.33 % is below min_clean 90 %: 5 of 6 images are classified correctly, 6 are needed"
    )
    assert robust.startswith("robust accuracy")


def test_the_account_names_images_by_number() -> None:
    text = Thresholds(min_robust=50).explain(RECORD)
    lines = [line.split("%")[-1].strip() for line in text.splitlines() if line.startswith("  ")]
    assert lines == ["wrong: 5", "fell: 1", "fell: 2-3", "fell: 1-3"]
    assert text.startswith("net under Linf:8/255, 6 images of toy (folder)\nseed 3")


def test_attacks_without_a_budget_prove_nothing() -> None:
    record = _record("11", "11", counts=False)
    (sentence,) = Thresholds(min_robust=0).shortfalls(record)
    assert "needs an attack with a budget, got attack 0" in sentence
    assert "got none" in Thresholds(min_robust=0).shortfalls(_record("11"))[0]
    assert Thresholds(min_clean=100).shortfalls(record) == ()


@pytest.mark.parametrize("least", [-0.1, 100.1, math.nan, math.inf, "50", True])
def test_what_is_no_percentage(least: Any) -> None:
    with pytest.raises(InputError, match="min_robust is a percentage from 0 to 100, got"):
        Thresholds(min_robust=least)
    with pytest.raises(InputError, match="min_clean is a percentage"):
        Thresholds(min_clean=least)


@given(n=st.integers(1, 400), data=st.data())
def test_as_many_images_as_are_said_to_be_needed_are_enough_and_no_fewer(n: int, data: st.DataObject) -> None:
    least = data.draw(st.one_of(st.floats(0, 100), st.integers(0, n).map(lambda k: round(100 * k / n, 2))))
    right = data.draw(st.integers(0, n))
    missed = Thresholds(min_clean=least).shortfalls(_record("1" * right + "0" * (n - right)))
    if missed:
        needed = int(missed[0].split()[-3])
        assert Thresholds(min_clean=least).shortfalls(_record("1" * needed + "0" * (n - needed))) == ()
        assert right < needed
        assert Thresholds(min_clean=least).shortfalls(_record("1" * (needed - 1) + "0" * (n - needed + 1)))


def test_many_numbers_are_counted() -> None:
    assert numbers(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, and 8 more"
    assert numbers([5]) == "5"
