"""The charts of a board: what is left in the worst case, against what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from empir_plugin.leaderboard.page.published import Published
from empir_plugin.leaderboard.page.rows import STORAGE, TIME, TIMES, number_at, times, verdict_of

_STEPS = 1, 2, 5, 10
_INTERVALS = 5


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Args:
        label: What it shows, with its unit.
        low: Where it begins.
        high: Where it ends.
        step: Between its marks.
    """

    label: str
    low: float
    high: float
    step: float

    @property
    def marks(self) -> tuple[tuple[float, str], ...]:
        """Where a number stands, and the number as text.

        Example:
            >>> Axis("clean, %", 70.0, 80.0, 5.0).marks
            ((70.0, '70'), (75.0, '75'), (80.0, '80'))
        """
        count = round((self.high - self.low) / self.step)
        numbers = [self.low + index * self.step for index in range(count + 1)]
        return tuple((number, f"{number:.{_decimals(self.step)}f}") for number in numbers)

    def share(self, value: float) -> float:
        """How far along the axis a value is: 0 where it begins, 1 where it ends."""
        return (value - self.low) / (self.high - self.low)


def around(label: str, values: Sequence[float]) -> Axis:
    """An axis of percentages around some: ten points long at least, and nowhere outside 0 to 100.

    Example:
        >>> axis = around("clean, %", [75.23, 77.0])
        >>> axis.low, axis.high, axis.step
        (70.0, 82.0, 2.0)
    """
    middle, half = (min(values) + max(values)) / 2, max((max(values) - min(values)) * 0.6, 5.0)
    step = nice_step(2 * half)
    low = max(0.0, math.floor((middle - half) / step) * step)
    high = min(100.0, math.ceil((middle + half) / step) * step)
    return Axis(label, low, high, step)


def from_zero(label: str, values: Sequence[float], *, least: float, most: float = math.inf) -> Axis:
    """An axis from 0 to a little beyond the largest value.

    Args:
        label: What it shows.
        values: To be on it.
        least: It reaches this far at least, so that what is nearly nothing looks like it.
        most: It ends here at the latest.

    Example:
        >>> from_zero("worst case, %", [0.9, 1.4], least=10, most=100).high
        10.0
    """
    end = max([*(value * 1.05 for value in values), least])
    step = nice_step(end)
    return Axis(label, 0.0, min(most, math.ceil(end / step - 1e-9) * step), step)


def nice_step(span: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that divides a span into five parts or fewer.

    Example:
        >>> nice_step(10), nice_step(2.2), nice_step(100)
        (2.0, 0.5, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(span / _INTERVALS))
    return next(step * power for step in _STEPS if step * power >= span / _INTERVALS * (1 - 1e-9))


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


_LETTER, _LINE = 7.1, 13.0
"""Largest usual width of a letter, and height of a line, at the size of the labels (11 px)."""

_POINT = 6.5
_NEAR = 10.0
_DISTANCES = (_NEAR, 18.0, 28.0, 40.0, 54.0)
_DIRECTIONS = (0, 180, 45, 135, 90, 20, 160, 70, 110, 315, 225, 270)
"""In degrees, counterclockwise from the right."""


@dataclass(frozen=True)
class Box:
    """A rectangle; ``top`` is above, so the smaller number."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: Box) -> bool:
        """Whether they overlap."""
        apart = self.right <= other.left or other.right <= self.left
        return not (apart or self.bottom <= other.top or other.bottom <= self.top)

    def within(self, other: Box) -> bool:
        """Whether it lies inside the other."""
        sides = self.left >= other.left, self.right <= other.right, self.top >= other.top, self.bottom <= other.bottom
        return all(sides)


@dataclass(frozen=True)
class Label:
    """Where the name of a point stands.

    Args:
        box: Around the text.
        anchor: Which side of the text stays if letters have other widths: ``start``, ``middle`` or ``end``.
        leader: From the point to the text, ``(x1, y1, x2, y2)``, where it stands apart; None beside the point.
    """

    box: Box
    anchor: str
    leader: tuple[float, float, float, float] | None

    @property
    def x(self) -> float:
        """Of that side, in pixels."""
        middle = round((self.box.left + self.box.right) / 2, 2)
        return {"start": self.box.left, "middle": middle, "end": self.box.right}[self.anchor]

    @property
    def y(self) -> float:
        """Of the line the letters stand on, in pixels."""
        return round(self.box.bottom - 3.0, 2)


def placed(points: Sequence[tuple[float, float]], names: Sequence[str], bounds: Box) -> list[Label | None]:
    """A place for each name, the nearest that is free; None where there is none.

    Args:
        points: ``(x, y)`` in pixels.
        names: Of the points.
        bounds: Labels stay inside.

    Example:
        >>> (label,) = placed([(50.0, 50.0)], ["a name"], Box(0, 0, 200, 100))
        >>> label.box.left, label.leader
        (60.0, None)
    """
    taken = [Box(x - _POINT, y - _POINT, x + _POINT, y + _POINT) for x, y in points]
    found: list[Label | None] = []
    for index, (point, name) in enumerate(zip(points, names, strict=True)):
        others = [box for place, box in enumerate(taken) if place != index]
        label = next((label for label in _candidates(point, name) if _free(label, others, bounds)), None)
        found.append(label)
        if label is not None:
            taken.extend([label.box, *_along(label)])
    return found


def _candidates(point: tuple[float, float], name: str) -> Iterator[Label]:
    for distance in _DISTANCES:
        for degrees in _DIRECTIONS:
            yield _label(point, len(name) * _LETTER, distance, math.radians(degrees))


def _label(point: tuple[float, float], width: float, distance: float, angle: float) -> Label:
    """The text begins where the leader ends: its nearest side, or its middle above and below the point."""
    x, y = point[0] + distance * math.cos(angle), point[1] - distance * math.sin(angle)
    left = x - width * (1 - math.cos(angle)) / 2
    top = y - _LINE * (1 + math.sin(angle)) / 2
    box = Box(round(left, 2), round(top, 2), round(left + width, 2), round(top + _LINE, 2))
    anchor = "start" if math.cos(angle) > 0.5 else "end" if math.cos(angle) < -0.5 else "middle"
    leader = (round(point[0], 2), round(point[1], 2), round(x, 2), round(y, 2))
    return Label(box, anchor, None if distance <= _NEAR else leader)


def _free(label: Label, taken: Sequence[Box], bounds: Box) -> bool:
    return label.box.within(bounds) and not any(
        box.meets(other) for box in (label.box, *_along(label)) for other in taken
    )


def _along(label: Label) -> Iterator[Box]:
    """Small boxes along a leader, from where it has left its point."""
    if label.leader is None:
        return
    x1, y1, x2, y2 = label.leader
    length = math.dist((x1, y1), (x2, y2))
    steps = int(length // 4)
    for step in range(2, steps + 1):
        x, y = x1 + (x2 - x1) * step / steps, y1 + (y2 - y1) * step / steps
        yield Box(x - 1, y - 1, x + 1, y + 1)


WIDTH, HEIGHT = 340, 300
PLOT = Box(44, 12, 328, 252)
"""Where points are, in pixels; the rest is for the numbers of the axes."""

_INSET = 9.0


@dataclass(frozen=True)
class Point:
    """One entry in a chart.

    Args:
        stem: Its name.
        kind: Of its audit's verdict: decides the shape.
        x: In pixels.
        y: In pixels.
        text: Its numbers, in words.
        name: Written beside it: its stem, or its rank where stems have no room.
        label: Where that stands; None if there is no room for it.
    """

    stem: str
    kind: str
    x: float
    y: float
    text: str
    name: str
    label: Label | None


@dataclass(frozen=True)
class Chart:
    """A scatter plot.

    Args:
        key: Short name.
        title: What it shows.
        x: Axis to the right.
        y: Axis upwards.
        points: One for each entry that has both numbers.
        reference: Where the full-precision network is on the axis to the right, in pixels; None where it has no place.
        missing: Names of the entries that lack a number.
        numbered: Whether ranks stand beside the points in place of names.
    """

    key: str
    title: str
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    reference: float | None
    missing: tuple[str, ...]
    numbered: bool

    @property
    def description(self) -> str:
        """Every number in words, for those who do not see it."""
        told = "; ".join(point.text for point in self.points)
        return f"{self.x.label}, {self.x.marks[0][1]} to {self.x.marks[-1][1]}, to the right; {self.y.label}, 0 to " + (
            f"{self.y.marks[-1][1]}, upwards. {told}."
        )

    @property
    def x_marks(self) -> tuple[tuple[float, str], ...]:
        """Pixels and numbers along the axis to the right."""
        return tuple((_x(self.x, value), text) for value, text in self.x.marks)

    @property
    def y_marks(self) -> tuple[tuple[float, str], ...]:
        """Pixels and numbers along the axis upwards."""
        return tuple((_y(self.y, value), text) for value, text in self.y.marks)


@dataclass(frozen=True)
class _Kind:
    """What a chart shows to the right: ``told`` puts a number in words, ``axis`` is made from all numbers."""

    key: str
    title: str
    number: Callable[[Published], float | None]
    told: Callable[[float], str]
    axis: Callable[[Sequence[float]], Axis]
    relative: bool


def _ratio(key: str, title: str, label: str, path: tuple[str, ...]) -> _Kind:
    return _Kind(
        key,
        title,
        lambda row: number_at(row.entry.overhead, *path),
        lambda value: f"{times(value)} times the full-precision network",
        lambda values: from_zero(label, values, least=1.2),
        relative=True,
    )


_KINDS = (
    _Kind(
        "clean",
        "Clean against robust accuracy",
        lambda row: float(row.entry.clean_acc),
        lambda value: f"{value:.2f} % clean",
        lambda values: around("Clean accuracy, %", values),
        relative=False,
    ),
    _ratio("storage", "Robust accuracy against storage", f"Weight file, {TIMES} full precision", STORAGE),
    _ratio("time", "Robust accuracy against time", f"Time by Equation 6, {TIMES} full precision", TIME),
)


def charts(rows: Sequence[Published]) -> tuple[Chart, ...]:
    """Worst case against clean accuracy, against storage and against time; all with the same axis upwards."""
    y = from_zero("Worst case, %", [row.lowest for row in rows], least=10.0, most=100.0)
    named = tuple(_chart(kind, rows, y, numbered=False) for kind in _KINDS)
    if all(point.label for chart in named for point in chart.points):
        return named
    return tuple(_chart(kind, rows, y, numbered=True) for kind in _KINDS)


def _chart(kind: _Kind, rows: Sequence[Published], y: Axis, *, numbered: bool) -> Chart:
    names = {row.place.stem: str(rank) if numbered else row.place.stem for rank, row in enumerate(rows, 1)}
    numbers = [(row, kind.number(row)) for row in rows]
    known = [(row, number) for row, number in numbers if number is not None]
    missing = tuple(row.place.stem for row, number in numbers if number is None)
    x = kind.axis([number for _, number in known] or [0.0])
    spots = [(_x(x, number), _y(y, row.lowest)) for row, number in known]
    inside = Box(PLOT.left + 3, 0, WIDTH, PLOT.bottom - 1)
    labels = placed(spots, [names[row.place.stem] for row, _ in known], inside)
    points = tuple(
        Point(row.place.stem, verdict_of(row).kind, *spot, _told(kind, row, number), names[row.place.stem], label)
        for (row, number), spot, label in zip(known, spots, labels, strict=True)
    )
    return Chart(kind.key, kind.title, x, y, points, _x(x, 1.0) if kind.relative else None, missing, numbered)


def _told(kind: _Kind, row: Published, number: float) -> str:
    return f"{row.place.stem}: {kind.told(number)}, {row.entry.lowest_acc} % in the worst case"


def _x(axis: Axis, value: float) -> float:
    left, right = PLOT.left + _INSET, PLOT.right - _INSET
    return round(left + axis.share(value) * (right - left), 2)


def _y(axis: Axis, value: float) -> float:
    return round(PLOT.bottom - _INSET - axis.share(value) * (PLOT.bottom - PLOT.top - _INSET), 2)
