"""Wilson intervals, against published numbers and scipy."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from empir_plugin.evaluation.intervals import interval_text, wilson_interval


def test_none_and_all_of_ten() -> None:
    """z² / (n + z²) with z = 1.96: 3.8415 / 13.8415."""
    assert wilson_interval(0, 10) == (0.0, pytest.approx(0.27753, abs=1e-5))
    assert wilson_interval(10, 10) == (pytest.approx(1 - 0.27753, abs=1e-5), 1.0)


@settings(deadline=None)  # The first call imports scipy.
@given(st.integers(1, 10_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_it_is_scipys(counts: tuple[int, int], confidence: float) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(*counts).proportion_ci(confidence, method="wilson")
    assert wilson_interval(*counts, confidence) == pytest.approx((expected.low, expected.high), abs=1e-9)


@given(st.text("01", min_size=1, max_size=50))
def test_it_contains_the_share_and_stays_within_0_and_1(verdicts: str) -> None:
    low, high = wilson_interval(verdicts.count("1"), len(verdicts))
    assert 0 <= low <= verdicts.count("1") / len(verdicts) <= high <= 1
    assert low < high


def test_the_text_is_in_percent() -> None:
    assert interval_text("1" * 8 + "0" * 2) == "49.0-94.3"


@pytest.mark.parametrize("arguments", [(-1, 5), (6, 5), (0, 0), (1, 5, 0.0), (1, 5, 1.0)], ids=str)
def test_impossible_counts_are_refused(arguments: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"0 <= count <= n"):
        wilson_interval(*arguments)
