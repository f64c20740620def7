"""Conversion of whole networks to integers: shipped models, ensembles, hooks, checks and copies."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import empir_plugin
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import InputError
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer import convert as integer_module
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.fuse import AddInto, PoolCodes
from empir_plugin.models.integer.kernels import Kernel
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.integer.selftest import agree
from empir_plugin.models.layers import QuantLinear, quantized_layers
from empir_plugin.models.quantize import Precision
from empir_plugin.zoo.quantized.build import normalize_images_

CPU = torch.device("cpu")

SHIPPED = ["cifarconv-w2a2", "cifarconv-w4a2", "mnistconv-w2a4", "empir-cifar", "empir-mnist"]


def linear(text: str = "w4a4", *, bias: bool = True) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear(12, 5, bias=bias, precision=Precision.parse(text)).eval()


def inputs(*shape: int) -> Tensor:
    """Some below 0, some above 1."""
    return 1.6 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.3


def layers_of(network: nn.Module) -> dict[str, IntegerLayer]:
    return {name: module for name, module in network.named_modules() if isinstance(module, IntegerLayer)}


def pooled_flat(text: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    precision = Precision.parse(text)
    return nn.Sequential(
        QuantLinear(8, 8, precision=precision), nn.ReLU(), QuantLinear(8, 3, precision=precision)
    ).eval()


def test_one_layer_under_two_names_is_one_layer() -> None:
    shared = QuantLinear(5, 5, precision=Precision.parse("w2a2"))
    network = nn.Sequential(shared, nn.ReLU(), shared).eval()
    integer = to_integer(network)
    assert integer.report.in_float == ()
    assert not any(type(module) is QuantLinear for module in integer.modules())
    assert agree(network, integer, inputs(50, 5)).max_logit_difference == 0


def test_an_ensemble_keeps_its_leader() -> None:
    members = [pooled_flat("w2a2", 0), pooled_flat("w4a4", 1), pooled_flat("fp", 2)]
    ensemble = Ensemble(members).eval()
    integer = to_integer(nn.Sequential(ensemble))
    (inner,) = (module for module in integer.modules() if isinstance(module, Ensemble))
    assert (ensemble.leader, inner.leader) == (2, 2)
    assert integer.report.in_float == ("0.members.2.0", "0.members.2.2")
    assert layers_of(integer)["network.0.members.0.0"].op.emits is not None
    assert agree(ensemble, integer, inputs(200, 8)).max_logit_difference == 0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_agree_on_bundled_images(name: str) -> None:
    dataset = "mnist" if "mnist" in name else "cifar10"
    model = prepare(empir_plugin.load_model(name, dataset=dataset), CPU)
    integer = to_integer(model)
    convolutions = [f"conv{number}" for number in (1, 2, 3)]
    assert {layer.rpartition(".")[2] for layer in integer.report.on_integers} == set(convolutions)
    agreement = agree(model, integer, load_images(dataset).as_float()[:200])
    assert (agreement.images, agreement.differing_decisions) == (200, 0)
    assert agreement.max_logit_difference == 0


NORMALIZED = ["wrn-10-1-w2a2", "wrn-10-1-w4a4", "empir-wrn-10-1"]


@pytest.mark.parametrize("name", [*SHIPPED, "cifarconv-at-w4a4", "mnistsmall-at-w4a4", "empir-cifar-at", *NORMALIZED])
@torch.no_grad()
def test_shipped_models_give_the_same_bits_in_every_form(name: str) -> None:
    """Of all operations in floating point, only convolutions of full-precision members differ between the layouts."""
    dataset = "mnist" if "mnist" in name else "cifar10"
    model = prepare(empir_plugin.load_model(name, dataset=dataset), CPU)
    folded = [layer for _, layer in quantized_layers(model) if layer._folded is not None]
    assert bool(folded) == (name in NORMALIZED)
    x = load_images(dataset).as_float()[:64].to(memory_format=torch.channels_last)
    expected = model(x)
    assert torch.equal(to_integer(model)(x), expected), "int8"
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(model(x), expected), "two threads"
        assert torch.equal(to_integer(model)(x), expected), "int8 on two threads"
    finally:
        torch.set_num_threads(before)
    networks = list(model.members) if isinstance(model, Ensemble) else [model]
    quantized = [network for network in networks if any(True for _ in quantized_layers(network))]
    assert len(quantized) == (len(networks) - 1 or 1)
    for network in quantized:
        contiguous = copy.deepcopy(network).to(memory_format=torch.contiguous_format)
        assert torch.equal(contiguous(x.contiguous()), network(x)), "NCHW"
        assert not torch.equal(network(x.flip(3)), network(x))


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["cifarconv-w2a2", "cifarconv-w4a2", "empir-cifar"])
def test_every_decision_on_the_full_test_set_agrees(name: str, data_dir: Path) -> None:
    model = prepare(empir_plugin.load_model(name, dataset="cifar10"), CPU)
    images = load_images("cifar10", data_dir=data_dir).as_float()
    agreement = agree(model, to_integer(model), images, batch_size=200)
    assert (agreement.images, agreement.differing_decisions) == (10_000, 0)
    assert agreement.max_logit_difference == 0


def normalised(network: nn.Module) -> nn.Module:
    """The network with a hook that normalises images in [0, 1]."""
    normalize_images_(network, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return network


def test_a_network_normalises_its_images_on_integers_too(kernel: Kernel, block: Callable[..., nn.Module]) -> None:
    network, images = normalised(block()), torch.rand(8, 3, 8, 8)
    integer = to_integer(network, kernel=kernel)
    with torch.no_grad():
        assert torch.allclose(integer(images), network(images), rtol=0, atol=1e-4)
        assert not torch.allclose(integer(images), block()(images), rtol=0, atol=1e-2)
    assert "codes_of" in str([name for name, _ in integer.named_modules()]), "it was traced"


def test_forward_hooks_are_kept_also_in_an_ensemble(block: Callable[..., nn.Module]) -> None:
    network, images = normalised(block()), torch.rand(8, 3, 8, 8)
    network.register_forward_hook(lambda module, inputs, output: 2 * output)
    for model in (network, Ensemble([network, block("w2a2")])):
        with torch.no_grad():
            assert torch.allclose(to_integer(model)(images), model(images), rtol=0, atol=1e-4)


def test_a_network_without_hooks_keeps_the_names_of_its_layers(block: Callable[..., nn.Module]) -> None:
    assert "network.conv1" in layers_of(to_integer(block()))


def test_the_report_has_the_agreement_on_given_images() -> None:
    network = pooled_flat("w4a4", 0)
    agreement = to_integer(network, like=inputs(20, 8)).report.agreement
    assert agreement is not None
    assert (agreement.images, agreement.differing_decisions) == (20, 0)


def test_a_wrong_graph_is_replaced_by_separate_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_module, "fuse", lambda network: (nn.Sequential(network, nn.ReLU()), []))
    network = pooled_flat("w4a4", 0)
    integer = to_integer(network, like=inputs(20, 8))
    assert "logits differ by" in integer.report.notes[0]
    assert integer.report.on_integers == ("0", "2")
    assert agree(network, integer, inputs(20, 8)).max_logit_difference == 0


def test_a_network_that_fails_as_a_whole_stays_float(
    altered: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer_module, "check_layer", lambda layer, integer: None)
    network = pooled_flat("w4a4", 0)
    integer = to_integer(network, like=inputs(20, 8), kernel=altered(after=lambda y: y * 1.5))
    assert integer.report.on_integers == ()
    assert {layer.reason for layer in integer.report.layers} == {"the whole network's logits differ from the model's"}
    assert torch.equal(integer(inputs(20, 8)), network(inputs(20, 8)))


def test_the_model_is_not_changed(block: Callable[..., nn.Module]) -> None:
    network = block().train()
    before = copy.deepcopy(network.state_dict())
    to_integer(network)
    assert network.training
    assert network.conv1.baked_weight is None
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_gradients_are_refused() -> None:
    integer = to_integer(linear())
    for network in (integer, integer.network):
        with pytest.raises(InputError, match="integers have no gradient"):
            network(inputs(2, 12).requires_grad_())
    with torch.no_grad():
        assert integer(inputs(2, 12).requires_grad_()).shape == (2, 5)


def test_a_second_conversion_is_refused() -> None:
    with pytest.raises(InputError, match="runs on integers already"):
        to_integer(to_integer(linear()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["residual", "cifarconv"])
def test_integer_models_can_be_copied(
    name: str, duplicate: Callable[[nn.Module], nn.Module], block: Callable[..., nn.Module]
) -> None:
    integer = to_integer(block() if name == "residual" else CIFARConv(Precision(2, 2)))
    assert any(isinstance(module, (AddInto, PoolCodes)) for module in integer.modules())
    x = torch.rand(3, 3, 8, 8) if name == "residual" else torch.rand(3, 3, 32, 32)
    assert torch.equal(duplicate(integer)(x), integer(x))


def test_integer_models_can_be_prepared_for_an_evaluation(block: Callable[..., nn.Module]) -> None:
    integer, x = to_integer(block()), torch.rand(3, 3, 8, 8)
    assert torch.allclose(prepare(integer, CPU)(x), integer(x), atol=1e-6)
