"""Baked weights: the same outputs, in copies too, and never outdated ones."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import get_args

import pytest
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.optim.swa_utils import AveragedModel

from empir_plugin.models.layers import QuantizedLayer, bake_, quantized_layers
from empir_plugin.models.quantize import Scale

SCALES = get_args(Scale)
Maker = Callable[..., QuantizedLayer]


def test_baked_weights_are_no_part_of_the_state(make: Maker) -> None:
    layer = make(bias=True)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    layer.bake_()
    assert list(layer.state_dict()) == ["weight", "bias"]
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert all(torch.equal(layer.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("text", ["w1a1", "w2a4", "w4a2", "w8a32", "w32a4"])
@pytest.mark.parametrize("scale", SCALES)
def test_baking_changes_no_output(toys: ModuleType, make: Maker, text: str, scale: Scale) -> None:
    layer = make(text, scale=scale).eval()
    expected = layer(toys.inputs(layer))
    layer.bake_()
    assert torch.equal(layer(toys.inputs(layer)), expected)
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


def test_training_mode_forgets_baked_weights(make: Maker) -> None:
    layer = baked(make)
    assert uses_baked(layer.eval())
    assert not uses_baked(layer.train())
    assert layer.training
    assert not uses_baked(layer.eval())


def test_training_mode_of_the_whole_network_forgets_baked_weights(make: Maker) -> None:
    layer = baked(make)
    nn.Sequential(nn.Sequential(layer)).train()
    assert not uses_baked(layer.eval())


def test_a_layer_baked_in_training_mode_computes_with_its_latent_weights_until_it_is_evaluated(
    toys: ModuleType, make: Maker
) -> None:
    layer = make()
    layer.baked_weight = layer.quantized_weight().detach().flip(0)
    assert torch.equal(layer.quantized_weight(), layer.weight_quantizer(layer.weight))
    layer(toys.inputs(layer)).square().sum().backward()
    assert layer.weight.grad is not None
    assert layer.weight.grad.any()
    assert uses_baked(layer.eval()), "baked for evaluation all the same"


def test_loaded_weights_replace_baked_ones(make: Maker) -> None:
    layer, other = baked(make), make(seed=1)
    nn.Sequential(layer).load_state_dict(nn.Sequential(other).state_dict())
    assert torch.equal(layer.quantized_weight(), other.quantized_weight())


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
def test_copies_keep_baked_weights(
    toys: ModuleType, make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]
) -> None:
    layer = baked(make)
    twin = duplicate(layer)
    assert uses_baked(twin)
    assert torch.equal(twin(toys.inputs(layer)), layer(toys.inputs(layer)))
    twin.train()
    assert uses_baked(layer)


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_notice_changes_of_their_own_weights(
    make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]
) -> None:
    twin = duplicate(duplicate(baked(make)).requires_grad_(False))
    twin.weight.data.neg_()
    assert not uses_baked(twin)


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_do_not_take_outdated_weights_along(
    make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]
) -> None:
    layer = baked(make)
    with torch.no_grad():
        layer.weight.neg_()
    assert not uses_baked(duplicate(layer))


@pytest.mark.parametrize("duplicate", COPIES)
def test_copies_of_unbaked_layers_compute_the_same(
    toys: ModuleType, make: Maker, duplicate: Callable[[QuantizedLayer], QuantizedLayer]
) -> None:
    layer = make("w2a4", scale="max")
    assert torch.equal(duplicate(layer)(toys.inputs(layer)), layer(toys.inputs(layer)))


def test_another_memory_format_keeps_baked_weights(toys: ModuleType) -> None:
    layer = baked(toys.conv)
    expected = layer.quantized_weight().clone()
    layer.to(memory_format=torch.channels_last)
    assert layer.weight.is_contiguous(memory_format=torch.channels_last)
    assert layer.quantized_weight().is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(layer.quantized_weight(), expected)


def test_another_device_takes_baked_weights_along(toys: ModuleType) -> None:
    layer = baked(toys.conv)
    assert layer.to("meta").quantized_weight().device.type == "meta"


def test_another_type_takes_baked_weights_along(toys: ModuleType) -> None:
    layer = baked(toys.linear)
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
def test_changed_weights_are_quantized_anew(
    toys: ModuleType, make: Maker, change: Callable[[QuantizedLayer], object]
) -> None:
    layer = baked(make)
    before = layer(toys.inputs(layer)).detach()
    change(layer)
    assert not uses_baked(layer)
    assert not torch.equal(layer(toys.inputs(layer)), before)


def test_frozen_weights_are_not_compared_but_their_changes_are_counted(make: Maker) -> None:
    layer = make().eval().requires_grad_(False)
    layer.bake_()
    before = layer.quantized_weight()
    layer.weight.data.neg_()
    assert layer.quantized_weight() is before, "the documented exception"
    layer.weight.neg_()
    assert layer.baked_weight is None


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
def test_the_two_documented_changes_of_frozen_weights_are_not_seen_until_baked_again(toys: ModuleType) -> None:
    x = torch.rand(5, 6, generator=torch.Generator().manual_seed(0))
    around = toys.linear().eval().requires_grad_(False)
    around.bake_()
    before = around(x)
    around.weight.data.neg_()
    assert torch.equal(around(x), before)
    around.bake_()
    torch.testing.assert_close(around(x), -before)
    compiled = toys.linear().eval().requires_grad_(False)
    compiled.bake_()
    graph = torch.compile(compiled, backend="eager")
    assert torch.equal(graph(x), before)
    compiled.weight.neg_()
    assert torch.equal(graph(x), before)
    torch.testing.assert_close(compiled(x), -before)
    compiled.bake_()
    torch.testing.assert_close(graph(x), -before)


def test_a_function_of_other_weights_uses_them(toys: ModuleType, make: Maker) -> None:
    layer, other = baked(make), make(seed=1)
    called = torch.func.functional_call(layer, dict(other.named_parameters()), (toys.inputs(layer),))
    assert torch.equal(called, other(toys.inputs(layer)))
    assert uses_baked(layer), "whose own weights stay the same"


def test_evaluation_mode_gives_the_gradient_of_training_mode_and_the_baked_numbers(
    toys: ModuleType, make: Maker
) -> None:
    layer = make("w4a4", scale="max")
    layer(toys.inputs(layer)).square().sum().backward()
    expected = layer.weight.grad
    layer.weight.grad = None
    layer.eval().bake_()
    layer.baked_weight = layer.quantized_weight().detach() * (1 + 2**-22)  # the last bit of a scale
    y = layer(toys.inputs(layer))
    y.square().sum().backward()
    assert expected is not None
    torch.testing.assert_close(layer.weight.grad, expected)
    with torch.no_grad():
        assert torch.equal(y, layer(toys.inputs(layer)))


def test_fine_tuning_in_evaluation_mode_takes_effect_at_every_step(toys: ModuleType) -> None:
    layer = toys.linear("w8a4", scale="max").eval()
    layer.bake_()
    optimizer = torch.optim.SGD(layer.parameters(), 0.01)
    losses = []
    for _ in range(4):
        loss = layer(toys.inputs(layer)).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert len(set(losses)) == 4


def convolutions(toys: ModuleType) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2), toys.conv("w2a4", seed=2), nn.ReLU(), nn.Flatten())


@pytest.mark.parametrize("foreach", [True, False])
def test_a_moving_average_computes_as_its_state_dict_does(toys: ModuleType, foreach: bool) -> None:
    model, loaded = convolutions(toys).eval(), convolutions(toys).eval()
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
def test_an_averaged_model_can_be_updated_from_a_network_in_training_mode(toys: ModuleType, use_buffers: bool) -> None:
    model, loaded = convolutions(toys).eval(), convolutions(toys).eval()
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
def test_a_traced_network_holds_the_weights_of_now(toys: ModuleType, frozen: bool) -> None:
    layer = baked(toys.linear).requires_grad_(not frozen)
    exported = torch.export.export(layer, (toys.inputs(layer),)).module()
    assert torch.equal(exported(toys.inputs(layer)), layer(toys.inputs(layer)))
    with torch.no_grad():
        layer.weight.neg_()
    again = torch.export.export(layer, (toys.inputs(layer),)).module()
    assert torch.equal(again(toys.inputs(layer)), layer(toys.inputs(layer)))
    assert not torch.equal(again(toys.inputs(layer)), exported(toys.inputs(layer)))


def test_baking_a_network_bakes_every_quantized_layer(toys: ModuleType) -> None:
    model = toys.network()
    bake_(model)
    assert all(layer.baked_weight is not None for _, layer in quantized_layers(model))
