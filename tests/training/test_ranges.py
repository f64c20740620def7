"""Numbers that must be above 0, or not below it."""

from __future__ import annotations

import math

import pytest

from empir_plugin._files.tables import check_not_negative, check_positive
from empir_plugin.errors import InputError


@pytest.mark.parametrize("value", [5e-324, 1, 1e308])
def test_numbers_above_zero_pass(value: float) -> None:
    check_positive("lambda", value)
    check_not_negative("lambda", value)


def test_zero_is_not_negative() -> None:
    check_not_negative("lambda", 0.0)


@pytest.mark.parametrize("value", [0, -0.0, -1e-9, math.inf, -math.inf, math.nan])
def test_what_is_not_positive_is_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=rf"^lambda must be above 0 and finite, got {value!r}$"):
        check_positive("lambda", value)


@pytest.mark.parametrize("value", [-1e-9, math.inf, -math.inf, math.nan])
def test_what_is_negative_is_refused_by_name(value: float) -> None:
    with pytest.raises(InputError, match=rf"^lambda must be 0 or more and finite, got {value!r}$"):
        check_not_negative("lambda", value)
