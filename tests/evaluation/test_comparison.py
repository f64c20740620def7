"""Two records compared: known differences, symmetry, and what cannot be compared."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.comparison import CLEAN, WORST_CASE, compare
from empir_plugin.evaluation.record import AttackRecord, Record, percent, worst_case


def record(clean: str, attacks: dict[str, str], **change: Any) -> Record:
    rows = tuple(
        AttackRecord(name, settings="", robust=robust, accuracy=percent(robust), seconds=1.0)
        for name, robust in attacks.items()
    )
    worst = worst_case(clean, rows)
    made = Record(
        model={"name": "toy"},
        data={"name": "toy", "n": len(clean), "sha256": "ab"},
        threat="Linf:8/255",
        clean=clean,
        clean_accuracy=percent(clean),
        attacks=rows,
        worst_case=worst,
        worst_case_accuracy=percent(worst),
        run={"seed": 0, "cascade": False},
    )
    return replace(made, **change)


BEFORE = record("11111111", {"FGSM": "11111110", "PGD": "11110000"})
AFTER = record("11111110", {"FGSM": "11111110", "PGD": "00001000"})


def test_differences_by_hand() -> None:
    changes = {change.name: change for change in compare(BEFORE, AFTER).changes}
    assert list(changes) == [CLEAN, "FGSM", "PGD", WORST_CASE]
    assert [change.difference for change in changes.values()] == [-12.5, 0.0, -37.5, -37.5]
    pgd = changes["PGD"]
    assert (pgd.lost, pgd.gained) == ((0, 1, 2, 3), (4,))
    assert pgd.p_value == pytest.approx(2 * 6 / 32), "of 5 coins, 4 or more heads or tails"
    table = json.loads(json.dumps(compare(BEFORE, AFTER).to_table()))
    assert table["changes"][2]["lost"] == [0, 1, 2, 3]
    assert table["changes"][2]["before_interval"] == [pytest.approx(21.52, abs=0.01), pytest.approx(78.48, abs=0.01)]


@given(st.lists(st.tuples(*[st.sampled_from("01")] * 4), min_size=1, max_size=20))
def test_the_other_way_round_it_is_the_opposite(rows: list[tuple[str, ...]]) -> None:
    clean, other_clean, robust, other = map("".join, zip(*rows, strict=True))
    one, two = record(clean, {"PGD": robust}), record(other_clean, {"PGD": other})
    there, back = compare(one, two), compare(two, one)
    for change, opposite in zip(there.changes, back.changes, strict=True):
        assert change.difference == -opposite.difference
        assert (change.lost, change.gained) == (opposite.gained, opposite.lost)
        assert change.p_value == opposite.p_value
        assert len(change.gained) - len(change.lost) == change.after.count("1") - change.before.count("1")


def test_a_record_does_not_differ_from_itself() -> None:
    comparison = compare(BEFORE, BEFORE)
    assert {(change.difference, change.p_value) for change in comparison.changes} == {(0.0, 1.0)}
    assert (comparison.notes, comparison.drops(0)) == ((), ())


def test_the_worst_case_is_that_of_the_common_attacks() -> None:
    stronger = record("11111110", {"PGD": "00001000", "AutoAttack": "00000000"})
    comparison = compare(BEFORE, stronger)
    assert (comparison.changes[-1].before, comparison.changes[-1].after) == ("11110000", "00001000")
    assert [note.rpartition(": ")[2] for note in comparison.notes] == ["FGSM", "AutoAttack"]


def test_other_settings_and_seeds_are_noted() -> None:
    attacks = (replace(BEFORE.attacks[0], settings="steps=3"), BEFORE.attacks[1])
    notes = compare(BEFORE, replace(BEFORE, attacks=attacks, run={"seed": 1, "cascade": False})).notes
    assert len(notes) == 2
    assert notes[0].startswith("FGSM")
    assert notes[1].endswith("seed: 0 and 1")


def test_a_drop_is_counted_in_points() -> None:
    comparison = compare(BEFORE, AFTER)
    assert len(comparison.drops(12.4)) == 2
    (robust,) = comparison.drops(12.5)
    assert "37.50 points" in robust
    assert comparison.drops(37.5) == ()
    assert compare(AFTER, BEFORE).drops(0) == (), "a rise is no drop"


@pytest.mark.parametrize("points", [-1, 101, "1", True, float("nan")], ids=str)
def test_a_largest_drop_is_a_number_of_points(points: Any) -> None:
    with pytest.raises(InputError, match="0 to 100") as caught:
        compare(BEFORE, AFTER).drops(points)
    assert repr(points) in str(caught.value)


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (replace(BEFORE, data={**BEFORE.data, "sha256": "cd"}), ("8 of toy", "same images")),
        (record("1", {"PGD": "1"}), ("1 of toy", "same images")),
        (replace(BEFORE, threat="L2:0.5"), ("Linf:8/255 and L2:0.5", "under one")),
        (record("11111111", {"CW": "11111110"}), ("FGSM, PGD against CW", "same attacks")),
    ],
    ids=["images", "number", "threat", "attacks"],
)
def test_what_cannot_be_compared_is_named(other: Record, names: tuple[str, ...]) -> None:
    with pytest.raises(EvaluationError) as caught:
        compare(BEFORE, other)
    assert all(name in str(caught.value) for name in names)
