"""Charts: round axes that tell no tale, points where their numbers say, and names that cover nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.page.charts import PLOT, Axis, Box, around, charts, from_zero, placed
from empir_plugin.leaderboard.page.published import Published, published
from empir_plugin.leaderboard.tree import Tree

BOUNDS = Box(0, 0, 300, 250)
PERCENT = st.floats(0, 100)


@pytest.fixture
def row(tree: Tree, tmp_path: Path, make: Any) -> Published:
    """An entry with 75.23 % clean, 1.40 % in the worst case, half the storage and a quarter more time."""
    record = make.record(make.autoattack())
    record.write(tmp_path / "aa.json")
    identity = {"model_sha256": record.model["sha256"], "model_identity": 2}
    costs = {**identity, "storage_ratio": 0.5, "eq6": {"time": {"as_built": 1.25}}}
    (tmp_path / "overhead.json").write_text(json.dumps(costs))
    add(tree, "empir-cifar", Files((tmp_path / "aa.json",), overhead=tmp_path / "overhead.json"))
    ((found,),) = published(tree).values()
    return found


def with_numbers(row: Published, stem: str, clean: str, worst: str, **more: Any) -> Published:
    """Another entry, with other numbers."""
    entry = replace(row.entry, clean_acc=clean, autoattack_acc=worst, **more)
    return replace(row, place=replace(row.place, stem=stem), entry=entry)


def test_marks() -> None:
    assert [text for _, text in Axis("a", 0.0, 2.0, 0.5).marks] == ["0.0", "0.5", "1.0", "1.5", "2.0"]
    assert [text for _, text in Axis("a", 70.0, 80.0, 5.0).marks] == ["70", "75", "80"]
    assert [Axis("a", 70.0, 80.0, 5.0).share(value) for value in (70, 72.5, 80)] == [0.0, 0.25, 1.0]


def test_an_axis_from_zero_makes_little_look_little() -> None:
    assert from_zero("a", [0.9, 1.4], least=10.0, most=100.0).high == 10.0
    assert from_zero("a", [34.5], least=10.0, most=100.0).high == 40.0
    assert from_zero("a", [100.0], least=10.0, most=100.0).high == 100.0
    assert from_zero("a", [1.77, 0.2], least=1.2).high == 2.0


@given(st.lists(PERCENT, min_size=1, max_size=9))
def test_an_axis_holds_its_values_and_its_marks(values: list[float]) -> None:
    for axis in (around("a", values), from_zero("a", values, least=10.0, most=100.0)):
        assert all(-1e-9 <= axis.share(value) <= 1 + 1e-9 for value in values)
        assert 2 <= len(axis.marks) <= 9
        assert axis.marks[-1][0] == pytest.approx(axis.high)
        assert len({text for _, text in axis.marks}) == len(axis.marks)
        assert axis.low >= 0
        assert axis.high <= 100


SPOTS = st.tuples(st.floats(10, 290), st.floats(10, 240))


@given(st.lists(st.tuples(SPOTS, st.text("abc", min_size=1, max_size=20)), max_size=12))
def test_names_cover_neither_each_other_nor_a_point_and_stay_inside(
    named: list[tuple[tuple[float, float], str]],
) -> None:
    points, names = [point for point, _ in named], [name for _, name in named]
    labels = placed(points, names, BOUNDS)
    assert len(labels) == len(points)
    boxes = [label.box for label in labels if label]
    assert all(box.within(BOUNDS) for box in boxes)
    assert not any(box.meets(other) for index, box in enumerate(boxes) for other in boxes[:index])
    assert not any(box.meets(Box(x - 1, y - 1, x + 1, y + 1)) for box in boxes for x, y in points)


def test_a_name_is_beside_its_point_if_it_can_be_and_led_to_it_if_not() -> None:
    alone, crowd = (150.0, 100.0), [(150.0 + 12 * x, 100.0 + 12 * y) for x in (-1, 0, 1) for y in (-1, 0, 1)]
    (label,) = placed([alone], ["alone"], BOUNDS)
    assert label is not None
    assert (label.anchor, label.leader, label.x) == ("start", None, 160.0)
    (edge,) = placed([(290.0, 100.0)], ["edge"], BOUNDS)
    assert edge is not None
    assert (edge.anchor, edge.x) == ("end", 280.0)
    inner = placed([*crowd], [str(index) for index in range(9)], BOUNDS)[4]
    assert inner is None or inner.leader is not None
    assert placed([(10.0, 10.0)], ["a name far too long for its room"], Box(0, 0, 50, 20)) == [None]


def test_points_stand_where_their_numbers_say(row: Published) -> None:
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


def test_an_entry_without_a_cost_is_named_and_not_drawn(row: Published) -> None:
    other = with_numbers(row, "Other2021Standing", "70.00", "1.00", overhead={"storage_ratio": 2.0})
    clean, storage, time = charts([row, other])
    assert [len(chart.points) for chart in (clean, storage, time)] == [2, 2, 1]
    assert [chart.missing for chart in (clean, storage, time)] == [(), (), ("Other2021Standing",)]


def test_where_names_have_no_room_ranks_stand(row: Published) -> None:
    few = charts([row])
    assert [(point.name, chart.numbered) for chart in few for point in chart.points] == [("Sen2020EMPIR", False)] * 3
    crowd = [with_numbers(row, f"Crowd2020Number{i}_variant", f"7{i % 5}.00", f"{i % 3}.00") for i in range(15)]
    many = charts(crowd)
    assert all(chart.numbered for chart in many)
    assert [point.name for point in many[0].points] == [str(rank) for rank in range(1, 16)]
