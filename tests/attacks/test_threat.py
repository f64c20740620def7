"""Norms by hand and by property, and threats as text."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.threat import L2, Linf, Norm, Threat
from empir_plugin.errors import InputError

NORMS = [Linf(), L2()]
DELTAS = st.lists(st.floats(-3, 3, width=32), min_size=12, max_size=12).map(lambda v: torch.tensor(v).view(1, 3, 2, 2))
RADII = st.floats(1e-3, 1.0)


def test_sizes_by_hand() -> None:
    delta = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert Linf().size(delta).tolist() == [4.0, 0.0]
    assert L2().size(delta).tolist() == [5.0, 0.0]


def test_projections_by_hand() -> None:
    delta = torch.tensor([[[[3.0, -4.0]]], [[[0.3, 0.4]]]])
    assert Linf().project(delta, 1.0).tolist() == [[[[1.0, -1.0]]], [[[0.30000001192092896, 0.4000000059604645]]]]
    torch.testing.assert_close(L2().project(delta, 1.0), torch.tensor([[[[0.6, -0.8]]], [[[0.3, 0.4]]]]))


def test_ascent_steps_by_hand() -> None:
    grad = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert Linf().ascent(grad).tolist() == [[[[1.0, -1.0]]], [[[0.0, 0.0]]]]
    torch.testing.assert_close(L2().ascent(grad), torch.tensor([[[[0.6, -0.8]]], [[[0.0, 0.0]]]]))


def test_a_tiny_gradient_keeps_its_direction() -> None:
    grad = torch.tensor([[[[3e-30, -4e-30]]]])
    torch.testing.assert_close(L2().ascent(grad), torch.tensor([[[[0.6, -0.8]]]]))


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=50, deadline=None)
@given(delta=DELTAS, eps=RADII)
def test_projection_lands_in_the_ball_and_is_idempotent(norm: Norm, delta: torch.Tensor, eps: float) -> None:
    once = norm.project(delta, eps)
    assert float(norm.size(once)) <= eps * (1 + 1e-6)
    torch.testing.assert_close(norm.project(once, eps), once)


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=50, deadline=None)
@given(delta=DELTAS, other=DELTAS, eps=RADII)
def test_projection_is_the_nearest_point(norm: Norm, delta: torch.Tensor, other: torch.Tensor, eps: float) -> None:
    inside = norm.project(other, eps)
    nearest = norm.project(delta, eps)
    assert float((delta - nearest).norm()) <= float((delta - inside).norm()) + 1e-5


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=50, deadline=None)
@given(grad=DELTAS, other=DELTAS)
def test_ascent_is_the_steepest_unit_step(norm: Norm, grad: torch.Tensor, other: torch.Tensor) -> None:
    steepest, unit = norm.ascent(grad), norm.ascent(other)
    assert float(norm.size(steepest)) <= 1 + 1e-5
    assert float((grad * steepest).sum()) >= float((grad * unit).sum()) - 1e-4


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_ascent_is_a_new_tensor(norm: Norm) -> None:
    grad = torch.ones(1, 1, 1, 2)
    norm.ascent(grad).zero_()
    assert grad.sum() == 2


def test_random_is_uniform_in_the_ball() -> None:
    draw = Draw(0, torch.arange(4000))
    like = torch.empty(4000, 1, 1, 3)
    uniform = Linf().random(like, 0.5, draw)
    assert float(uniform.abs().max()) <= 0.5
    assert abs(float(uniform.mean())) < 0.01
    assert float(uniform.std()) == pytest.approx(0.5 / math.sqrt(3), rel=0.02)
    radius = L2().size(L2().random(like, 0.5, draw))
    assert float(radius.max()) <= 0.5 + 1e-6
    # In three dimensions 1/8 of the volume lies within half the radius.
    assert float((radius < 0.25).double().mean()) == pytest.approx(1 / 8, abs=0.02)


@pytest.mark.parametrize("text", ["Linf:8/255", "Linf:0.3", "Linf:0.031", "Linf:1", "L2:0.5", "L2:128/255", "L2:inf"])
def test_text_round_trip(text: str) -> None:
    assert str(Threat.parse(text)) == text
    assert Threat.parse(str(Threat.parse(text))) == Threat.parse(text)


@given(st.integers(1, 255))
def test_fractions_of_255_round_trip(level: int) -> None:
    threat = Threat(Linf(), level / 255)
    assert Threat.parse(str(threat)).eps == level / 255


@given(st.floats(min_value=1e-300, max_value=1, exclude_min=True))
def test_every_float_round_trips(eps: float) -> None:
    assert Threat.parse(str(Threat(Linf(), eps))).eps == eps


def test_short_texts() -> None:
    assert str(Threat(Linf(), 8 / 255)) == "Linf:8/255"
    assert str(Threat(Linf(), 0.2)) == "Linf:0.2"
    assert str(Threat(L2(), 1.0)) == "L2:1"
    assert str(Threat(L2(), math.inf)) == "L2:inf"


def test_equality_ignores_the_text() -> None:
    assert Threat.parse("Linf:51/255") == Threat.parse("Linf:0.2")
    assert hash(Threat.parse("Linf:51/255")) == hash(Threat.parse("Linf:0.2"))


def test_eps_in_the_wrong_unit() -> None:
    with pytest.raises(InputError, match=r"\(0, 1\], got 8: .*write 8/255"):
        Threat(Linf(), 8)


@pytest.mark.parametrize("text", ["Linf:0", "Linf:1.5", "Linf:inf", "Linf:-0.1", "Linf:8/0", "Linf:x", "Linf:", "L2:0"])
def test_eps_out_of_range(text: str) -> None:
    with pytest.raises(InputError, match="eps"):
        Threat.parse(text)


def test_eps_cannot_be_nan() -> None:
    with pytest.raises(InputError, match=r"eps .*got nan"):
        Threat(L2(), math.nan)


def test_a_norm_in_any_case_is_written_in_one() -> None:
    texts = "LINF:8/255", "linf:8/255", "l2:0.5"
    assert [str(Threat.parse(text)) for text in texts] == ["Linf:8/255", "Linf:8/255", "L2:0.5"]


@pytest.mark.parametrize(
    "eps", ["1e999", "7" * 5000, "1/" + "7" * 5000, "1e-99999999", "\u0663", "8/255\n"], ids=lambda eps: eps[:12]
)
def test_numbers_that_no_float_holds_are_refused_at_once(eps: str) -> None:
    with pytest.raises(InputError, match="eps") as caught:
        Threat.parse(f"Linf:{eps}")
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("text", ["L1:0.5", "l-inf:8/255"])
def test_unknown_norm(text: str) -> None:
    with pytest.raises(InputError, match=r"Linf, L2, got '(L1|l-inf)'"):
        Threat.parse(text)


def test_a_threat_needs_a_norm() -> None:
    with pytest.raises(InputError, match=r"'Linf:8/255'.*got '8/255'"):
        Threat.parse("8/255")


def test_eps_text_must_agree_with_eps() -> None:
    with pytest.raises(InputError, match=r"eps_text .*got '4/255'"):
        Threat(Linf(), 8 / 255, "4/255")
