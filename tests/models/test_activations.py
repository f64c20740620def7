"""Signed and learned ranges of activations: their levels and their gradients."""

from __future__ import annotations

import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from empir_plugin.errors import InputError
from empir_plugin.models.activations import (
    Activations,
    InputQuantizer,
    SignActivationQuantizer,
    SignedActivationQuantizer,
    is_signed,
    quantize_in_learned_range,
)
from empir_plugin.models.backward import identity
from empir_plugin.models.quantize import ActivationQuantizer

X = torch.tensor([-2.0, -1.0, -0.3, 0.0, 0.3, 1.0, 2.0])
INSIDE = [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0]


def slope(quantizer: InputQuantizer, x: Tensor) -> list[float]:
    x = x.clone().requires_grad_(True)
    return torch.autograd.grad(quantizer(x).sum(), x)[0].tolist()


# -- Signed


def test_signed_levels_by_hand() -> None:
    third = 1 / 3
    found = SignedActivationQuantizer(2)(X)
    torch.testing.assert_close(found, torch.tensor([-1, -1, -third, third, third, 1, 1]))  # the tie at 0 goes to even


@pytest.mark.parametrize("bits", range(1, 9))
def test_there_are_as_many_signed_levels_as_codes_and_no_zero(bits: int) -> None:
    levels = SignedActivationQuantizer(bits)(torch.linspace(-1.5, 1.5, 5001)).unique()
    assert len(levels) == 2**bits
    assert (float(levels.min()), float(levels.max())) == (-1, 1)
    assert 0 not in levels


def test_signed_gradient_is_one_inside_and_zero_outside() -> None:
    assert slope(SignedActivationQuantizer(3), X) == INSIDE
    assert slope(SignedActivationQuantizer(3, clip=identity), X) == [1.0] * 7


def test_32_bits_do_not_change_activations() -> None:
    assert SignedActivationQuantizer(32)(X) is X


@settings(deadline=None)
@given(st.integers(1, 8), st.integers(0, 2**32))
def test_signed_quantization_is_idempotent_and_close(bits: int, seed: int) -> None:
    x = 2 * torch.rand(64, generator=torch.Generator().manual_seed(seed)) - 1
    once = SignedActivationQuantizer(bits)(x)
    torch.testing.assert_close(SignedActivationQuantizer(bits)(once), once)
    assert float((once - x).abs().max()) <= 1 / (2**bits - 1) + 1e-6


def test_half_precision_is_quantized_in_float32() -> None:
    x = torch.rand(4096, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(SignedActivationQuantizer(8)(x), SignedActivationQuantizer(8)(x.float()))


# -- Signs


def test_signs_and_their_gradient() -> None:
    assert SignActivationQuantizer()(X).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert SignActivationQuantizer()(torch.tensor([-1e-9, 1e-9])).tolist() == [-1, 1]
    assert slope(SignActivationQuantizer(), X) == INSIDE


# -- A learned range


@pytest.mark.parametrize(
    "quantizer", [ActivationQuantizer(2), SignedActivationQuantizer(3)], ids=["unsigned", "signed"]
)
def test_a_learned_range_of_one_is_the_range_it_widens(quantizer: InputQuantizer) -> None:
    assert torch.equal(quantize_in_learned_range(quantizer, X, torch.tensor(1.0)), quantizer(X))
    assert not torch.equal(quantize_in_learned_range(quantizer, X, torch.tensor(2.0)), quantizer(X))


@pytest.mark.parametrize(
    ("quantizer", "x", "expected", "bound_slope"),
    [
        # 2 clip(x / 2, 0, 1), rounded to 0, 2/3, 4/3, 2.
        (ActivationQuantizer(2), [-3.0, 0.5, 1.0, 3.0, 4.0], [0, 2 / 3, 4 / 3, 2, 2], 2.0),
        # 2 clip(x / 2, -1, 1), rounded to -2, -2/3, 2/3, 2: one below the range, two above.
        (SignedActivationQuantizer(2), [-3.0, 0.5, 1.0, 3.0, 4.0], [-2, 2 / 3, 2 / 3, 2, 2], 1.0),
    ],
    ids=["unsigned", "signed"],
)
def test_pact_by_hand(quantizer: InputQuantizer, x: list[float], expected: list[float], bound_slope: float) -> None:
    bound = torch.tensor(2.0, requires_grad=True)
    inputs = torch.tensor(x, requires_grad=True)
    y = quantize_in_learned_range(quantizer, inputs, bound)
    torch.testing.assert_close(y, torch.tensor(expected))
    to_inputs, to_bound = torch.autograd.grad(y.sum(), (inputs, bound))
    assert to_bound.item() == bound_slope
    assert to_inputs.tolist() == [0, 1, 1, 0, 0]


def test_a_range_that_collapsed_gives_finite_numbers_and_can_grow_again() -> None:
    bound = torch.tensor(-1.0, requires_grad=True)
    y = quantize_in_learned_range(ActivationQuantizer(2), X, bound)
    assert bool(y.isfinite().all())
    assert torch.autograd.grad(y.sum(), bound)[0].item() > 0


# -- Texts


@pytest.mark.parametrize(
    "quantizer", [ActivationQuantizer(2), SignedActivationQuantizer(2), SignActivationQuantizer()], ids=str
)
@pytest.mark.parametrize("learned", [False, True])
def test_forward_mode_differentiates_as_reverse_mode(quantizer: InputQuantizer, learned: bool) -> None:
    def quantized(x: Tensor, bound: Tensor) -> Tensor:
        return quantize_in_learned_range(quantizer, x, bound) if learned else quantizer(x)

    x, bound = torch.tensor([-3.0, -1.0, -0.2, 0.0, 0.4, 1.0, 2.0]), torch.tensor(1.5)
    forward = torch.func.jacfwd(quantized, argnums=(0, 1))(x, bound)
    reverse = torch.func.jacrev(quantized, argnums=(0, 1))(x, bound)
    assert torch.equal(forward[0], reverse[0])
    assert torch.equal(forward[1], reverse[1])
    assert 0 < int(forward[0].count_nonzero()) < len(x), "flat outside the range only"
    assert bool(forward[1].any()) is learned


def test_modes_have_texts() -> None:
    assert [Activations.parse(text) for text in ("auto", "unsigned", "signed", "pact")] == list(Activations)
    assert Activations.parse(Activations.PACT) is Activations.PACT
    with pytest.raises(InputError, match=r"activations .*auto, unsigned, signed, pact.*'relu'"):
        Activations.parse("relu")


def test_quantizers_are_values() -> None:
    assert [is_signed(each) for each in (ActivationQuantizer(2), SignedActivationQuantizer(2))] == [False, True]
    assert pickle.loads(pickle.dumps(SignedActivationQuantizer(3))) == SignedActivationQuantizer(3)
    with pytest.raises(InputError, match=r"bits .*1 to 8, or 32"):
        SignedActivationQuantizer(9)
