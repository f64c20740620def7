"""DoReFa's quantizers: tables by hand, an oracle in NumPy, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from empir_plugin.errors import InputError
from empir_plugin.models.quantize import ActivationQuantizer, Scale, WeightQuantizer, quantize_unit

Floats = NDArray[np.float32]
BITS = range(1, 9)
SEVERAL_BITS = range(2, 9)
SCALES: tuple[Scale, ...] = ("none", "max", "mean")
F = np.float32


def floats(low: float, high: float) -> st.SearchStrategy[Tensor]:
    """Tensors of 1 to 12 float32 values, with the numbers where rounding and clipping change more often than chance."""
    special = st.sampled_from([0.0, -0.0, 0.5, 1.0, -1.0, 1 / 3, 1 / 6, 1e-8, 1e-30, 1e-44]).filter(
        lambda value: low <= value <= high
    )
    value = st.floats(low, high, width=32) | special
    return st.lists(value, min_size=1, max_size=12).map(torch.tensor)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def dyadic(*shape: int, seed: int = 0) -> Tensor:
    """Multiples of 1/64 in [-4, 4): as many as a power of two, their mean is the same number in any order of adding."""
    return torch.randint(-256, 256, shape, generator=torch.Generator().manual_seed(seed)) / 64


# -- The oracle: NumPy in float32, written from the paper's equations. Only tanh is PyTorch's, since its last bit is the
# -- library's own; `test_codes_are_those_of_exact_arithmetic` goes without it.


def oracle_round(x: Floats, bits: int) -> Floats:
    n = F(2**bits - 1)
    return np.round(x * n) / n


def oracle_weights(w: Floats, bits: int, scale: Scale) -> Floats:
    if bits == 1:
        return np.abs(w).mean(dtype=F) * np.where(np.signbit(w) & (w != 0), F(-1), F(1))
    t = torch.from_numpy(w).tanh().numpy()
    unit = t / np.abs(t).max() * F(0.5) + F(0.5)
    levels = F(2) * oracle_round(unit, bits) - F(1)
    factor = {"none": F(1), "max": np.abs(t).max(), "mean": np.abs(w).mean(dtype=F)}[scale]
    return levels * factor


def oracle_activations(x: Floats, bits: int) -> Floats:
    return oracle_round(np.minimum(np.maximum(x, F(0)), F(1)), bits)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", SCALES)
def test_weights_equal_the_oracle_bit_for_bit(bits: int, scale: Scale) -> None:
    w = dyadic(8, 4, 4, 4)
    quantized = WeightQuantizer(bits, scale)(w)
    assert quantized.dtype == torch.float32
    np.testing.assert_array_equal(quantized.numpy(), oracle_weights(w.numpy(), bits, scale))


@pytest.mark.parametrize("bits", SEVERAL_BITS)
def test_normal_weights_equal_the_oracle_bit_for_bit(bits: int) -> None:
    w = 0.1 * normal(32, 3, 5, 5)
    np.testing.assert_array_equal(WeightQuantizer(bits)(w).numpy(), oracle_weights(w.numpy(), bits, "none"))


@pytest.mark.parametrize("bits", BITS)
def test_activations_equal_the_oracle_bit_for_bit(bits: int) -> None:
    x = normal(4096) + 0.5
    np.testing.assert_array_equal(ActivationQuantizer(bits)(x).numpy(), oracle_activations(x.numpy(), bits))


@pytest.mark.parametrize("bits", SEVERAL_BITS)
def test_codes_are_those_of_exact_arithmetic(bits: int) -> None:
    w = normal(4096, seed=bits)
    t = np.tanh(w.double().numpy())
    steps = (t / np.abs(t).max() + 1) / 2 * (2**bits - 1)
    clear = np.abs(steps - np.floor(steps) - 0.5) > 1e-4
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(WeightQuantizer(bits).codes(w).numpy()[clear], np.rint(steps)[clear])


# -- Tables by hand


@pytest.mark.parametrize(
    ("bits", "x", "codes"),
    [
        pytest.param(1, [-3, 0, 0.49, 0.5, 0.51, 1, 7], [0, 0, 0, 0, 1, 1, 1], id="1-bit"),
        pytest.param(
            2, [-0.1, 0.16, 0.17, 1 / 3, 0.49, 0.51, 0.83, 0.84, 1.1], [0, 0, 1, 1, 1, 2, 2, 3, 3], id="2-bit"
        ),
        pytest.param(2, [0.5 / 3, 1.5 / 3, 2.5 / 3], [0, 2, 2], id="2-bit-ties"),
        pytest.param(4, [-1, 0.03, 0.04, 0.2, 0.52, 0.99, 2], [0, 0, 1, 3, 8, 15, 15], id="4-bit"),
        pytest.param(4, [0.1, 0.3, 0.5, 0.7], [2, 4, 8, 10], id="4-bit-ties"),
    ],
)
def test_activations_by_hand(bits: int, x: list[float], codes: list[int]) -> None:
    expected = torch.tensor(codes, dtype=torch.float32) / (2**bits - 1)
    assert torch.equal(ActivationQuantizer(bits)(torch.tensor(x)), expected)


@pytest.mark.parametrize(
    ("bits", "shares", "codes"),
    [
        pytest.param(2, [-1, -0.7, -0.6, -0.1, 0.1, 0.6, 0.7, 1], [0, 0, 1, 1, 2, 2, 3, 3], id="2-bit"),
        pytest.param(2, [0, 1], [2, 3], id="2-bit-tie-at-zero"),
        pytest.param(3, [-1, -0.9, -0.2, 0.2, 0.5, 0.9, 1], [0, 0, 3, 4, 5, 7, 7], id="3-bit"),
        pytest.param(3, [0, -1], [4, 0], id="3-bit-tie-at-zero"),
        pytest.param(4, [-1, -0.6, -0.1, 0.1, 0.9, 1], [0, 3, 7, 8, 14, 15], id="4-bit"),
        pytest.param(4, [0, 1], [8, 15], id="4-bit-tie-at-zero"),
        pytest.param(4, [-0.5, 0.25], [0, 11], id="4-bit-only-the-largest-counts"),
    ],
)
def test_weights_by_hand(bits: int, shares: list[float], codes: list[int]) -> None:
    """The latent weights are given by their share of the largest one, after tanh."""
    w = (0.5 * torch.tensor(shares, dtype=torch.float32)).atanh()
    quantizer = WeightQuantizer(bits)
    assert quantizer.codes(w).tolist() == codes
    torch.testing.assert_close(quantizer(w), 2 * torch.tensor(codes) / (2**bits - 1) - 1, atol=2e-7, rtol=0)


def test_two_bit_levels_are_these_numbers() -> None:
    levels = WeightQuantizer(2)(torch.tensor([-1.0, -0.2, 0.2, 1.0]))
    assert [f"{level:.8f}" for level in levels.tolist()] == ["-1.00000000", "-0.33333331", "0.33333337", "1.00000000"]


def test_one_bit_is_the_sign_times_the_mean_and_zero_is_positive() -> None:
    w = torch.tensor([-1.0, 0.0, -0.0, 2.0, 5.0, -4.0])
    for scale in SCALES:
        assert WeightQuantizer(1, scale)(w).tolist() == [-2.0, 2.0, 2.0, 2.0, 2.0, -2.0]
    assert WeightQuantizer(1).codes(w).tolist() == [0, 1, 1, 1, 1, 0]


def test_scales_by_hand() -> None:
    w = torch.tensor([-0.75, 0.25]).atanh()
    mean = float(w.abs().mean())
    torch.testing.assert_close(WeightQuantizer(2, "none")(w), torch.tensor([-1.0, 1 / 3]))
    torch.testing.assert_close(WeightQuantizer(2, "max")(w), torch.tensor([-0.75, 0.25]))
    torch.testing.assert_close(WeightQuantizer(2, "mean")(w), torch.tensor([-mean, mean / 3]))


def test_the_maximum_runs_over_the_whole_tensor() -> None:
    w = torch.tensor([[0.01, -0.02], [1.0, 2.0]])
    assert WeightQuantizer(4).codes(w)[0].tolist() == [8, 7]


def test_32_bits_change_nothing() -> None:
    w = torch.tensor([-3.0, 0.3, 7.0])
    assert WeightQuantizer(32, "max")(w) is w
    assert ActivationQuantizer(32)(w) is w


# -- Properties


@settings(deadline=None, max_examples=50)
@given(bits=st.sampled_from(BITS), x=floats(-2, 3))
def test_activations_are_few_levels_and_quantizing_them_again_changes_nothing(bits: int, x: Tensor) -> None:
    quantizer = ActivationQuantizer(bits)
    once = quantizer(x)
    assert torch.equal(quantizer(once), once)
    steps = (once * (2**bits - 1)).round()
    assert torch.equal(steps / (2**bits - 1), once)
    assert float((once - x.clamp(0, 1)).abs().max()) <= 0.5 / (2**bits - 1) + 1e-6


@pytest.mark.parametrize("bits", BITS)
def test_every_level_of_the_activations_occurs_and_no_other(bits: int) -> None:
    levels = ActivationQuantizer(bits)(torch.linspace(-1, 2, 30_001)).unique()
    assert torch.equal(levels, torch.arange(2**bits) / (2**bits - 1))


@pytest.mark.parametrize("bits", SEVERAL_BITS)
def test_every_level_of_the_weights_occurs_and_no_other(bits: int) -> None:
    quantizer = WeightQuantizer(bits)
    levels = quantizer(torch.linspace(-1, 1, 30_001)).unique()
    assert torch.equal(levels, 2 * (torch.arange(2**bits) / (2**bits - 1)) - 1)
    assert torch.equal(quantizer.decode(torch.arange(2**bits, dtype=torch.uint8), torch.ones(())), levels)


@settings(deadline=None, max_examples=100)
@given(bits=st.sampled_from(BITS), scale=st.sampled_from(SCALES), w=floats(-20, 20))
def test_codes_stand_for_the_quantized_weights_bit_for_bit(bits: int, scale: Scale, w: Tensor) -> None:
    quantizer = WeightQuantizer(bits, scale)
    codes, quantized = quantizer.codes(w), quantizer(w)
    assert codes.dtype == torch.uint8
    assert codes.shape == w.shape
    assert int(codes.max()) <= 2**bits - 1
    assert torch.equal(quantizer.decode(codes, quantizer.factor(w)), quantized)
    assert quantized.unique().numel() <= 2**bits
    assert quantized.isfinite().all()


@settings(deadline=None, max_examples=50)
@given(bits=st.sampled_from(BITS), w=floats(-20, 20))
def test_larger_weights_have_larger_codes(bits: int, w: Tensor) -> None:
    codes = WeightQuantizer(bits).codes(w.sort().values).int()
    assert (codes.diff() >= 0).all()


@settings(deadline=None, max_examples=50)
@given(bits=st.sampled_from(SEVERAL_BITS), w=floats(-20, 20).filter(lambda w: bool(w.abs().max() > 1e-6)))
def test_the_largest_weight_takes_an_outermost_level(bits: int, w: Tensor) -> None:
    assert WeightQuantizer(bits)(w).flatten()[w.tanh().abs().argmax()].abs() == 1


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_layer_of_zeros_stays_finite(bits: int, scale: Scale) -> None:
    w = torch.zeros(2, 3)
    quantizer = WeightQuantizer(bits, scale)
    assert quantizer(w).isfinite().all()
    assert torch.equal(quantizer.decode(quantizer.codes(w), quantizer.factor(w)), quantizer(w))


# -- Gradients


def gradient(function: Callable[[Tensor], Tensor], x: Tensor, upstream: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    (grad,) = torch.autograd.grad(function(x), x, upstream)
    return grad


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_of_activations_is_one_from_0_to_1_inclusive(bits: int) -> None:
    x = torch.tensor([-0.1, 0.0, 0.5, 1.0, 1.1])
    upstream = torch.tensor([2.0, 3.0, 5.0, 7.0, 11.0])
    assert gradient(ActivationQuantizer(bits), x, upstream).tolist() == [0.0, 3.0, 5.0, 7.0, 0.0]


@pytest.mark.parametrize("bits", BITS)
def test_the_gradient_of_rounding_is_the_identity(bits: int) -> None:
    upstream = normal(20, seed=1)
    assert torch.equal(gradient(lambda x: quantize_unit(x, bits), normal(20), upstream), upstream)


@pytest.mark.parametrize("scale", SCALES)
def test_the_gradient_of_one_bit_weights_is_the_identity(scale: Scale) -> None:
    upstream = normal(20, seed=1)
    assert torch.equal(gradient(WeightQuantizer(1, scale), 3 * normal(20), upstream), upstream)


def through_the_weights(w: Tensor, upstream: Tensor) -> Tensor:
    """``(1 - t_i**2) / M`` for every weight, the maximum ``M`` a constant."""
    t = w.tanh()
    return upstream * (1 - t**2) / t.abs().max()


def through_the_maximum(w: Tensor, upstream: Tensor) -> Tensor:
    """What the largest weight gets besides, the maximum being a function of it."""
    t = w.tanh()
    extra = torch.zeros_like(w)
    top = t.abs().argmax()
    extra[top] = -(upstream * t).sum() / t[top] ** 2 * t[top].sign() * (1 - t[top] ** 2)
    return extra


@pytest.mark.parametrize("bits", SEVERAL_BITS)
def test_the_gradient_of_weights_in_closed_form(bits: int) -> None:
    w, upstream = 0.3 * normal(50, dtype=torch.float64), normal(50, seed=1, dtype=torch.float64)
    expected = through_the_weights(w, upstream) + through_the_maximum(w, upstream)
    assert float(through_the_maximum(w, upstream).abs().max()) > 0.1
    torch.testing.assert_close(gradient(WeightQuantizer(bits), w, upstream), expected)


@pytest.mark.parametrize("bits", SEVERAL_BITS)
def test_a_detached_maximum_adds_nothing(bits: int) -> None:
    w, upstream = 0.3 * normal(50, dtype=torch.float64), normal(50, seed=1, dtype=torch.float64)
    grad = gradient(WeightQuantizer(bits, detach_max=True), w, upstream)
    torch.testing.assert_close(grad, through_the_weights(w, upstream))


def test_a_detached_maximum_changes_no_weight() -> None:
    w = normal(50)
    assert torch.equal(WeightQuantizer(3, detach_max=True)(w), WeightQuantizer(3)(w))


@pytest.mark.parametrize("scale", ["max", "mean"])
def test_the_scale_is_a_constant_in_the_gradient(scale: Scale) -> None:
    w, upstream = 0.3 * normal(50, dtype=torch.float64), normal(50, seed=1, dtype=torch.float64)
    factor = w.tanh().abs().max() if scale == "max" else w.abs().mean()
    expected = factor * (through_the_weights(w, upstream) + through_the_maximum(w, upstream))
    torch.testing.assert_close(gradient(WeightQuantizer(3, scale), w, upstream), expected)


def straight_through(x: Tensor, bits: int) -> Tensor:
    """Rounding whose gradient autograd finds by itself: the value of one tensor, the gradient of another."""
    n = 2**bits - 1
    return (torch.round(x * n) / n).detach() + (x - x.detach())


@pytest.mark.parametrize("bits", SEVERAL_BITS)
def test_weights_and_their_gradient_equal_straight_through_by_autograd(bits: int) -> None:
    def oracle(w: Tensor) -> Tensor:
        t = w.tanh()
        return 2 * straight_through(t / t.abs().max() * 0.5 + 0.5, bits) - 1

    w, upstream = normal(50), normal(50, seed=1)
    quantizer = WeightQuantizer(bits)
    assert torch.equal(quantizer(w), oracle(w))
    assert torch.equal(gradient(quantizer, w, upstream), gradient(oracle, w, upstream))


@pytest.mark.parametrize("bits", BITS)
def test_activations_and_their_gradient_equal_straight_through_by_autograd(bits: int) -> None:
    def oracle(x: Tensor) -> Tensor:
        return straight_through(x.clamp(0, 1), bits)

    x, upstream = normal(50), normal(50, seed=1)
    quantizer = ActivationQuantizer(bits)
    assert torch.equal(quantizer(x), oracle(x))
    assert torch.equal(gradient(quantizer, x, upstream), gradient(oracle, x, upstream))


@pytest.mark.parametrize("bits", BITS)
def test_codes_and_factor_are_cut_from_the_graph(bits: int) -> None:
    w = normal(5).requires_grad_()
    for scale in SCALES:
        quantizer = WeightQuantizer(bits, scale)
        assert not quantizer.codes(w).requires_grad
        assert not quantizer.factor(w).requires_grad
        assert quantizer.factor(w).shape == ()


# -- Other precisions and transformations


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_half_precision_is_quantized_in_float32(bits: int, dtype: torch.dtype) -> None:
    half = (normal(500) + 0.3).to(dtype)
    for quantizer in (WeightQuantizer(bits), WeightQuantizer(bits, "max"), ActivationQuantizer(bits)):
        quantized = quantizer(half)
        assert quantized.dtype == torch.float32
        assert torch.equal(quantized, quantizer(half.float()))
    assert torch.equal(WeightQuantizer(bits).codes(half), WeightQuantizer(bits).codes(half.float()))


def test_autocast_does_not_affect_the_quantizers() -> None:
    x = normal(500)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        w4, a4 = WeightQuantizer(4)(x), ActivationQuantizer(4)(x)
    assert torch.equal(w4, WeightQuantizer(4)(x))
    assert torch.equal(a4, ActivationQuantizer(4)(x))


def test_a_half_precision_gradient_comes_back_in_half_precision() -> None:
    x = torch.tensor([-0.5, 0.5], dtype=torch.float16)
    grad = gradient(ActivationQuantizer(2), x, torch.tensor([3.0, 3.0]))
    assert grad.dtype == torch.float16
    assert grad.tolist() == [0.0, 3.0]


EVERY_QUANTIZER = [
    WeightQuantizer(1),
    WeightQuantizer(2),
    WeightQuantizer(4, "max"),
    WeightQuantizer(4, "mean"),
    WeightQuantizer(2, detach_max=True),
    ActivationQuantizer(1),
    ActivationQuantizer(4),
]


@pytest.mark.parametrize("quantizer", EVERY_QUANTIZER, ids=repr)
def test_vmap_and_grad_of_torch_func(quantizer: Callable[[Tensor], Tensor]) -> None:
    rows, upstream = normal(3, 7), normal(7, seed=1)

    def loss(x: Tensor) -> Tensor:
        return (quantizer(x) * upstream).sum()

    assert torch.equal(torch.func.vmap(quantizer)(rows), torch.stack([quantizer(row) for row in rows]))
    grads = torch.func.vmap(torch.func.grad(loss))(rows)
    torch.testing.assert_close(grads, torch.stack([gradient(quantizer, row, upstream) for row in rows]))


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize("quantizer", EVERY_QUANTIZER, ids=repr)
def test_one_compiled_graph_equals_eager(quantizer: Callable[[Tensor], Tensor]) -> None:
    x, upstream = normal(33), normal(33, seed=1)
    torch.compiler.reset()  # the quantizers share their code, and one too many variants of it is an error
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), quantizer(x))
    torch.testing.assert_close(gradient(compiled, x, upstream), gradient(quantizer, x, upstream))


# -- Bad input


@pytest.mark.parametrize("bits", [0, -1, 9, 16, 33])
@pytest.mark.parametrize("make", [WeightQuantizer, ActivationQuantizer])
def test_impossible_bits(make: Callable[[int], object], bits: int) -> None:
    with pytest.raises(InputError, match=rf"bits .*1 to 8, or 32.* {bits}$"):
        make(bits)


def test_an_unknown_scale() -> None:
    with pytest.raises(InputError, match=r"scale .*none, max, mean.*'median'"):
        WeightQuantizer(2, "median")  # type: ignore[arg-type]


def test_weights_at_the_smallest_maximum_have_the_gradient_of_larger_ones() -> None:
    """The largest weight is always the outermost level, so its own gradient is zero, whatever its size."""
    tiny = torch.finfo(torch.float32).tiny
    for size in (tiny, 2 * tiny, 0.5):
        w = torch.tensor([size, 0.0, 0.0], requires_grad=True)
        (grad,) = torch.autograd.grad(WeightQuantizer(2)(w)[0], w)
        assert grad[0].item() == 0
