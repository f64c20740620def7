"""Charts: honest axes with round numbers, points at their numbers, and labels that cover nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.page.charts import PLOT, WIDTH, Axis, around, charts, from_zero, point_labels
from empir_plugin.leaderboard.page.entries import PublishedEntry, published_entries
from empir_plugin.leaderboard.tree import Tree

PERCENT = st.floats(0, 100)


@pytest.fixture
def row(tree: Tree, tmp_path: Path, make: Any) -> PublishedEntry:
    """An entry with 75.23 % clean, 1.40 % in the worst case, half the storage and a quarter more time."""
    record = make.record(make.autoattack())
    record.write(tmp_path / "aa.json")
    add(tree, "empir-cifar", Files((tmp_path / "aa.json",)))
    ((row,),) = published_entries(tree).values()
    return replace(row, entry=replace(row.entry, overhead={"storage_ratio": 0.5, "eq6": {"time": {"as_built": 1.25}}}))


def with_numbers(row: PublishedEntry, stem: str, clean: str, worst: str, **more: Any) -> PublishedEntry:
    """Another entry, with other numbers."""
    entry = replace(row.entry, clean_acc=clean, autoattack_acc=worst, **more)
    return replace(row, place=replace(row.place, stem=stem), entry=entry)


def test_marks() -> None:
    assert [text for _, text in Axis("a", 0.0, 2.0, 0.5).marks] == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert [text for _, text in Axis("a", 70.0, 80.0, 5.0).marks] == ["70", "75", "80"]
    assert [Axis("a", 70.0, 80.0, 5.0).share(value) for value in (70, 72.5, 80)] == [0.0, 0.25, 1.0]


def test_an_axis_from_zero_shows_small_values_as_small() -> None:
    assert from_zero("a", [0.9, 1.4], least=10.0, most=100.0).high == 10.0
    assert from_zero("a", [34.5], least=10.0, most=100.0).high == 40.0
    assert from_zero("a", [100.0], least=10.0, most=100.0).high == 100.0
    assert from_zero("a", [1.77, 0.2], least=1.2).high == 2.0


@given(st.lists(PERCENT, min_size=1, max_size=9))
def test_an_axis_covers_its_values(values: list[float]) -> None:
    for axis in (around("a", values), from_zero("a", values, least=10.0, most=100.0)):
        assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
        assert 2 <= len(axis.marks) <= 9
        assert axis.marks[-1][0] == pytest.approx(axis.high)
        assert len({text for _, text in axis.marks}) == len(axis.marks)
        assert axis.low >= 0
        assert axis.high <= 100


POSITIONS = st.tuples(st.floats(PLOT.left, PLOT.right), st.floats(PLOT.top, PLOT.bottom))


def span(x: float, label: str) -> tuple[float, float]:
    """Left and right end of a label beside a point, at the width of a wide letter."""
    width = 7.1 * len(label)
    return (x + 9.5, x + 9.5 + width) if x < 186 else (x - 9.5 - width, x - 9.5)


@given(st.lists(st.tuples(POSITIONS, st.text("abc", min_size=1, max_size=30)), max_size=12))
def test_labels_cover_neither_each_other_nor_a_point_and_stay_inside(
    named: list[tuple[tuple[float, float], str]],
) -> None:
    points, texts = [point for point, _ in named], [(name, str(rank)) for rank, (_, name) in enumerate(named, 1)]
    labels = point_labels(points, texts)
    assert all(label in (*choices, "") for label, choices in zip(labels, texts, strict=True))
    boxes = [(*span(x, label), y) for (x, y), label in zip(points, labels, strict=True) if label]
    assert all(left >= PLOT.left and right <= WIDTH for left, right, _ in boxes)
    for index, (left, right, y) in enumerate(boxes):
        others = [*boxes[:index], *((x - 4.5, x + 4.5, height) for x, height in points)]
        assert not any(left < end and start < right and abs(y - height) < 13 for start, end, height in others)


def test_a_point_is_labelled_with_its_name_then_its_rank_then_not_at_all() -> None:
    crowd = [(100.0 + 12 * column, 100.0) for column in range(3)]
    assert point_labels([(100.0, 50.0)], [("alone", "1")]) == ["alone"]
    assert point_labels([(100.0, 50.0), (130.0, 55.0)], [("a name", "1"), ("other", "2")]) == ["1", "other"]
    assert point_labels(crowd, [("a", "1"), ("b", "2"), ("last", "3")]) == ["", "", "last"]
    assert point_labels([(180.0, 50.0)], [("a name that is far too long for it", "1")]) == ["1"]


def test_points_are_at_their_numbers(row: PublishedEntry) -> None:
    clean, storage, time = charts([row])
    assert (clean.x.low, clean.x.high, clean.y.high) == (70.0, 82.0, 10.0)
    left, right = clean.x_marks[0][0], clean.x_marks[-1][0]
    (point,) = clean.points
    assert point.x == pytest.approx(left + (75.23 - 70) / 12 * (right - left), abs=0.02)
    bottom, top = clean.y_marks[0][0], clean.y_marks[-1][0]
    assert point.y == pytest.approx(bottom - 0.14 * (bottom - top), abs=0.02)
    assert point.text == "Sen2020EMPIR: 75.23 % clean, 1.40 % in the worst case"
    assert (point.kind, clean.reference) == ("unknown", None)
    for chart, ratio in ((storage, 0.5), (time, 1.25)):
        marks = dict((text, x) for x, text in chart.x_marks)
        assert chart.points[0].x == pytest.approx(marks["0.0"] + ratio * (marks["1.0"] - marks["0.0"]), abs=0.02)
        assert chart.reference == marks["1.0"]
        assert PLOT.left < chart.points[0].x < PLOT.right


def test_an_entry_without_a_cost_is_listed_as_missing(row: PublishedEntry) -> None:
    other = with_numbers(row, "Other2021Standing", "70.00", "1.00", overhead={"storage_ratio": 2.0})
    clean, storage, time = charts([row, other])
    assert [len(chart.points) for chart in (clean, storage, time)] == [2, 2, 1]
    assert [chart.missing for chart in (clean, storage, time)] == [(), (), ("Other2021Standing",)]


def test_names_without_room_become_ranks(row: PublishedEntry) -> None:
    few = charts([row])
    assert [(point.label, chart.ranked) for chart in few for point in chart.points] == [("Sen2020EMPIR", False)] * 3
    assert {point.anchor for chart in few for point in chart.points} == {"start", "end"}
    numbers = (("76.00", "1.20"), ("72.00", "1.00"), ("79.00", "0.80"))
    crowd = [with_numbers(row, f"Crowd2020Number{i}_variant", *pair) for i, pair in enumerate(numbers)]
    clean, _, _ = charts(crowd)
    assert [point.label for point in clean.points] == ["1", "2", "3"]
    assert clean.ranked


def test_ranks_count_entries_without_a_number_too(row: PublishedEntry) -> None:
    first = with_numbers(row, "First2020", "75.00", "9.00", overhead=None)
    long, last = f"Second2020{'x' * 40}", "Third2020"
    _, storage, _ = charts([first, with_numbers(row, long, "75.00", "5.00"), with_numbers(row, last, "75.00", "1.00")])
    assert [point.label for point in storage.points] == ["2", last]
