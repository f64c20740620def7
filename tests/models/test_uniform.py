"""The uniform grid for weights: by hand, against torch's own fake quantization, and as codes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.errors import InputError
from empir_plugin.models.weight_quantizers import UniformWeightQuantizer

WEIGHTS = st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=30)


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


def test_the_gradient_is_the_identity() -> None:
    w = torch.tensor([-1.0, 0.2, 0.7], requires_grad=True)
    (gradient,) = torch.autograd.grad((UniformWeightQuantizer(3)(w) * torch.tensor([1.0, 2.0, 3.0])).sum(), w)
    assert gradient.tolist() == [1, 2, 3]


@pytest.mark.parametrize("bits", [1, 0, 9, 32, 3.0])
def test_bad_bits(bits: float) -> None:
    with pytest.raises(InputError, match="a uniform grid with zero in it has 2 to 8 bits, got"):
        UniformWeightQuantizer(bits)  # type: ignore[arg-type]
