"""What the tests of faults share: how they count their cases, for ``benchmarks/faults.py``."""

from __future__ import annotations

from collections.abc import Callable

import pytest

Tally = Callable[[str, int, int], None]


@pytest.fixture
def tally(record_property: Callable[[str, object], None]) -> Tally:
    """Counts cases: what was tried, how many of it, and how many survived. All of them must."""

    def count(kind: str, tried: int, survived: int) -> None:
        record_property("faults", [kind, tried, survived])
        assert tried > 0, f"{kind}: nothing was tried"
        assert survived == tried, f"{kind}: {tried - survived} of {tried} did not survive"

    return count
