"""Quantized layers: outputs, state dicts, and baked weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.layers import (
    QuantConv2d,
    QuantizedLayer,
    QuantLinear,
    bake_,
    frozen_copy,
    is_full_precision,
    is_inference_tensor,
    quantized_layers,
)
from empir_plugin.models.quantize import ActivationQuantizer, Precision, Scale, WeightQuantizer

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


# -- What is computed; test_exact_sums.py has every bit


def assert_equal_or_close(layer: QuantizedLayer, found: Tensor, on_levels: Tensor) -> None:
    """Equal where the layer multiplies levels; where it sums integers, levels differ in the last bits."""
    if layer.inexact_reason:
        assert torch.equal(found, on_levels)
    else:
        torch.testing.assert_close(found, on_levels, rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_convolution_quantizes_its_input_and_its_weights(text: str, scale: Scale) -> None:
    layer, precision = conv(text, bias=True, scale=scale), Precision.parse(text)
    x = inputs(layer)
    weight = WeightQuantizer(precision.weight_bits, scale)(layer.weight)
    levels = ActivationQuantizer(precision.activation_bits)(x)
    assert_equal_or_close(layer, layer(x), F.conv2d(levels, weight, layer.bias, stride=2, padding=1))


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("text", TEXTS)
def test_a_linear_layer_quantizes_its_input_and_its_weights(text: str, scale: Scale) -> None:
    layer, precision = linear(text, bias=True, scale=scale), Precision.parse(text)
    x = inputs(layer)
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
    torch.testing.assert_close(layer(x), F.conv2d(padded, layer.quantized_weight()), rtol=0, atol=1e-5)
    assert not torch.allclose(layer(x), F.conv2d(x, layer.quantized_weight(), padding=1), atol=0.1)


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


def baked(make: Maker) -> QuantizedLayer:
    """A layer with baked weights that its latent ones do not quantize to, so that their use shows."""
    layer = make().eval()
    layer.baked_weight = layer.quantized_weight().detach().flip(0)
    assert uses_baked(layer)
    return layer


@torch.no_grad()
def uses_baked(layer: QuantizedLayer) -> bool:
    """Whether a layer of :func:`baked` computes with the baked weights; if not, then with what it has become."""
    found, latent = layer.quantized_weight(), layer.weight_quantizer(layer.weight)
    assert torch.equal(found, latent) or layer.baked_weight is not None
    return not torch.equal(found, latent)


@pytest.mark.parametrize("make", MAKERS)
def test_training_mode_forgets_baked_weights(make: Maker) -> None:
    layer = baked(make)
    assert uses_baked(layer.eval())
    assert not uses_baked(layer.train())
    assert layer.training
    assert not uses_baked(layer.eval())


@pytest.mark.parametrize("make", MAKERS)
def test_training_mode_of_the_whole_network_forgets_baked_weights(make: Maker) -> None:
    layer = baked(make)
    nn.Sequential(nn.Sequential(layer)).train()
    assert not uses_baked(layer.eval())


@pytest.mark.parametrize("make", MAKERS)
def test_a_layer_baked_in_training_mode_computes_with_its_latent_weights_until_it_is_evaluated(make: Maker) -> None:
    layer = make()
    layer.baked_weight = layer.quantized_weight().detach().flip(0)
    assert torch.equal(layer.quantized_weight(), layer.weight_quantizer(layer.weight))
    layer(inputs(layer)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()
    assert uses_baked(layer.eval()), "baked for evaluation all the same"


@pytest.mark.parametrize("make", MAKERS)
def test_loaded_weights_replace_baked_ones(make: Maker) -> None:
    layer, other = baked(make), make(seed=1)
    nn.Sequential(layer).load_state_dict(nn.Sequential(other).state_dict())
    assert torch.equal(layer.quantized_weight(), other.quantized_weight())


@pytest.mark.parametrize("make", MAKERS)
def test_baking_again_takes_the_latent_weights_of_now(make: Maker) -> None:
    layer = baked(make)
    layer.bake_()
    assert layer.baked_weight is not None
    assert torch.equal(layer.baked_weight, layer.weight_quantizer(layer.weight))


COPIES = [
    pytest.param(copy.deepcopy, id="deepcopy"),
    pytest.param(copy.copy, id="copy"),
    pytest.param(lambda layer: pickle.loads(pickle.dumps(layer)), id="pickle"),
]


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("make", MAKERS)
def test_copies_keep_baked_weights(make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]) -> None:
    layer = baked(make)
    twin = duplicate(layer)
    assert uses_baked(twin)
    assert torch.equal(twin(inputs(layer)), layer(inputs(layer)))
    twin.train()
    assert uses_baked(layer)


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("make", MAKERS)
def test_copies_notice_changes_of_their_own_weights(
    make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]
) -> None:
    twin = duplicate(duplicate(baked(make)).requires_grad_(False))
    twin.weight.data.neg_()
    assert not uses_baked(twin)


@pytest.mark.parametrize("duplicate", COPIES)
@pytest.mark.parametrize("make", MAKERS)
def test_copies_do_not_take_outdated_weights_along(
    make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]
) -> None:
    layer = baked(make)
    with torch.no_grad():
        layer.weight.neg_()
    assert not uses_baked(duplicate(layer))


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


def test_another_type_takes_baked_weights_along() -> None:
    layer = baked(linear)
    expected = layer.quantized_weight().double()
    assert torch.equal(layer.double().quantized_weight(), expected)


# -- Weights that change behind baked ones


def _prune(layer: QuantizedLayer) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)


def _replace(layer: QuantizedLayer) -> None:
    layer.weight = nn.Parameter(layer.weight.detach().neg())


def _train_fused(layer: QuantizedLayer) -> None:
    layer.weight.grad = torch.randn_like(layer.weight)
    torch.optim.Adam([layer.weight], 0.1, fused=True).step()


def _negate(layer: QuantizedLayer) -> None:
    with torch.no_grad():
        layer.weight.neg_()


def _negate_in_numpy(layer: QuantizedLayer) -> None:
    values = layer.weight.detach().numpy()
    values *= -1


def _load_by_assignment(layer: QuantizedLayer) -> None:
    state = {name: value.neg() for name, value in layer.state_dict().items()}
    layer.load_state_dict(state, assign=True)


CHANGES = [
    pytest.param(_prune, id="pruning"),
    pytest.param(_negate, id="in-place"),
    pytest.param(_replace, id="another-parameter"),
    pytest.param(_train_fused, id="fused-optimizer"),
    pytest.param(_negate_in_numpy, id="numpy"),
    pytest.param(_load_by_assignment, id="load-by-assignment"),
    pytest.param(parametrizations.orthogonal, id="parametrization"),
    pytest.param(lambda layer: layer.weight.data.neg_(), id="data-in-place"),
    pytest.param(lambda layer: setattr(layer.weight, "data", -layer.weight), id="data-replaced"),
    pytest.param(lambda layer: torch.nn.utils.vector_to_parameters(torch.randn(200), [layer.weight]), id="vector"),
]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("make", MAKERS)
def test_changed_weights_are_quantized_anew(make: Maker, change: Callable[[QuantizedLayer], object]) -> None:
    layer = baked(make)
    before = layer(inputs(layer)).detach()
    change(layer)
    assert not uses_baked(layer)
    assert not torch.equal(layer(inputs(layer)), before)


@pytest.mark.parametrize("make", MAKERS)
def test_frozen_weights_are_not_compared_but_their_changes_are_counted(make: Maker) -> None:
    layer = make().eval().requires_grad_(False)
    layer.bake_()
    before = layer.quantized_weight()
    layer.weight.data.neg_()
    assert layer.quantized_weight() is before, "the documented exception"
    layer.weight.neg_()
    assert layer.baked_weight is None


@pytest.mark.parametrize("make", MAKERS)
def test_a_function_of_other_weights_uses_them(make: Maker) -> None:
    layer, other = baked(make), make(seed=1)
    called = torch.func.functional_call(layer, dict(other.named_parameters()), (inputs(layer),))
    assert torch.equal(called, other(inputs(layer)))
    assert uses_baked(layer), "whose own weights stay the same"


@pytest.mark.parametrize("make", MAKERS)
def test_evaluation_mode_gives_the_gradient_of_training_mode_and_the_baked_numbers(make: Maker) -> None:
    layer = make("w4a4", scale="max")
    layer(inputs(layer)).square().sum().backward()
    expected = layer.weight.grad
    layer.weight.grad = None
    layer.eval().bake_()
    layer.baked_weight = layer.quantized_weight().detach() * (1 + 2**-22)  # the last bit of a scale
    y = layer(inputs(layer))
    y.square().sum().backward()
    assert expected is not None
    torch.testing.assert_close(layer.weight.grad, expected)
    with torch.no_grad():
        assert torch.equal(y, layer(inputs(layer)))


def test_fine_tuning_in_evaluation_mode_takes_effect_at_every_step() -> None:
    layer = linear("w8a4", scale="max").eval()
    layer.bake_()
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    losses = []
    for _ in range(4):
        loss = layer(inputs(layer)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


def convolutions() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), conv("w2a4", seed=2), nn.ReLU(), nn.Flatten())


@pytest.mark.parametrize("foreach", [True, False])
def test_a_moving_average_computes_as_its_state_dict_does(foreach: bool) -> None:
    model, loaded = convolutions().eval(), convolutions().eval()
    bake_(model)
    average = ModelEmaV3(model, decay=0.5, foreach=foreach)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.neg_()
    average.update(model)
    average.update(model)
    loaded.load_state_dict(average.module.state_dict())
    x = torch.rand(3, 2, 6, 6)
    assert torch.equal(average.module(x), loaded(x))


@pytest.mark.parametrize("use_buffers", [True, False])
def test_an_averaged_model_can_be_updated_from_a_network_in_training_mode(use_buffers: bool) -> None:
    model, loaded = convolutions().eval(), convolutions().eval()
    bake_(model)
    average = AveragedModel(model, use_buffers=use_buffers)
    average.update_parameters(model)
    with torch.no_grad():
        for parameter in model.train().parameters():
            parameter.mul_(-3)
    average.update_parameters(model)
    loaded.load_state_dict(average.module.state_dict())
    x = torch.rand(3, 2, 6, 6)
    assert torch.equal(average.module.eval()(x), loaded(x))
    assert torch.allclose(average.module[0].weight, model[0].weight / 3), "(1 - 3) / 2 = -1 of the first"


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.skipif(torch.__version__.startswith("2.5."), reason="no torch.compile with setup_context there")
def test_a_traced_network_holds_the_weights_of_now(frozen: bool) -> None:
    layer = baked(linear).requires_grad_(not frozen)
    exported = torch.export.export(layer, (inputs(layer),)).module()
    assert torch.equal(exported(inputs(layer)), layer(inputs(layer)))
    with torch.no_grad():
        layer.weight.neg_()
    again = torch.export.export(layer, (inputs(layer),)).module()
    assert torch.equal(again(inputs(layer)), layer(inputs(layer)))
    assert not torch.equal(again(inputs(layer)), exported(inputs(layer)))


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


# -- Copies for evaluation


def two_convolutions() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), conv(), nn.Flatten())


def keep_results(model: nn.Sequential) -> None:
    def keep(module: nn.Module, args: object, output: Tensor) -> None:
        module.last, module.all = output, {"outputs": [(output, 0)]}  # type: ignore[assignment]

    model[0].register_forward_hook(keep)


HELD = [
    pytest.param(lambda model: prune.l1_unstructured(model[0], "weight", amount=0.5), id="pruning"),
    pytest.param(lambda model: prune.random_unstructured(model[0], "bias", amount=0.5), id="pruning-of-a-bias"),
    pytest.param(lambda model: prune.ln_structured(model[2], "weight", amount=0.5, n=2, dim=0), id="quantized-layer"),
    pytest.param(lambda model: torch.nn.utils.weight_norm(model[0]), id="weight-norm"),
    pytest.param(lambda model: torch.nn.utils.spectral_norm(model[0]), id="spectral-norm"),
    pytest.param(keep_results, id="results"),
]


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("change", HELD)
def test_networks_are_copied_after_a_backward_pass(change: Callable[[nn.Sequential], object]) -> None:
    model, x = two_convolutions(), torch.rand(3, 2, 6, 6)
    change(model)
    model.train()(x).square().sum().backward()
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(model)
    twin = frozen_copy(model)
    assert torch.equal(twin(x), model.eval()(x))
    assert not any(parameter.requires_grad for parameter in twin.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert not torch.equal(twin(x), model(x))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
@pytest.mark.parametrize("script", [torch.jit.script, lambda model: torch.jit.trace(model, torch.rand(1, 2, 6, 6))])
def test_torchscript_is_refused_by_its_name(script: Callable[[nn.Module], nn.Module]) -> None:
    scripted = script(nn.Sequential(nn.Conv2d(2, 4, 3), nn.Flatten()).eval())
    with pytest.raises(InputError, match=r"the model is TorchScript, got a .*: pass the module it was made from"):
        frozen_copy(scripted)
    with pytest.raises(InputError, match=r"part '1.0' of the model is TorchScript"):
        frozen_copy(nn.Sequential(nn.Identity(), nn.Sequential(scripted)))


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_a_part_that_cannot_be_copied_is_quoted_whatever_it_raises() -> None:
    class Refuses:
        def __deepcopy__(self, memo: object) -> object:
            raise KeyError("\x1b[31mno copies\x1b[0m")

    for part, reason in (
        (Refuses(), "KeyError: 'no copies'"),
        (torch.jit.script(torch.nn.functional.relu), "PickleError: ScriptFunction cannot be pickled"),
        ((each for each in range(3)), "TypeError: cannot pickle 'generator' object"),
    ):
        model = nn.Flatten()
        model.part = part  # type: ignore[assignment]
        with pytest.raises(EvaluationError, match=rf"cannot be copied \({reason}\): .*copy\.deepcopy"):
            frozen_copy(model)


def test_tensors_made_inside_inference_mode() -> None:
    with torch.inference_mode():
        inside = nn.Linear(2, 2)
    assert is_inference_tensor(inside.weight)
    assert not is_inference_tensor(copy.deepcopy(inside).weight)
    assert not is_inference_tensor(nn.LazyLinear(2).weight)


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_the_two_documented_changes_of_frozen_weights_are_not_seen_until_baked_again() -> None:
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    around = linear().eval().requires_grad_(False)
    around.bake_()
    before = around(x)
    around.weight.data.neg_()
    assert torch.equal(around(x), before)
    around.bake_()
    torch.testing.assert_close(around(x), -before)
    compiled = linear().eval().requires_grad_(False)
    compiled.bake_()
    graph = torch.compile(compiled, backend="eager")
    assert torch.equal(graph(x), before)
    compiled.weight.neg_()
    assert torch.equal(graph(x), before)
    torch.testing.assert_close(compiled(x), -before)
    compiled.bake_()
    torch.testing.assert_close(graph(x), -before)
