"""The charts of a board: what is left in the worst case, against what it costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from empir_plugin.leaderboard.page_axes import Axis, around, from_zero
from empir_plugin.leaderboard.page_labels import Box, Label, placed
from empir_plugin.leaderboard.page_published import Published
from empir_plugin.leaderboard.page_rows import STORAGE, TIME, verdict_of
from empir_plugin.leaderboard.page_text import TIMES, number_at, times

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
