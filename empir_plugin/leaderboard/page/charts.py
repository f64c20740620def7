"""Drawings of the page: scatter charts of the entries of a board, and the bars of one entry's attacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from empir_plugin.evaluation.corruptions import mean_accuracies
from empir_plugin.evaluation.record import AttackRecord
from empir_plugin.leaderboard.page.entries import STORAGE, TIME, PublishedEntry, number_at
from empir_plugin.leaderboard.page.table import verdict_of
from empir_plugin.leaderboard.page.text import TIMES, count_text, ratio_text, threat_text


@dataclass(frozen=True)
class Bar:
    """An accuracy as a bar.

    Args:
        name: Of the attack.
        percent: Accuracy under it, in percent of all images.
        kind: ``clean``, ``attack``, ``part`` (of a suite), ``excluded`` (from the worst case) or ``worst``.
        note: An explanation.
        flags: Warnings of AutoAttack.
    """

    name: str
    percent: float
    kind: str
    note: str = ""
    flags: tuple[str, ...] = ()


def bars(row: PublishedEntry) -> Iterator[Bar]:
    """The bars of an entry: clean accuracy, every attack of every record, and the worst case over all of them.

    An attack with the same result in several records is shown once, and so are the parts of a suite.
    """
    yield Bar("No corruption" if row.under_corruptions else "No attack", float(row.entry.clean_acc), "clean")
    if row.under_corruptions:
        means = mean_accuracies(row.findings.records[0]).items()
        yield from (Bar(name.replace("_", " "), mean, "attack") for name, mean in means)
        yield Bar(f"Mean over {count_text(row.measured.attacks, 'corruption')}", row.lowest, "worst")
        return
    shown: dict[str, AttackRecord] = {}
    for file in row.records:
        for index, attack in enumerate(file.record.attacks):
            earlier = shown.setdefault(attack.name, attack)
            if earlier is not attack and earlier.robust == attack.robust:
                continue  # Another record has the same result.
            cascaded = index > 0 and bool(file.record.run.get("cascade"))
            yield from _attack_bars(attack, cascaded=cascaded, with_parts=earlier is attack)
    yield Bar(f"Worst case over {count_text(row.measured.attacks, 'attack')}", row.lowest, "worst")


def _attack_bars(attack: AttackRecord, *, cascaded: bool, with_parts: bool) -> Iterator[Bar]:
    counts = attack.in_worst_case
    kind, note = ("attack", "") if counts else ("excluded", f"{threat_text(attack.threat)}; not counted")
    if cascaded:
        note = "; ".join(filter(None, (note, "accuracy after all attacks so far")))
    yield Bar(attack.name, attack.accuracy, kind, note, attack.flags)
    if with_parts:
        yield from (Bar(f"after {part.name}", part.accuracy, "part") for part in attack.parts if part.name != "clean")


_STEPS = 1, 2, 5, 10
_INTERVALS = 5


@dataclass(frozen=True)
class Axis:
    """One axis of a chart.

    Args:
        label: What it shows, with its unit.
        low: Its first value.
        high: Its last value.
        step: Between its tick marks.
    """

    label: str
    low: float
    high: float
    step: float

    @property
    def marks(self) -> tuple[tuple[float, str], ...]:
        """The values of its tick marks, with their text.

        Example:
            >>> Axis("clean, %", 70.0, 80.0, 5.0).marks
            ((70.0, '70'), (75.0, '75'), (80.0, '80'))
        """
        count = round((self.high - self.low) / self.step)
        numbers = [self.low + index * self.step for index in range(count + 1)]
        return tuple((number, f"{number:.{_decimals(self.step)}f}") for number in numbers)

    def share(self, value: float) -> float:
        """The position of a value along the axis: 0 at ``low``, 1 at ``high``."""
        return (value - self.low) / (self.high - self.low)


def around(label: str, values: Sequence[float]) -> Axis:
    """An axis around some percentages, at least ten points long and within 0 to 100.

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
        values: The values to show.
        least: The least end of the axis, so that small values look small.
        most: The greatest end of the axis.

    Example:
        >>> from_zero("worst case, %", [0.9, 1.4], least=10, most=100).high
        10.0
    """
    end = max([*(value * 1.05 for value in values), least])
    step = nice_step(end)
    return Axis(label, 0.0, min(most, math.ceil(end / step - 1e-9) * step), step)


def nice_step(span: float) -> float:
    """The smallest of 1, 2 or 5 times a power of ten that divides a span into at most five parts.

    Example:
        >>> nice_step(10), nice_step(2.2), nice_step(100)
        (2.0, 0.5, 20.0)
    """
    power = 10.0 ** math.floor(math.log10(span / _INTERVALS))
    return next(step * power for step in _STEPS if step * power >= span / _INTERVALS * (1 - 1e-9))


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9))


class PlotArea(NamedTuple):
    """The rectangle of a chart that holds the points, in pixels from the top left corner."""

    left: float
    top: float
    right: float
    bottom: float


WIDTH, HEIGHT = 340, 300
PLOT = PlotArea(44, 12, 328, 252)
"""The plot area of every chart; the space around it holds the axis labels."""

_INSET = 9.0
_LETTER, _LINE, _RADIUS = 7.1, 13.0, 6.5
"""Width of a wide letter, height of a line (at 11 px), and radius of a point, in pixels."""


@dataclass(frozen=True)
class Point:
    """One entry in a chart.

    Args:
        stem: Name of the entry.
        kind: Verdict of its audit, which decides the shape.
        x: In pixels.
        y: In pixels.
        text: Its numbers as a sentence, for a tooltip.
        label: Text beside the point: its stem, its rank if the stem has no room, or empty.
    """

    stem: str
    kind: str
    x: float
    y: float
    text: str
    label: str

    @property
    def anchor(self) -> str:
        """The end of the label at the point: ``start`` to its right, ``end`` to its left."""
        return "start" if _on_left(self.x) else "end"

    @property
    def label_x(self) -> float:
        """Where that end of the label is, in pixels."""
        return round(self.x + (_RADIUS + 3 if _on_left(self.x) else -_RADIUS - 3), 2)


def point_labels(points: Sequence[tuple[float, float]], texts: Sequence[Sequence[str]]) -> list[str]:
    """A label for each point: the first of its texts that covers no other point and no earlier label, or empty.

    A label is beside its point, on the side with more room.

    Args:
        points: ``(x, y)`` in pixels, the most important first.
        texts: For each point, its possible labels: its name, then its rank.

    Example:
        >>> point_labels([(100.0, 50.0), (130.0, 52.0), (300.0, 90.0)], [["a name", "1"], ["b", "2"], ["c", "3"]])
        ['1', 'b', 'c']
    """
    labels: list[str] = []
    spans: list[tuple[float, float, float]] = []  # left and right end, and middle height, of each label so far
    for index, (point, choices) in enumerate(zip(points, texts, strict=True)):
        others = [(x - _RADIUS, x + _RADIUS, y) for x, y in (*points[:index], *points[index + 1 :])]
        label = next((text for text in choices if _has_room(_label_span(point, text), (*others, *spans))), "")
        labels.append(label)
        if label:
            spans.append(_label_span(point, label))
    return labels


def _label_span(point: tuple[float, float], text: str) -> tuple[float, float, float]:
    x, y = point
    near, far = _RADIUS + 3, _RADIUS + 3 + _LETTER * len(text)
    return (x + near, x + far, y) if _on_left(x) else (x - far, x - near, y)


def _has_room(span: tuple[float, float, float], taken: Sequence[tuple[float, float, float]]) -> bool:
    left, right, y = span
    if left < PLOT.left or right > WIDTH:
        return False
    return not any(left < end and start < right and abs(y - height) < _LINE for start, end, height in taken)


def _on_left(x: float) -> bool:
    return x < (PLOT.left + PLOT.right) / 2


@dataclass(frozen=True)
class Chart:
    """A scatter plot.

    Args:
        key: Short name.
        title: What it shows.
        x: Horizontal axis.
        y: Vertical axis.
        points: One for each entry that has both numbers.
        reference: Position of the full-precision network on the horizontal axis, in pixels; None without one.
        missing: Names of the entries that lack a number.
    """

    key: str
    title: str
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    reference: float | None
    missing: tuple[str, ...]

    @property
    def ranked(self) -> bool:
        """Whether some point is labelled with its rank."""
        return any(point.label.isdigit() for point in self.points)

    @property
    def description(self) -> str:
        """The axes and every number in words, for screen readers."""
        horizontal = f"{self.x.label}, from {self.x.marks[0][1]} to {self.x.marks[-1][1]}"
        vertical = f"{self.y.label}, from 0 to {self.y.marks[-1][1]}"
        points = "; ".join(point.text for point in self.points)
        return f"Horizontal: {horizontal}. Vertical: {vertical}. {points}."

    @property
    def x_marks(self) -> tuple[tuple[float, str], ...]:
        """Positions in pixels and texts of the tick marks of the horizontal axis."""
        return tuple((_x(self.x, value), text) for value, text in self.x.marks)

    @property
    def y_marks(self) -> tuple[tuple[float, str], ...]:
        """Positions in pixels and texts of the tick marks of the vertical axis."""
        return tuple((_y(self.y, value), text) for value, text in self.y.marks)


@dataclass(frozen=True)
class _Horizontal:
    """What a chart shows on its horizontal axis: the number of an entry, its wording, and the axis for all numbers."""

    key: str
    title: str
    number: Callable[[PublishedEntry], float | None]
    wording: Callable[[float], str]
    axis: Callable[[Sequence[float]], Axis]
    relative: bool


def _ratio(key: str, title: str, label: str, path: tuple[str, ...]) -> _Horizontal:
    return _Horizontal(
        key,
        title,
        lambda row: number_at(row.entry.overhead, *path),
        lambda value: f"{ratio_text(value)} times the full-precision network",
        lambda values: from_zero(label, values, least=1.2),
        relative=True,
    )


_HORIZONTALS = (
    _Horizontal(
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


def charts(rows: Sequence[PublishedEntry]) -> tuple[Chart, ...]:
    """Worst case against clean accuracy, storage and time, with the same vertical axis.

    Args:
        rows: Entries of one board ordered by rank, at least one.
    """
    label = "Under corruptions, %" if rows[0].under_corruptions else "Worst case, %"
    y = from_zero(label, [row.lowest for row in rows], least=10.0, most=100.0)
    return tuple(_chart(horizontal, rows, y) for horizontal in _HORIZONTALS)


def _chart(horizontal: _Horizontal, rows: Sequence[PublishedEntry], y: Axis) -> Chart:
    numbers = [(rank, row, horizontal.number(row)) for rank, row in enumerate(rows, 1)]
    known = [(rank, row, number) for rank, row, number in numbers if number is not None]
    missing = tuple(row.place.stem for _, row, number in numbers if number is None)
    x = horizontal.axis([number for _, _, number in known] or [0.0])
    positions = [(_x(x, number), _y(y, row.lowest)) for _, row, number in known]
    labels = point_labels(positions, [(row.place.stem, str(rank)) for rank, row, _ in known])
    points = tuple(
        Point(row.place.stem, verdict_of(row).kind, *position, _sentence(horizontal, row, number), label)
        for (_, row, number), position, label in zip(known, positions, labels, strict=True)
    )
    reference = _x(x, 1.0) if horizontal.relative else None
    return Chart(horizontal.key, horizontal.title, x, y, points, reference, missing)


def _sentence(horizontal: _Horizontal, row: PublishedEntry, number: float) -> str:
    where = "under corruptions" if row.under_corruptions else "in the worst case"
    return f"{row.place.stem}: {horizontal.wording(number)}, {row.entry.lowest_acc} % {where}"


def _x(axis: Axis, value: float) -> float:
    left, right = PLOT.left + _INSET, PLOT.right - _INSET
    return round(left + axis.share(value) * (right - left), 2)


def _y(axis: Axis, value: float) -> float:
    return round(PLOT.bottom - _INSET - axis.share(value) * (PLOT.bottom - PLOT.top - _INSET), 2)
