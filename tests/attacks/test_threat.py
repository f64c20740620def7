import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.attacks.threat import L2, Linf, Threat
from empir_plugin.errors import InputError


@pytest.mark.parametrize("text", ["Linf:8/255", "Linf:0.3", "Linf:0.031", "Linf:1", "L2:0.5", "L2:128/255", "L2:inf"])
def test_text_round_trip(text: str) -> None:
    assert str(Threat.parse(text)) == text
    assert Threat.parse(str(Threat.parse(text))) == Threat.parse(text)


@given(st.integers(1, 255))
def test_levels_of_255_are_written_so_that_they_read_back(level: int) -> None:
    threat = Threat(Linf(), level / 255)
    assert Threat.parse(str(threat)).eps == level / 255


@given(st.floats(min_value=1e-300, max_value=1, exclude_min=True))
def test_any_float_reads_back(eps: float) -> None:
    assert Threat.parse(str(Threat(Linf(), eps))).eps == eps


def test_short_texts() -> None:
    assert str(Threat(Linf(), 8 / 255)) == "Linf:8/255"
    assert str(Threat(Linf(), 0.2)) == "Linf:0.2"
    assert str(Threat(L2(), 1.0)) == "L2:1"
    assert str(Threat(L2(), math.inf)) == "L2:inf"


def test_equal_whatever_the_text() -> None:
    assert Threat.parse("Linf:51/255") == Threat.parse("Linf:0.2")
    assert hash(Threat.parse("Linf:51/255")) == hash(Threat.parse("Linf:0.2"))


def test_eps_in_the_wrong_unit() -> None:
    with pytest.raises(InputError, match=r"eps must lie in \(0, 1\], got 8: images are in \[0, 1\], so write 8/255"):
        Threat(Linf(), 8)


@pytest.mark.parametrize("text", ["Linf:0", "Linf:1.5", "Linf:inf", "Linf:-0.1", "Linf:8/0", "Linf:x", "Linf:", "L2:0"])
def test_impossible_radius(text: str) -> None:
    with pytest.raises(InputError, match="eps"):
        Threat.parse(text)


def test_nan_is_refused() -> None:
    with pytest.raises(InputError, match="eps must lie"):
        Threat(L2(), math.nan)


@pytest.mark.parametrize("text", ["L1:0.5", "linf:8/255"])
def test_unknown_norm(text: str) -> None:
    with pytest.raises(InputError, match="a norm is one of Linf, L2"):
        Threat.parse(text)


def test_no_colon() -> None:
    with pytest.raises(InputError, match="a threat is written"):
        Threat.parse("8/255")


def test_text_must_agree_with_number() -> None:
    with pytest.raises(InputError, match="same number"):
        Threat(Linf(), 8 / 255, "4/255")
