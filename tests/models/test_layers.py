"""Quantized layers: outputs, state dicts, and baked weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.layers import (
    QuantConv2d,
    QuantizedLayer,
    QuantLinear,
    bake_,
    is_full_precision,
    quantized_layers,
)
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import ActivationQuantizer, Scale, WeightQuantizer

TEXTS = ["w1a1", "w2a4", "w4a2", "w8a8", "w4a32", "w32a4", "fp"]
SCALES: tuple[Scale, ...] = ("none", "max", "mean")


def conv(text: str = "w2a4", *, bias: bool = False, scale: Scale = "none", seed: int = 0) -> QuantConv2d:
    torch.manual_seed(seed)
    return QuantConv2d(2, 4, 3, padding=1, stride=2, bias=bias, precision=Precision.parse(text), scale=scale)


def linear(text: str = "w2a4", *, bias: bool = False, scale: Scale = "none", seed: int = 0) -> QuantLinear:
    torch.manual_seed(seed)
    return QuantLinear(6, 3, bias=bias, precision=Precision.parse(text), scale=scale)


def full_conv(*, bias: bool) -> nn.Conv2d:
    return nn.Conv2d(2, 4, 3, padding=1, stride=2, bias=bias)


def full_linear(*, bias: bool) -> nn.Linear:
    return nn.Linear(6, 3, bias=bias)


MAKERS = [pytest.param(conv, id="conv"), pytest.param(linear, id="linear")]
PAIRS = [pytest.param(conv, full_conv, id="conv"), pytest.param(linear, full_linear, id="linear")]
Maker = Callable[..., QuantizedLayer]


def inputs(layer: nn.Module, seed: int = 1) -> Tensor:
    """Some below 0, some above 1."""
    shape = (5, 2, 7, 7) if isinstance(layer, nn.Conv2d) else (5, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5


# -- State


@pytest.mark.parametrize("bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize(("make", "make_full"), PAIRS)
def test_weights_load_strictly_both_ways(make: Maker, make_full: Callable[..., nn.Module], bias: bool) -> None:
    full, quantized = make_full(bias=bias), make(bias=bias)
    assert list(quantized.state_dict()) == list(full.state_dict())
    assert not torch.equal(quantized.weight, full.weight)
    quantized.load_state_dict(full.state_dict(), strict=True)
    assert torch.equal(quantized.weight, full.weight)
    other = make_full(bias=bias)
    other.load_state_dict(quantized.state_dict(), strict=True)
    assert all(torch.equal(a, b) for a, b in zip(other.parameters(), full.parameters(), strict=True))


@pytest.mark.parametrize("make", MAKERS)
def test_baked_weights_are_no_part_of_the_state(make: Maker) -> None:
    layer = make(bias=True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.bake_()
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


# -- What is computed


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_convolution_quantizes_its_input_and_its_weights(text: str, scale: Scale) -> None:
    layer, precision = conv(text, bias=True, scale=scale), Precision.parse(text)
    x = inputs(layer)
    weight = WeightQuantizer(precision.weight_bits, scale)(layer.weight)
    codes = ActivationQuantizer(precision.activation_bits)(x)
    assert torch.equal(layer(x), F.conv2d(codes, weight, layer.bias, stride=2, padding=1))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_linear_layer_quantizes_its_input_and_its_weights(text: str, scale: Scale) -> None:
    layer, precision = linear(text, bias=True, scale=scale), Precision.parse(text)
    x = inputs(layer)
    weight = WeightQuantizer(precision.weight_bits, scale)(layer.weight)
    codes = ActivationQuantizer(precision.activation_bits)(x)
    assert torch.equal(layer(x), F.linear(codes, weight, layer.bias))


def test_a_linear_layer_by_hand() -> None:
    layer = QuantLinear(3, 1, precision=Precision(2, 1))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-1.0, 0.2, 1.0]]))
        layer.bias.fill_(0.25)
    # Input codes 0, 1, 1; weights -1, 1/3, 1; the bias stays what it is.
    torch.testing.assert_close(layer(torch.tensor([[0.4, 0.6, 3.0]])), torch.tensor([[1 + 1 / 3 + 0.25]]))


@pytest.mark.parametrize("make", MAKERS)
def test_inputs_of_the_same_codes_give_the_same_output_and_others_do_not(make: Maker) -> None:
    layer = make("w8a2")
    x = inputs(layer)
    rounded = (x.clamp(0, 1) * 3).round() / 3
    assert not torch.equal(rounded, x)
    assert torch.equal(layer(rounded), layer(x))
    assert not torch.equal(layer((rounded + 1 / 3).clamp(0, 1)), layer(x))


@pytest.mark.parametrize("make", MAKERS)
def test_the_output_is_not_quantized(make: Maker) -> None:
    y = make("w8a1")(inputs(make())).detach()
    assert float(y.min()) < 0
    assert y.unique().numel() > 2


@pytest.mark.parametrize(("make", "make_full"), PAIRS)
def test_32_bit_weights_stay_and_4_bit_inputs_do_not(make: Maker, make_full: Callable[..., nn.Module]) -> None:
    layer, full = make("w32a4"), make_full(bias=False)
    full.load_state_dict(layer.state_dict())
    x = inputs(layer)
    assert torch.equal(layer.quantized_weight(), layer.weight)
    assert torch.equal(layer(x), full(ActivationQuantizer(4)(x)))
    assert not torch.equal(layer(x), full(x))


@pytest.mark.parametrize(("make", "make_full"), PAIRS)
def test_32_bit_inputs_stay_and_4_bit_weights_do_not(make: Maker, make_full: Callable[..., nn.Module]) -> None:
    layer, full = make("w4a32"), make_full(bias=False)
    full.load_state_dict({"weight": WeightQuantizer(4)(layer.weight.detach())})
    x = inputs(layer)
    assert torch.equal(layer(x), full(x))
    assert not torch.equal(layer(x), layer(x.clamp(0, 1)))
    assert layer.quantized_weight().unique().numel() <= 16


@pytest.mark.parametrize(("make", "make_full"), PAIRS)
def test_full_precision_is_the_ordinary_layer(make: Maker, make_full: Callable[..., nn.Module]) -> None:
    layer, full = make("fp"), make_full(bias=False)
    full.load_state_dict(layer.state_dict())
    assert torch.equal(layer(inputs(layer)), full(inputs(layer)))


@pytest.mark.parametrize("make", MAKERS)
def test_gradients_reach_latent_weights_bias_and_input(make: Maker) -> None:
    layer = make(bias=True)
    x = inputs(layer).requires_grad_()
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
    assert torch.equal(layer(x), F.conv2d(padded, layer.quantized_weight()))


# -- Baking

ALL_BAKED = pytest.mark.parametrize("text", ["w1a1", "w2a4", "w4a2", "w8a32", "w32a4"])


@ALL_BAKED
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("make", MAKERS)
def test_baking_changes_no_output(make: Maker, text: str, scale: Scale) -> None:
    layer = make(text, scale=scale).eval()
    expected = layer(inputs(layer))
    layer.bake_()
    assert torch.equal(layer(inputs(layer)), expected)
    assert layer.baked_weight is not None
    assert not layer.baked_weight.requires_grad


def is_stale(layer: QuantizedLayer) -> bool:
    """Whether the layer computes with other weights than its latent ones quantize to."""
    return not torch.equal(layer.quantized_weight(), layer.weight_quantizer(layer.weight))


def baked(make: Maker) -> QuantizedLayer:
    """A layer that computes with baked weights, which its latent ones no longer quantize to."""
    layer = make().eval()
    layer.bake_()
    with torch.no_grad():
        layer.weight.neg_()
    assert is_stale(layer)
    return layer


@pytest.mark.parametrize("make", MAKERS)
def test_training_mode_forgets_baked_weights(make: Maker) -> None:
    layer = baked(make)
    assert is_stale(layer.eval())
    assert not is_stale(layer.train())
    assert layer.training


@pytest.mark.parametrize("make", MAKERS)
def test_training_mode_of_the_whole_network_forgets_baked_weights(make: Maker) -> None:
    layer = baked(make)
    nn.Sequential(nn.Sequential(layer)).train()
    assert not is_stale(layer)


@pytest.mark.parametrize("make", MAKERS)
def test_a_layer_baked_in_training_mode_computes_with_its_latent_weights_until_it_is_evaluated(make: Maker) -> None:
    layer = make()
    layer.bake_()
    kept = layer.quantized_weight().detach().clone()
    with torch.no_grad():
        layer.weight.neg_()
    assert not is_stale(layer)
    layer(inputs(layer)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()
    assert torch.equal(layer.eval().quantized_weight(), kept), "baked for evaluation all the same"


@pytest.mark.parametrize("make", MAKERS)
def test_loaded_weights_replace_baked_ones(make: Maker) -> None:
    layer, other = baked(make), make(seed=1)
    nn.Sequential(layer).load_state_dict(nn.Sequential(other).state_dict())
    assert torch.equal(layer.quantized_weight(), other.quantized_weight())


@pytest.mark.parametrize("make", MAKERS)
def test_baking_again_takes_the_latent_weights_of_now(make: Maker) -> None:
    layer = baked(make)
    layer.bake_()
    assert not is_stale(layer)


COPIES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(lambda layer: pickle.loads(pickle.dumps(layer)), id="pickle"),
]


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("make", MAKERS)
def test_copies_keep_baked_weights(make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]) -> None:
    layer = baked(make)
    twin = duplicate(layer)
    assert is_stale(twin)
    assert torch.equal(twin(inputs(layer)), layer(inputs(layer)))
    twin.train()
    assert is_stale(layer)


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("make", MAKERS)
def test_copies_of_unbaked_layers_compute_the_same(
    make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]
) -> None:
    layer = make("w2a4", scale="max")
    assert torch.equal(duplicate(layer)(inputs(layer)), layer(inputs(layer)))


def test_another_memory_format_keeps_baked_weights() -> None:
    layer = baked(conv)
    expected = layer.quantized_weight().clone()
    layer.to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.quantized_weight().is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.quantized_weight(), expected)


def test_another_device_takes_baked_weights_along() -> None:
    layer = baked(conv)
    assert layer.to("meta").quantized_weight().device.type == "meta"


# -- Networks of layers


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(conv("w2a4"), nn.ReLU()), nn.Flatten(), linear("w4a32"))


def test_quantized_layers_are_found_by_name_in_order() -> None:
    found = list(quantized_layers(network()))
    assert [name for name, _ in found] == ["1.0", "3"]
    assert [str(layer.precision) for _, layer in found] == ["w2a4", "w4a32"]


def test_baking_a_network_bakes_every_quantized_layer() -> None:
    model = network()
    bake_(model)
    assert all(layer.baked_weight is not None for _, layer in quantized_layers(model))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        pytest.param(nn.Linear(2, 2), True, id="plain"),
        pytest.param(nn.Sequential(), True, id="empty"),
        pytest.param(linear("fp"), True, id="quantized-layer-of-32-bits"),
        pytest.param(nn.Sequential(nn.Linear(2, 2), linear("fp")), True, id="both"),
        pytest.param(linear("w2a4"), False, id="low"),
        pytest.param(linear("w32a4"), False, id="activations-only"),
        pytest.param(linear("w4a32"), False, id="weights-only"),
        pytest.param(nn.Sequential(linear("fp"), nn.Sequential(conv("w2a4"))), False, id="one-low-deep-inside"),
    ],
)
def test_is_full_precision(model: nn.Module, expected: bool) -> None:
    assert is_full_precision(model) is expected


@pytest.mark.parametrize("text", ["w2a4", "w4a32", "fp"])
def test_the_description_shows_parent_and_precision(text: str) -> None:
    assert repr(linear(text)) == f"QuantLinear(in_features=6, out_features=3, bias=False, precision={text})"
    shown = repr(conv(text))
    assert shown.startswith("QuantConv2d(2, 4, kernel_size=(3, 3), stride=(2, 2), padding=(1, 1), bias=False")
    assert shown.endswith(f"precision={text})")


def test_an_unknown_scale_is_refused_when_the_layer_is_made() -> None:
    with pytest.raises(InputError, match=r"scale .*none, max, mean.*'half'"):
        QuantLinear(2, 2, precision=Precision(2, 2), scale="half")  # type: ignore[arg-type]
