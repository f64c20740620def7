"""Quantized layers as integer arithmetic: sums, scale and bias from integers written out here, and the old gradients.

The reference rounds inputs by hand, takes the codes of the weights, and adds up in 64-bit integers.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from empir_plugin.models.activations import InputQuantizer, SignActivationQuantizer, SignedActivationQuantizer
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.quantize import ActivationQuantizer, Precision, Scale, WeightQuantizer
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer, SignWeightQuantizer, UniformWeightQuantizer

BITS = range(1, 9)
SCALES: tuple[Scale, ...] = ("none", "max", "mean")
WEIGHTS: list[AnyWeightQuantizer] = [
    *(WeightQuantizer(bits, scale) for bits in BITS for scale in SCALES),
    SignWeightQuantizer(),
    SignWeightQuantizer(per_filter=True),
    *(UniformWeightQuantizer(bits) for bits in BITS if bits > 1),
]
INPUTS: list[InputQuantizer] = [
    *map(ActivationQuantizer, BITS),
    *map(SignedActivationQuantizer, BITS),
    SignActivationQuantizer(),
]
BOUND = 1.7
LAYOUTS = torch.contiguous_format, torch.channels_last


def conv(weights: AnyWeightQuantizer, inputs: InputQuantizer, bound: float | None = None, seed: int = 0) -> QuantConv2d:
    """Sums of 144 products, which reach 9.4 million at 8 bits."""
    torch.manual_seed(seed)
    layer = QuantConv2d(16, 24, 3, padding=1, stride=2, precision=Precision(2, 2))
    layer.use_quantizers_(weights, inputs, bound)
    return layer


def images(seed: int = 1) -> Tensor:
    """Values on both sides of every range."""
    return 6 * torch.rand(3, 16, 9, 9, generator=torch.Generator().manual_seed(seed)) - 3


# -- The reference


def integers_of_weights(quantizer: AnyWeightQuantizer, w: Tensor) -> Tensor:
    codes = quantizer.codes(w).long()
    if isinstance(quantizer, UniformWeightQuantizer):
        return codes - (2 ** (quantizer.bits - 1) - 1)
    return 2 * codes - (2**quantizer.bits - 1)


def integers_of_inputs(quantizer: InputQuantizer, x: Tensor, bound: float | None = None) -> Tensor:
    scaled, n = x if bound is None else x / torch.tensor(bound), 2**quantizer.bits - 1
    if isinstance(quantizer, SignActivationQuantizer):
        return 2 * (scaled >= 0).long() - 1
    if isinstance(quantizer, SignedActivationQuantizer):
        return 2 * (((scaled + 1) / 2).clamp(0, 1) * n).round().long() - n
    return (scaled.clamp(0, 1) * n).round().long()


def sums_of(weights: Tensor, inputs: Tensor, *, stride: int, padding: int) -> Tensor:
    """The sums of products of integers ``(K, C, h, w)`` and ``(N, C, H, W)`` in 64 bits."""
    side = (inputs.shape[-1] + 2 * padding - weights.shape[-1]) // stride + 1
    columns = F.unfold(inputs.double(), weights.shape[-1], padding=padding, stride=stride).long()
    return (weights.flatten(1) @ columns).view(len(inputs), len(weights), side, side)


def reference(layer: QuantConv2d, x: Tensor, bound: float | None = None) -> Tensor:
    """Sums, times one scale, plus the bias."""
    weights, inputs = layer.weight_quantizer, layer.activation_quantizer
    w = layer.weight.detach()
    sums = sums_of(integers_of_weights(weights, w), integers_of_inputs(inputs, x, bound), stride=2, padding=1)
    largest = weights(w).abs()
    unit = largest.flatten(1).amax(1).view(-1, 1, 1) if str(weights) == "xnor" else largest.amax()
    unit = (
        torch.ones(()) if isinstance(weights, WeightQuantizer) and weights.bits > 1 > weights_scale(weights) else unit
    )
    top_of_weights = 2 ** (weights.bits - 1) - 1 if isinstance(weights, UniformWeightQuantizer) else 2**weights.bits - 1
    unit = unit if bound is None else unit * torch.tensor(bound)
    scale = unit / (top_of_weights * (2**inputs.bits - 1))
    assert layer.bias is not None
    return sums.float() * scale + layer.bias.detach().view(-1, 1, 1)


def weights_scale(weights: WeightQuantizer) -> int:
    """0 for levels without a scale."""
    return SCALES.index(weights.scale)


def multiply_levels(layer: QuantizedLayer, operation: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The definition before integers: the operation on levels that were rounded to float32 one by one."""
    return operation(layer.quantized_input(x), layer.quantized_weight(), layer.bias)


@pytest.fixture
def on_levels(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Switches all layers to the old definition."""
    return lambda: monkeypatch.setattr(
        QuantizedLayer, "multiply", lambda self, operation, input: multiply_levels(self, operation, input)
    )


# -- Sums


def test_a_layer_by_hand() -> None:
    layer = QuantLinear(3, 2, precision=Precision.parse("w2a2"))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.2, 1.0], [0.2, 0.2, -0.2]]))
        layer.bias.copy_(torch.tensor([0.5, -0.25]))
    # Integers of the weights: -3, 1, 3 and 1, 1, -1; of the input: 0, 1, 3. Sums 10 and -2, over 3 * 3.
    found = layer(torch.tensor([[-2.0, 0.4, 7.0]]))
    scale = torch.tensor(1.0) / 9
    assert torch.equal(found, torch.tensor([[10.0, -2.0]]) * scale + torch.tensor([0.5, -0.25]))


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@pytest.mark.parametrize("bound", [None, BOUND], ids=["fixed", "learned"])
def test_every_pair_of_quantizers_sums_integers(weights: AnyWeightQuantizer, bound: float | None) -> None:
    x = images()
    for inputs in INPUTS:
        layer = conv(weights, inputs, bound)
        assert layer.inexact_reason == ""
        expected = reference(layer, x, bound)
        with torch.no_grad():
            for layout in LAYOUTS:
                assert torch.equal(layer.to(memory_format=layout)(x.contiguous(memory_format=layout)), expected), inputs
            levels = multiply_levels(layer, layer._conv_forward, x)
        assert torch.allclose(levels, expected, rtol=0, atol=2e-5 * float(expected.abs().max())), inputs


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@torch.no_grad()
def test_two_threads_give_the_same_bits(weights: AnyWeightQuantizer) -> None:
    x = images()
    for inputs in INPUTS:
        layer = conv(weights, inputs)
        assert torch.equal(layer(x), reference(layer, x)), inputs


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@torch.no_grad()
def test_bfloat16_math_gives_the_same_bits(
    weights: AnyWeightQuantizer, bf16_math: Callable[[], AbstractContextManager[None]]
) -> None:
    x = images()
    for inputs in INPUTS:
        layer = conv(weights, inputs)
        with bf16_math():
            found = layer(x)
        assert torch.equal(found, reference(layer, x)), inputs


@torch.no_grad()
def test_levels_are_not_exact_in_bfloat16(bf16_math: Callable[[], AbstractContextManager[None]]) -> None:
    layer = conv(WeightQuantizer(4), ActivationQuantizer(4))
    with bf16_math():
        found = multiply_levels(layer, layer._conv_forward, images())
    assert not torch.allclose(found, reference(layer, images()), atol=1e-3), "the test above could not fail"


@settings(deadline=None, max_examples=60)
@given(
    weights=st.sampled_from(WEIGHTS),
    inputs=st.sampled_from(INPUTS),
    bound=st.none() | st.floats(0.01, 50),
    seed=st.integers(0, 1000),
)
@torch.no_grad()
def test_any_weights_and_inputs(
    weights: AnyWeightQuantizer, inputs: InputQuantizer, bound: float | None, seed: int
) -> None:
    layer, x = conv(weights, inputs, bound, seed), (bound or 1) * images(seed)
    assert torch.equal(layer(x), reference(layer, x, bound))


@pytest.mark.parametrize("text", ["w1a1", "w4a4", "w8a8"])
@torch.no_grad()
def test_baked_weights_give_the_same_bits(text: str) -> None:
    precision = Precision.parse(text)
    layer = conv(WeightQuantizer(precision.weight_bits, "max"), ActivationQuantizer(precision.activation_bits)).eval()
    expected = layer(images())
    layer.bake_()
    assert layer.baked_weight is not None
    assert torch.equal(layer(images()), expected)
    assert torch.equal(copy.deepcopy(layer)(images()), expected)


@torch.no_grad()
def test_half_precision_sums_the_same_integers() -> None:
    layer = conv(WeightQuantizer(4), ActivationQuantizer(4)).bfloat16()
    found = layer(images().bfloat16())
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, reference(layer.float(), images().bfloat16().float()).bfloat16())


# -- The border of exactness


def _wide(fan_in: int) -> QuantLinear:
    """Eight bits; the first row gives the largest sum there is."""
    torch.manual_seed(0)
    layer = QuantLinear(fan_in, 4, precision=Precision(8, 8)).eval()
    with torch.no_grad():
        layer.weight[0] = layer.weight.abs().max()
    return layer


@torch.no_grad()
def test_258_products_of_eight_bits_are_exact() -> None:
    layer, x = _wide(258), torch.rand(5, 258)
    x[0] = 1
    assert layer.inexact_reason == ""
    assert layer.integer_weights() is not None
    weights, inputs = (
        integers_of_weights(WeightQuantizer(8), layer.weight),
        integers_of_inputs(ActivationQuantizer(8), x),
    )
    sums = inputs @ weights.T
    assert int(sums[0, 0]) == 258 * 255 * 255 == 16_776_450
    assert torch.equal(layer(x), sums.float() * (torch.tensor(1.0) / 255**2) + layer.bias)


@torch.no_grad()
def test_259_products_of_eight_bits_are_refused_and_computed_on_levels() -> None:
    layer, x = _wide(259), torch.rand(5, 259)
    assert "259 products reach 16,841,475" in layer.inexact_reason
    assert layer.integer_weights() is None
    assert torch.equal(layer(x), multiply_levels(layer, F.linear, x))


@pytest.mark.parametrize(
    ("weights", "inputs", "largest"),
    [
        (WeightQuantizer(4), ActivationQuantizer(8), 2**24 // (15 * 255)),
        (WeightQuantizer(4), SignedActivationQuantizer(8), 2**24 // (15 * 255)),
        (UniformWeightQuantizer(8), ActivationQuantizer(8), 2**24 // (127 * 255)),
        (SignWeightQuantizer(), ActivationQuantizer(8), 2**24 // 255),
    ],
    ids=["w4", "signed", "uniform", "bnn"],
)
def test_the_border_follows_from_bits_and_fan_in(
    weights: AnyWeightQuantizer, inputs: InputQuantizer, largest: int
) -> None:
    for fan_in, exact in ((largest, True), (largest + 1, False)):
        layer = QuantLinear(fan_in, 1, precision=Precision(2, 2))
        layer.use_quantizers_(weights, inputs)
        assert (layer.inexact_reason == "") == exact


@pytest.mark.parametrize("text", ["w4", "w32a4", "fp"])
def test_an_operand_in_full_precision_has_no_integers(text: str) -> None:
    layer = QuantLinear(3, 2, precision=Precision.parse(text))
    assert layer.inexact_reason == "its weights and its input are not both quantized"
    x = torch.rand(4, 3)
    assert torch.equal(layer(x), multiply_levels(layer, F.linear, x))


@torch.no_grad()
def test_baked_weights_off_the_grid_are_multiplied_as_they_are() -> None:
    layer = conv(WeightQuantizer(2), ActivationQuantizer(2)).eval()
    layer.baked_weight = torch.randn_like(layer.weight)
    assert layer.integer_weights() is None
    assert torch.equal(layer(images()), multiply_levels(layer, layer._conv_forward, images()))


# -- Gradients and training


def _gradients(layer: QuantizedLayer, output: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """With respect to the input, the weights, the bias, and the bound if there is one."""
    x = images().requires_grad_()
    y = output(x)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
    return list(torch.autograd.grad(y, [x, *layer.parameters()], towards))


@pytest.mark.parametrize("weights", WEIGHTS, ids=repr)
@pytest.mark.parametrize("bound", [None, BOUND], ids=["fixed", "learned"])
def test_gradients_are_those_of_the_levels(weights: AnyWeightQuantizer, bound: float | None) -> None:
    for inputs in INPUTS[::2]:
        layer = conv(weights, inputs, bound)
        found = _gradients(layer, layer)
        expected = _gradients(layer, lambda x, layer=layer: multiply_levels(layer, layer._conv_forward, x))
        assert len(found) == 3 + (bound is not None)
        for own, levels in zip(found, expected, strict=True):
            assert levels.abs().sum() > 0
            torch.testing.assert_close(own, levels, rtol=0, atol=2e-5 * float(levels.abs().max()))


def _network(text: str, bound: float | None) -> nn.Sequential:
    torch.manual_seed(0)
    precision = Precision.parse(text)
    first, second = (
        QuantConv2d(inputs, outputs, 3, padding=1, precision=precision, scale="max")
        for inputs, outputs in ((3, 8), (8, 8))
    )
    for layer in (first, second):
        layer.use_quantizers_(layer.weight_quantizer, layer.activation_quantizer, bound)
    last = QuantLinear(8 * 3 * 3, 5, precision=precision, scale="max")
    return nn.Sequential(first, nn.ReLU(), nn.AvgPool2d(2), second, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), last)


def _losses(text: str, bound: float | None) -> list[float]:
    network = _network(text, bound).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.05, momentum=0.9)
    generator, losses = torch.Generator().manual_seed(0), []
    for _ in range(6):
        x, y = torch.rand(16, 3, 6, 6, generator=generator), torch.randint(0, 5, (16,), generator=generator)
        loss = F.cross_entropy(network(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("bound", [None, BOUND], ids=["fixed", "learned"])
@pytest.mark.parametrize("text", ["w1a1", "w2a2", "w4a4", "w8a8"])
def test_training_gives_the_losses_of_the_levels(text: str, bound: float | None, on_levels: Callable[[], None]) -> None:
    found = _losses(text, bound)
    on_levels()
    assert found == pytest.approx(_losses(text, bound), rel=1e-5)
    assert len(set(found)) == 6


@pytest.fixture(autouse=True)
def same_random_numbers() -> Iterator[None]:
    with torch.random.fork_rng([]):
        yield


def test_a_linear_layer_takes_any_number_of_dimensions() -> None:
    layer: Any = QuantLinear(12, 5, precision=Precision(4, 4))
    x = torch.rand(2, 3, 12)
    assert torch.equal(layer(x), layer(x.view(6, 12)).view(2, 3, 5))
    assert torch.equal(layer(x[0, 0]), layer(x[0])[0])
