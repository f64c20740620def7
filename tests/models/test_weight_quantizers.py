"""Weights of BNN and XNOR-Net, and uniform levels: values, codes and gradients by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.quantize import WeightQuantizer
from empir_plugin.models.weight_quantizers import (
    AnyWeightQuantizer,
    OneBit,
    SignWeightQuantizer,
    UniformWeightQuantizer,
    clip_latent_,
)

W = torch.tensor([[-2.0, 0.5, 0.0], [0.3, -0.3, 0.6]])
WEIGHTS = st.lists(
    st.just(0.0) | st.floats(2**-100, 4, width=32) | st.floats(-4, -(2**-100), width=32), min_size=1, max_size=30
)
"""No subnormal numbers, which have fewer digits."""


def test_bnn_is_the_sign_and_zero_is_positive() -> None:
    assert SignWeightQuantizer()(W).tolist() == [[-1, 1, 1], [1, -1, 1]]


def test_xnor_has_one_mean_for_each_filter_and_dorefa_one_for_all() -> None:
    first, second = 2.5 / 3, 0.4
    expected = torch.tensor([[-first, first, first], [second, -second, second]])
    torch.testing.assert_close(SignWeightQuantizer(per_filter=True)(W), expected)
    torch.testing.assert_close(WeightQuantizer(1)(W).abs().unique(), torch.tensor([3.7 / 6]))


def test_bnn_s_gradient_stops_where_the_latent_weight_exceeds_one() -> None:
    w = W.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((SignWeightQuantizer()(w) * torch.arange(6.0).view(2, 3)).sum(), w)
    assert gradient.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_xnor_s_gradient_is_that_of_its_paper() -> None:
    w, upstream = W.clone().requires_grad_(True), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((SignWeightQuantizer(per_filter=True)(w) * upstream).sum(), w)
    alpha, sign = W.abs().mean(1, keepdim=True), torch.where(W < 0, -1.0, 1.0)
    # d(alpha sign)/dw: alpha where |w| <= 1, and through the mean sign(w)/n times what every weight is worth.
    expected = upstream * alpha * (W.abs() <= 1) + W.sign() * (upstream * sign).mean(1, keepdim=True)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("per_filter", [False, True], ids=["bnn", "xnor"])
def test_binary_codes_give_the_same_weights_back_bit_for_bit(per_filter: bool) -> None:
    w, rule = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)), SignWeightQuantizer(per_filter)
    assert torch.equal(rule.decode(rule.codes(w), rule.factor(w)), rule(w))
    assert rule.codes(w).unique().tolist() == [0, 1]
    assert rule.factor(w).shape == ((5,) if per_filter else ())


def test_latent_weights_are_clipped_only_where_a_paper_clips_them() -> None:
    def clipped(one_bit: str) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        for parameter in model.parameters():
            nn.init.constant_(parameter, 3.0)
        quantize_(model, "w1", one_bit=one_bit)
        clip_latent_(model)
        return model

    assert [float(layer.weight.detach().max()) for layer in clipped("bnn").children()] == [3, 1, 3]
    assert [float(layer.weight.detach().max()) for layer in clipped("dorefa").children()] == [3, 3, 3]


def test_kinds_have_texts() -> None:
    assert [str(SignWeightQuantizer()), str(SignWeightQuantizer(True))] == ["bnn", "xnor"]
    with pytest.raises(InputError, match=r"one_bit .*dorefa, bnn, xnor.*'twn'"):
        OneBit.parse("twn")


def test_three_bits_are_seven_levels_with_zero_in_the_middle() -> None:
    w = torch.tensor([-0.9, -0.76, -0.74, -0.16, -0.14, 0.0, 0.14, 0.16, 0.44, 0.46, 0.9])
    expected = torch.tensor([-0.9, -0.9, -0.6, -0.3, 0, 0, 0, 0.3, 0.3, 0.6, 0.9])
    torch.testing.assert_close(UniformWeightQuantizer(3)(w), expected)
    assert len(UniformWeightQuantizer(3)(torch.linspace(-1, 1, 999)).unique()) == 7


def test_two_bits_are_three_levels() -> None:
    assert UniformWeightQuantizer(2)(torch.tensor([-2.0, -0.9, 0.9, 1.1])).tolist() == [-2, 0, 0, 2]


@pytest.mark.parametrize("bits", range(2, 9))
def test_torch_rounds_to_the_same_levels(bits: int) -> None:
    w = torch.randn(40, 25, generator=torch.Generator().manual_seed(bits))
    most = 2 ** (bits - 1) - 1
    peer = torch.fake_quantize_per_tensor_affine(w, float(w.abs().max()) / most, 0, -most, most)
    torch.testing.assert_close(UniformWeightQuantizer(bits)(w), peer)


@given(st.integers(2, 8), WEIGHTS)
def test_no_weight_moves_further_than_half_a_step(bits: int, weights: list[float]) -> None:
    w = torch.tensor(weights)
    half = w.abs().max() / (2**bits - 2)
    assert (UniformWeightQuantizer(bits)(w) - w).abs().max() <= half * 1.001 + 1e-30


@given(st.integers(2, 8), WEIGHTS)
def test_codes_give_the_same_weights_back_and_quantizing_twice_is_quantizing_once(
    bits: int, weights: list[float]
) -> None:
    w, rule = torch.tensor(weights), UniformWeightQuantizer(bits)
    once = rule(w)
    assert torch.equal(rule.decode(rule.codes(w), rule.factor(w)), once)
    assert int(rule.codes(w).max()) <= 2**bits - 2
    assert torch.equal(rule(once), once)


def test_zeros_stay_zeros_and_no_zero_is_negative() -> None:
    assert not UniformWeightQuantizer(3)(torch.zeros(4)).any()
    found = UniformWeightQuantizer(3)(torch.tensor([-0.01, 0.01, 1.0]))
    assert not found[:2].signbit().any()


def test_the_gradient_of_uniform_levels_is_the_identity() -> None:
    w = torch.tensor([-1.0, 0.2, 0.7], requires_grad=True)
    (gradient,) = torch.autograd.grad((UniformWeightQuantizer(3)(w) * torch.tensor([1.0, 2.0, 3.0])).sum(), w)
    assert gradient.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bits", [1, 0, 9, 32, 3.0])
def test_unsupported_bits_of_a_uniform_grid(bits: float) -> None:
    with pytest.raises(InputError, match=r"uniform grid .*2 to 8 bits"):
        UniformWeightQuantizer(bits)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "quantizer",
    [
        WeightQuantizer(1),
        WeightQuantizer(2),
        WeightQuantizer(4, "max"),
        WeightQuantizer(4, "mean", detach_max=True),
        SignWeightQuantizer(),
        SignWeightQuantizer(per_filter=True),
        UniformWeightQuantizer(3),
    ],
    ids=repr,
)
def test_forward_mode_differentiates_as_reverse_mode(quantizer: AnyWeightQuantizer) -> None:
    w = torch.tensor([[-1.5, 0.3, 0.2], [0.0, 1.0, -0.4]])
    forward, reverse = torch.func.jacfwd(quantizer)(w), torch.func.jacrev(quantizer)(w)
    torch.testing.assert_close(forward, reverse)
    assert forward.any()
    both = torch.vmap(quantizer)(torch.stack([w, -2 * w]))
    torch.testing.assert_close(both, torch.stack([quantizer(w), quantizer(-2 * w)]))
