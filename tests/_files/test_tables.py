"""Tables become objects: known answers, one style of error, and round trips of random tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import Any, Literal, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin._files.tables import (
    build,
    build_kind,
    check_keys,
    check_not_negative,
    check_positive,
    choice,
    loads,
    read_with,
    table_of,
    tables_of,
)
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.quantize import Precision


class Color(Enum):
    RED = "red"
    BLUE = "blue"


@dataclass(frozen=True)
class Point:
    x: float
    y: float = 0.0

    def __post_init__(self) -> None:
        if self.x < 0:
            raise InputError(f"x must be 0 or more, got {self.x!r}")


@dataclass(frozen=True)
class Shape:
    name: str
    corners: tuple[Point, ...]
    color: Color = Color.RED
    center: Point | None = None
    kind: Literal["open", "closed"] = "open"
    filled: bool = False
    layers: int = 1
    tags: frozenset[str] = frozenset()
    threat: Threat | None = None
    precision: Precision = field(default_factory=Precision)
    parts: Collection[str] | int = 0
    note: Any = None
    area: float = field(default=0.0, metadata=read_with(lambda value, name: float(len(f"{name}: {value}"))))


class Sides(NamedTuple):
    width: float
    height: float = 1.0


SQUARE: dict[str, Any] = {"name": "square", "corners": [{"x": 0}, {"x": 1, "y": 2.5}]}


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("color", "'blue'", Color.BLUE),
        ("center", "{ x = 3, y = 4 }", Point(3, 4)),
        ("kind", "'closed'", "closed"),
        ("filled", "true", True),
        ("layers", "2", 2),
        ("tags", "['b', 'a', 'b']", frozenset({"a", "b"})),
        ("threat", "'Linf:8/255'", Threat.parse("Linf:8/255")),
        ("precision", "'w2a4'", Precision(2, 4)),
        ("parts", "['a', 'b']", ("a", "b")),
        ("parts", "7", 7),
        ("note", "{ any = ['thing'] }", {"any": ["thing"]}),
        ("area", "'ab'", float(len("area of a shape: ab"))),
    ],
)
def test_values_are_read_as_annotated(key: str, text: str, value: object) -> None:
    shape = build(Shape, {**SQUARE, **loads(f"{key} = {text}")}, "a shape")
    assert getattr(shape, key) == value
    assert type(getattr(shape, key)) is type(value)


def test_defaults_and_nested_tables() -> None:
    shape = build(Shape, SQUARE, "a shape")
    assert shape == Shape("square", (Point(0), Point(1, 2.5)))
    assert build(Shape, {**SQUARE, "center": None}, "a shape").center is None, "JSON has null"


def test_values_that_are_objects_already_are_taken_as_they_are() -> None:
    given_values = {"color": Color.BLUE, "center": Point(1), "precision": Precision(2, 2)}
    assert build(Shape, {**SQUARE, **given_values}, "a shape") == Shape(
        "square", (Point(0), Point(1, 2.5)), Color.BLUE, Point(1), precision=Precision(2, 2)
    )


def test_whole_numbers_stay_whole_where_any_number_will_do() -> None:
    assert type(build(Point, {"x": 3}, "a point").x) is int


def test_functions_and_named_tuples_are_called_too() -> None:
    assert build(Sides, {"width": 3}, "a field") == Sides(3, 1.0)
    assert build(lambda: "nothing to say", {}, "a phrase") == "nothing to say"


def test_given_arguments_are_no_keys_of_the_table() -> None:
    assert build(Point, {"y": 2}, "a point", x=1) == Point(1, 2)
    with pytest.raises(InputError, match=r"a point has unknown key\(s\) x; known are y$"):
        build(Point, {"x": 2}, "a point", x=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, r"^a shape has unknown key\(s\) colour; known are area, center, color, .*tags, threat$"),
        ({"name": 3}, "^name of a shape must be a text, got 3: put it in quotes$"),
        ({"layers": 2.0}, "^layers of a shape must be a whole number, got 2.0$"),
        ({"layers": True}, "^layers of a shape must be a whole number, got True$"),
        ({"layers": None}, "^layers of a shape must be a whole number, got None$"),
        ({"filled": 1}, "^filled of a shape must be true or false, got 1$"),
        ({"kind": "ajar"}, "^kind of a shape must be one of 'open', 'closed', got 'ajar'$"),
        ({"color": "green"}, "^color of a shape must be one of red, blue, got 'green'$"),
        ({"color": ["red"]}, r"^color of a shape must be one of red, blue, got \['red'\]$"),
        ({"center": 3}, "^center of a shape must be a table, got 3$"),
        ({"center": {"x": -1}}, "^center of a shape: x must be 0 or more, got -1$"),
        ({"center": {"x": "left"}}, "^x of center of a shape must be a number, got 'left'$"),
        ({"center": {}}, r"^center of a shape lacks the key\(s\) x; known are x, y$"),
        ({"corners": {"x": 1}}, "^corners of a shape must be a list, got {'x': 1}$"),
        ({"corners": [{"x": 1}, 2]}, "^item 2 of corners of a shape must be a table, got 2$"),
        ({"corners": [{"x": 1}, {"x": -1}]}, "^item 2 of corners of a shape: x must be 0 or more, got -1$"),
        ({"tags": ["a", 1]}, "^item 2 of tags of a shape must be a text, got 1"),
        ({"threat": "Linf:8"}, r"^threat of a shape: eps must lie in \(0, 1\], got 8"),
        ({"threat": 8}, "^threat of a shape must be a text, got 8: put it in quotes$"),
        ({"precision": {"weight_bits": 2}}, "^precision of a shape must be a text, got {'weight_bits': 2}"),
        ({"parts": 1.5}, "^parts of a shape must be a list or a whole number, got 1.5$"),
        ({"parts": [1]}, r"^parts of a shape must be a list or a whole number, got \[1\]$"),
    ],
)
def test_errors_name_table_key_expectation_and_value(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(Shape, {**SQUARE, **changes}, "a shape")


def test_missing_keys_are_named() -> None:
    with pytest.raises(InputError, match=r"^a shape lacks the key\(s\) corners, name; known are area, .*, name"):
        build(Shape, {}, "a shape")


def test_an_error_that_names_the_table_already_is_not_prefixed() -> None:
    def refuse(x: int) -> None:
        raise InputError(f"x of the box is {x}")

    with pytest.raises(InputError, match=r"^x of the box is 3$"):
        build(refuse, {"x": 3}, "the box")
    with pytest.raises(InputError, match=r"^the lid: x of the box is 3$"):
        build(refuse, {"x": 3}, "the lid")


def test_a_kind_selects_what_is_built() -> None:
    kinds: dict[str, Callable[..., object]] = {"point": Point, "sides": Sides}
    assert build_kind(kinds, {"kind": "point", "x": 1}, "[thing]") == Point(1)
    assert build_kind(kinds, {"kind": "sides", "width": 1}, "[thing]") == Sides(1)
    for kind in ("line", None, ["point"]):
        with pytest.raises(InputError, match=r"^kind of \[thing\] must be one of point, sides, got "):
            build_kind(kinds, {"kind": kind}, "[thing]")
    with pytest.raises(InputError, match=r"^kind of \[thing\] .* got None"):
        build_kind(kinds, {"x": 1}, "[thing]")
    with pytest.raises(InputError, match=r"^\[thing\] must be a table, got 'point'"):
        build_kind(kinds, "point", "[thing]")
    with pytest.raises(InputError, match=r"^\[thing\] has unknown key\(s\) x; known are height, width"):
        build_kind(kinds, {"kind": "sides", "width": 1, "x": 1}, "[thing]")


def test_tables_and_lists_of_tables_are_checked() -> None:
    assert table_of({"a": 1}, "[a]") == {"a": 1}
    assert tables_of([{"a": 1}, {}], "[[a]]") == [{"a": 1}, {}]
    for bad in (3, {"a": 1}, "a"):
        with pytest.raises(InputError, match=r"^\[\[a\]\] must be a list of tables, got "):
            tables_of(bad, "[[a]]")
    with pytest.raises(InputError, match=r"^\[\[a\]\] must be a table, got 3"):
        tables_of([{}, 3], "[[a]]")


def test_keys_may_be_required_or_known() -> None:
    check_keys({"a": 1, "b": 2}, required={"a"}, known={"b"}, where="it")
    check_keys({"a": 1}, required={"a"}, known=set(), where="it")
    with pytest.raises(InputError, match=r"it lacks the key\(s\) a; known are a, b"):
        check_keys({"b": 2}, required={"a"}, known={"b"}, where="it")
    with pytest.raises(InputError, match=r"it has unknown key\(s\) c; known are none"):
        check_keys({"c": 2}, required=set(), known=set(), where="it")


@given(
    st.lists(st.builds(Point, st.floats(0, 1e9), st.floats(allow_nan=False)), max_size=4),
    st.sampled_from(Color),
    st.frozensets(st.text(max_size=3), max_size=3),
    st.none() | st.builds(Point, st.integers(0, 9)),
)
def test_a_built_object_has_the_values_of_its_table(
    corners: list[Point], color: Color, tags: frozenset[str], center: Point | None
) -> None:
    table = {
        "name": "any",
        "corners": [asdict(corner) for corner in corners],
        "color": color.value,
        "tags": sorted(tags),
        "center": None if center is None else asdict(center),
    }
    assert build(Shape, table, "a shape") == Shape("any", tuple(corners), color, center, tags=tags)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=2), inner, max_size=2),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["name", "corners", "color", "center", "tags", "parts", "threat"]), JSON))
def test_a_table_is_read_or_refused_with_an_input_error(table: dict[str, Any]) -> None:
    with suppress(InputError):
        shape = build(Shape, {"name": "any", "corners": [], **table}, "a shape")
        assert isinstance(shape.corners, tuple)
        assert isinstance(shape.color, Color)
        assert shape.center is None or isinstance(shape.center, Point)


def test_enumerations_are_read_by_their_text() -> None:
    assert choice(Color, "color", "blue") is choice(Color, "color", Color.BLUE) is Color.BLUE
    with pytest.raises(InputError, match=r"^color must be one of red, blue, got 'BLUE'$"):
        choice(Color, "color", "BLUE")


@pytest.mark.parametrize("value", [5e-324, 1, 1e308])
def test_numbers_above_zero_pass(value: float) -> None:
    check_positive("lambda", value)
    check_not_negative("lambda", value)


def test_zero_is_not_negative() -> None:
    check_not_negative("lambda", 0.0)


@pytest.mark.parametrize("value", [0, -0.0, -1e-9, math.inf, -math.inf, math.nan])
def test_numbers_that_are_not_positive_are_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=rf"^lambda must be above 0 and finite, got {value!r}$"):
        check_positive("lambda", value)


@pytest.mark.parametrize("value", [-1e-9, math.inf, -math.inf, math.nan])
def test_negative_numbers_are_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=rf"^lambda must be 0 or more and finite, got {value!r}$"):
        check_not_negative("lambda", value)
