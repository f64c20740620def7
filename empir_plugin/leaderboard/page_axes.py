"""Axes with round numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
