"""Names beside the points of a chart, where they cover neither each other nor a point."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

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
