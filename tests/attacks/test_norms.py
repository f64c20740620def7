import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.threat import L2, Linf, Norm

NORMS = [Linf(), L2()]
deltas = st.lists(st.floats(-3, 3, width=32), min_size=12, max_size=12).map(lambda v: torch.tensor(v).view(1, 3, 2, 2))
radii = st.floats(1e-3, 1.0)


def test_sizes_by_hand() -> None:
    delta = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert Linf().size(delta).tolist() == [4.0, 0.0]
    assert L2().size(delta).tolist() == [5.0, 0.0]


def test_projections_by_hand() -> None:
    delta = torch.tensor([[[[3.0, -4.0]]], [[[0.3, 0.4]]]])
    assert Linf().project(delta, 1.0).tolist() == [[[[1.0, -1.0]]], [[[0.30000001192092896, 0.4000000059604645]]]]
    torch.testing.assert_close(L2().project(delta, 1.0), torch.tensor([[[[0.6, -0.8]]], [[[0.3, 0.4]]]]))


def test_ascents_by_hand() -> None:
    grad = torch.tensor([[[[3.0, -4.0]]], [[[0.0, 0.0]]]])
    assert Linf().ascent(grad).tolist() == [[[[1.0, -1.0]]], [[[0.0, 0.0]]]]
    torch.testing.assert_close(L2().ascent(grad), torch.tensor([[[[0.6, -0.8]]], [[[0.0, 0.0]]]]))


def test_a_vanishing_gradient_keeps_its_direction() -> None:
    grad = torch.tensor([[[[3e-30, -4e-30]]]])
    torch.testing.assert_close(L2().ascent(grad), torch.tensor([[[[0.6, -0.8]]]]))


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=50, deadline=None)
@given(delta=deltas, eps=radii)
def test_projection_lands_in_the_ball_and_is_idempotent(norm: Norm, delta: torch.Tensor, eps: float) -> None:
    once = norm.project(delta, eps)
    assert float(norm.size(once)) <= eps * (1 + 1e-6)
    torch.testing.assert_close(norm.project(once, eps), once)


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=50, deadline=None)
@given(delta=deltas, other=deltas, eps=radii)
def test_projection_is_the_nearest_point(norm: Norm, delta: torch.Tensor, other: torch.Tensor, eps: float) -> None:
    inside = norm.project(other, eps)
    nearest = norm.project(delta, eps)
    assert float((delta - nearest).norm()) <= float((delta - inside).norm()) + 1e-5


@pytest.mark.parametrize("norm", NORMS, ids=str)
@settings(max_examples=50, deadline=None)
@given(grad=deltas, other=deltas)
def test_ascent_climbs_most(norm: Norm, grad: torch.Tensor, other: torch.Tensor) -> None:
    best, unit = norm.ascent(grad), norm.ascent(other)
    assert float(norm.size(best)) <= 1 + 1e-5
    assert float((grad * best).sum()) >= float((grad * unit).sum()) - 1e-4


@pytest.mark.parametrize("norm", NORMS, ids=str)
def test_ascent_is_a_new_tensor(norm: Norm) -> None:
    grad = torch.ones(1, 1, 1, 2)
    norm.ascent(grad).zero_()
    assert grad.sum() == 2


def test_random_fills_the_ball_evenly() -> None:
    draw = Draw(0, torch.arange(4000))
    like = torch.empty(4000, 1, 1, 3)
    uniform = Linf().random(like, 0.5, draw)
    assert float(uniform.abs().max()) <= 0.5
    assert abs(float(uniform.mean())) < 0.01
    assert float(uniform.std()) == pytest.approx(0.5 / math.sqrt(3), rel=0.02)
    radius = L2().size(L2().random(like, 0.5, draw))
    assert float(radius.max()) <= 0.5 + 1e-6
    # In three dimensions the share within half the radius is 1/8.
    assert float((radius < 0.25).double().mean()) == pytest.approx(1 / 8, abs=0.02)
