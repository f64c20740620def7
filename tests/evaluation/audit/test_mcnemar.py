"""The exact McNemar test, against tables computed by hand and another formula."""

from __future__ import annotations

from math import comb

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from empir_plugin.evaluation.audit.mcnemar import McNemarTest, binomial_tail

N = 100


def first(count: int) -> Tensor:
    return torch.arange(N) < count


def only(*images: int) -> Tensor:
    return torch.isin(torch.arange(N), torch.tensor(images))


def test_seven_images_against_none() -> None:
    """All of seven fair coins show heads: 1/128."""
    test = McNemarTest.of("a", first(57), "b", first(50))
    assert (test.only_first, test.only_second, test.difference) == (7, 0, 0.07)
    assert test.p_value == pytest.approx(1 / 128)


def test_two_images_against_one() -> None:
    """Of the 8 outcomes of three coins, 4 have two heads or more. The image both break does not count."""
    test = McNemarTest.of("a", only(0, 2, 3), "b", only(0, 1))
    assert (test.broken_by_first, test.broken_by_second, test.only_first, test.only_second) == (3, 2, 2, 1)
    assert test.p_value == pytest.approx(0.5)


def test_several_comparisons_multiply_the_p_value() -> None:
    assert McNemarTest.of("a", first(57), "b", first(50), comparisons=3).p_value == pytest.approx(3 / 128)
    assert McNemarTest.of("a", first(51), "b", first(50), comparisons=3).p_value == 1


def test_the_weaker_attack_has_no_evidence_for_it() -> None:
    assert McNemarTest.of("a", first(50), "b", first(57)).p_value == 1
    assert McNemarTest.of("a", first(50), "b", first(50)).p_value == 1


def test_the_sentence_names_attacks_and_counts() -> None:
    sentence = McNemarTest.of("random noise", only(0, 2, 3), "PGD", only(0, 1)).describe()
    assert sentence.startswith("Random noise breaks 3 of 100 images, PGD 2;")
    assert "2 are broken by the first alone, 1 by the second alone." in sentence


def test_the_binomial_tail_by_hand() -> None:
    """Three throws of a coin: 1, 7, 4, 1 eighths. One image in 64 at 1 %: 1 - 0.99**64."""
    assert [binomial_tail(k, 3, 0.5) for k in range(4)] == pytest.approx([1, 7 / 8, 4 / 8, 1 / 8])
    assert binomial_tail(1, 64, 0.01) == pytest.approx(1 - 0.99**64)
    assert binomial_tail(4, 3, 0.5) == 0


@settings(deadline=None)
@given(st.integers(1, 60), st.data(), st.floats(0.01, 0.99))
def test_the_binomial_tail_is_a_sum_of_binomials(trials: int, data: st.DataObject, probability: float) -> None:
    count = data.draw(st.integers(0, trials))
    exact = sum(comb(trials, k) * probability**k * (1 - probability) ** (trials - k) for k in range(count, trials + 1))
    assert binomial_tail(count, trials, probability) == pytest.approx(exact, abs=1e-12)


@settings(deadline=None)
@given(st.integers(1, 500), st.data(), st.floats(0.01, 0.99))
def test_the_binomial_tail_falls_with_the_count(trials: int, data: st.DataObject, probability: float) -> None:
    count = data.draw(st.integers(0, trials))
    more, fewer = binomial_tail(count + 1, trials, probability), binomial_tail(count, trials, probability)
    assert 0 <= more <= fewer + 1e-9 <= 1 + 1e-9


def test_two_sided_the_p_value_is_that_of_both_tails() -> None:
    """Of seven coins, all heads or all tails: 2/128; two against one in either direction is always that uneven."""
    assert McNemarTest.of("a", first(57), "b", first(50)).two_sided_p_value == pytest.approx(2 / 128)
    assert McNemarTest.of("a", first(50), "b", first(57)).two_sided_p_value == pytest.approx(2 / 128)
    assert McNemarTest.of("a", only(0, 2, 3), "b", only(0, 1)).two_sided_p_value == 1
    assert McNemarTest.of("a", first(9), "b", first(9)).two_sided_p_value == 1


@settings(deadline=None)  # The first call imports scipy.
@given(st.integers(0, 30), st.integers(0, 30))
def test_two_sided_it_is_that_of_scipys_binomial_test(one: int, other: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(one, one + other).pvalue if one + other else 1.0
    assert McNemarTest("a", "b", one, other, one, other, 100).two_sided_p_value == pytest.approx(expected)
