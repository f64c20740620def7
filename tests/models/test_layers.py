"""Quantized layers: outputs, gradients and state dicts; and what is asked of networks of them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, is_full_precision, quantized_layers
from empir_plugin.models.quantize import ActivationQuantizer, Precision, Scale, WeightQuantizer

TEXTS = ["w1a1", "w2a4", "w4a2", "w8a8", "w4a32", "w32a4", "fp"]
SCALES = get_args(Scale)
Maker = Callable[..., QuantizedLayer]


def full_conv(*, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(2, 4, 3, padding=1, stride=2, bias=bias)


def full_linear(*, bias: bool) -> nn.Linear:
    return nn.Linear(6, 3, bias=bias)


@pytest.fixture
def make_full(make: Maker) -> Callable[..., nn.Module]:
    """Makes the ordinary layer that ``make`` makes the quantized one of."""
    return {"conv": full_conv, "linear": full_linear}[make.__name__]


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
def test_weights_load_strictly_both_ways(make: Maker, make_full: Callable[..., nn.Module], bias: bool) -> None:
    full, quantized = make_full(bias=bias), make(bias=bias)
    assert list(quantized.state_dict()) == list(full.state_dict())
    assert not torch.equal(quantized.weight, full.weight)
    quantized.load_state_dict(full.state_dict(), strict=True)
    assert torch.equal(quantized.weight, full.weight)
    other = make_full(bias=bias)
    other.load_state_dict(quantized.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), full.parameters(), strict=True))


# -- What is computed; test_exact_sums.py has every bit


def assert_equal_or_close(layer: QuantizedLayer, found: Tensor, on_levels: Tensor) -> None:
    """Equal where the layer multiplies levels; where it sums integers, levels differ in the last bits."""
    if layer.inexact_reason:
        assert torch.equal(found, on_levels)
    else:
        torch.testing.assert_close(found, on_levels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_convolution_quantizes_its_input_and_its_weights(toys: ModuleType, text: str, scale: Scale) -> None:
    layer, precision = toys.conv(text, bias=True, scale=scale), Precision.parse(text)
    x = toys.inputs(layer)
    weight = WeightQuantizer(precision.weight_bits, scale)(layer.weight)
    levels = ActivationQuantizer(precision.activation_bits)(x)
    assert_equal_or_close(layer, layer(x), F.conv2d(levels, weight, layer.bias, stride=2, padding=1))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_linear_layer_quantizes_its_input_and_its_weights(toys: ModuleType, text: str, scale: Scale) -> None:
    layer, precision = toys.linear(text, bias=True, scale=scale), Precision.parse(text)
    x = toys.inputs(layer)
    weight = WeightQuantizer(precision.weight_bits, scale)(layer.weight)
    levels = ActivationQuantizer(precision.activation_bits)(x)
    assert_equal_or_close(layer, layer(x), F.linear(levels, weight, layer.bias))


def test_a_linear_layer_by_hand() -> None:
    layer = QuantLinear(3, 1, precision=Precision(2, 1))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.2, 1.0]]))
        layer.bias.fill_(0.25)
    # Input codes 0, 1, 1; weights -1, 1/3, 1; the bias stays what it is.
    torch.testing.assert_close(layer(torch.tensor([[0.4, 0.6, 3.0]])), torch.tensor([[1 + 1 / 3 + 0.25]]))


def test_inputs_of_the_same_codes_give_the_same_output_and_others_do_not(toys: ModuleType, make: Maker) -> None:
    layer = make("w8a2")
    x = toys.inputs(layer)
    rounded = (x.clamp(0, 1) * 3).round() / 3
    assert not torch.equal(rounded, x)
    assert torch.equal(layer(rounded), layer(x))
    assert not torch.equal(layer((rounded + 1 / 3).clamp(0, 1)), layer(x))


def test_the_output_is_not_quantized(toys: ModuleType, make: Maker) -> None:
    y = make("w8a1")(toys.inputs(make())).detach()
    assert float(y.min()) < 0
    assert y.unique().numel() > 2


def test_32_bit_weights_stay_and_4_bit_inputs_do_not(
    toys: ModuleType, make: Maker, make_full: Callable[..., nn.Module]
) -> None:
    layer, full = make("w32a4"), make_full(bias=False)
    full.load_state_dict(layer.state_dict())
    x = toys.inputs(layer)
    assert torch.equal(layer.quantized_weight(), layer.weight)
    assert torch.equal(layer(x), full(ActivationQuantizer(4)(x)))
    assert not torch.equal(layer(x), full(x))


def test_32_bit_inputs_stay_and_4_bit_weights_do_not(
    toys: ModuleType, make: Maker, make_full: Callable[..., nn.Module]
) -> None:
    layer, full = make("w4a32"), make_full(bias=False)
    full.load_state_dict({"weight": WeightQuantizer(4)(layer.weight.detach())})
    x = toys.inputs(layer)
    assert torch.equal(layer(x), full(x))
    assert not torch.equal(layer(x), layer(x.clamp(0, 1)))
    assert layer.quantized_weight().unique().numel() <= 16


def test_full_precision_is_the_ordinary_layer(
    toys: ModuleType, make: Maker, make_full: Callable[..., nn.Module]
) -> None:
    layer, full = make("fp"), make_full(bias=False)
    full.load_state_dict(layer.state_dict())
    assert torch.equal(layer(toys.inputs(layer)), full(toys.inputs(layer)))


def test_gradients_reach_latent_weights_bias_and_input(toys: ModuleType, make: Maker) -> None:
    layer = make(bias=True)
    x = toys.inputs(layer).requires_grad_()
    layer(x).square().sum().backward()
    for tensor in (layer.weight, layer.bias, x):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    assert x.grad is not None
    assert (x.grad[(x < 0) | (x > 1)] == 0).all()


def test_grouped_convolutions_keep_their_groups_apart() -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(4, 6, 3, groups=2, bias=False, precision=Precision(4, 4))
    assert layer.weight.shape == (6, 2, 3, 3)
    x = torch.rand(1, 4, 5, 5)
    changed = x.clone()
    changed[:, 2:] = 0
    assert torch.equal(layer(changed)[:, :3], layer(x)[:, :3])
    assert not torch.equal(layer(changed)[:, 3:], layer(x)[:, 3:])


def test_a_convolution_pads_by_its_padding_mode() -> None:
    layer = QuantConv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False, precision=Precision(2, 4))
    x = torch.rand(1, 1, 4, 4)
    padded = F.pad(ActivationQuantizer(4)(x), (1, 1, 1, 1), mode="circular")
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.quantized_weight()), rtol=0, atol=1e-5)
    assert not torch.allclose(layer(x), F.conv2d(x, layer.quantized_weight(), padding=1), atol=0.1)


# -- Networks of layers


def test_quantized_layers_are_found_by_name_in_order(toys: ModuleType) -> None:
    found = list(quantized_layers(toys.network()))
    assert [name for name, _ in found] == ["1.0", "3"]
    assert [str(layer.precision) for _, layer in found] == ["w2a4", "w4a32"]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        pytest.param(lambda toys: nn.Linear(2, 2), True, id="plain"),
        pytest.param(lambda toys: nn.Sequential(), True, id="empty"),
        pytest.param(lambda toys: toys.linear("fp"), True, id="quantized-layer-of-32-bits"),
        pytest.param(lambda toys: nn.Sequential(nn.Linear(2, 2), toys.linear("fp")), True, id="both"),
        pytest.param(lambda toys: toys.linear("w2a4"), False, id="low"),
        pytest.param(lambda toys: toys.linear("w32a4"), False, id="activations-only"),
        pytest.param(lambda toys: toys.linear("w4a32"), False, id="weights-only"),
        pytest.param(
            lambda toys: nn.Sequential(toys.linear("fp"), nn.Sequential(toys.conv("w2a4"))),
            False,
            id="one-low-deep-inside",
        ),
    ],
)
def test_is_full_precision(toys: ModuleType, build: Callable[[ModuleType], nn.Module], expected: bool) -> None:
    assert is_full_precision(build(toys)) is expected


@pytest.mark.parametrize("text", ["w2a4", "w4a32", "fp"])
def test_the_description_shows_parent_and_precision(toys: ModuleType, text: str) -> None:
    assert repr(toys.linear(text)) == f"QuantLinear(in_features=6, out_features=3, bias=False, precision={text})"
    shown = repr(toys.conv(text))
    assert shown.startswith("QuantConv2d(2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False")
    assert shown.endswith(f"precision={text})")


def test_an_unknown_scale_is_refused_when_the_layer_is_made() -> None:
    with pytest.raises(InputError, match=r"scale .*none, max, mean.*'half'"):
        QuantLinear(2, 2, precision=Precision(2, 2), scale="half")  # type: ignore[arg-type]
