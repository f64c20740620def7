"""Thresholds: which are missed, by how many images, and which images each attack broke."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.errors import InputError
from empir_plugin.evaluation.record import AttackRecord, Record, percent
from empir_plugin.suite.case import Thresholds, ranges


def _record(clean: str, *attacks: str, counts: bool = True) -> Record:
    columns = tuple(
        AttackRecord(f"attack {i}", "", robust, percent(robust), 1.0, in_worst_case=counts)
        for i, robust in enumerate(attacks)
    )
    counted = [clean, *(attacks if counts else ())]
    worst = "".join("1" if set(column) == {"1"} else "0" for column in zip(*counted, strict=True))
    about: dict[str, Any] = {"data": {"name": "toy", "n": len(clean), "source": "folder"}, "run": {"seed": 3}}
    model = {"name": "net", "sha256": "ab"}
    return Record(
        model, about["data"], "Linf:8/255", clean, percent(clean), columns, worst, percent(worst), about["run"]
    )


RECORD = _record("111110", "101110", "110010")


def test_an_accuracy_at_the_threshold_passes() -> None:
    assert Thresholds().shortfalls(RECORD) == ()
    assert Thresholds(min_clean=83.33, min_robust=33.33).shortfalls(RECORD) == ()
    assert Thresholds(min_clean=83.33, min_robust=33.33).explain(RECORD) == ""


def test_the_worst_case_counts_rather_than_any_single_attack() -> None:
    assert Thresholds(min_robust=33.34).shortfalls(RECORD) == (
        "robust accuracy 33.33 % is below min_robust 33.34 %: 2 of 6 images are robust to every attack, 3 are needed",
    )


def test_both_thresholds_can_be_missed() -> None:
    clean, robust = Thresholds(min_clean=90, min_robust=90).shortfalls(RECORD)
    assert (
        clean == "clean accuracy 83.33 % is below min_clean 90 %: 5 of 6 images are classified correctly, 6 are needed"
    )
    assert robust.startswith("robust accuracy")


def test_the_explanation_lists_images_by_number() -> None:
    text = Thresholds(min_robust=50).explain(RECORD)
    lines = [line.split("%")[-1].strip() for line in text.splitlines() if line.startswith("  ")]
    assert lines == ["wrong: 5", "broken: 1", "broken: 2-3", "broken: 1-3"]
    assert text.startswith("net under Linf:8/255, 6 images of toy (folder)\nseed 3")


def test_min_robust_needs_an_attack_with_a_budget() -> None:
    record = _record("11", "11", counts=False)
    (sentence,) = Thresholds(min_robust=0).shortfalls(record)
    assert "needs an attack with a budget, got attack 0" in sentence
    assert "got none" in Thresholds(min_robust=0).shortfalls(_record("11"))[0]
    assert Thresholds(min_clean=100).shortfalls(record) == ()


@pytest.mark.parametrize("least", [-0.1, 100.1, math.nan, math.inf, "50", True])
def test_a_threshold_that_is_not_a_percentage_is_rejected(least: Any) -> None:
    with pytest.raises(InputError, match=r"min_robust.*percentage from 0 to 100"):
        Thresholds(min_robust=least)
    with pytest.raises(InputError, match=r"min_clean.*percentage"):
        Thresholds(min_clean=least)


@given(n=st.integers(1, 400), data=st.data())
def test_the_needed_number_of_images_is_the_smallest_that_passes(n: int, data: st.DataObject) -> None:
    least = data.draw(st.one_of(st.floats(0, 100), st.integers(0, n).map(lambda k: round(100 * k / n, 2))))
    right = data.draw(st.integers(0, n))
    missed = Thresholds(min_clean=least).shortfalls(_record("1" * right + "0" * (n - right)))
    if missed:
        needed = int(missed[0].split()[-3])
        assert Thresholds(min_clean=least).shortfalls(_record("1" * needed + "0" * (n - needed))) == ()
        assert right < needed
        assert Thresholds(min_clean=least).shortfalls(_record("1" * (needed - 1) + "0" * (n - needed + 1)))


def test_long_lists_are_shortened() -> None:
    assert ranges(range(0, 40, 2)) == "0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, and 8 more"
    assert ranges([5]) == "5"
