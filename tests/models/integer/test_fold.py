"""Batch normalization in the quantized layer before it: by hand, on real architectures, and where it stays."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from empir_plugin.errors import InputError
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.fold import fold_norms_
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, bake_, frozen_copy, quantized_layers
from empir_plugin.models.quantize import Precision

CPU = torch.device("cpu")


def conv(text: str = "w4a4", *, inputs: int = 3, outputs: int = 6, bias: bool = True) -> QuantConv2d:
    return QuantConv2d(inputs, outputs, 3, padding=1, bias=bias, precision=Precision.parse(text), scale="max")


def used(norm: nn.modules.batchnorm._BatchNorm) -> nn.modules.batchnorm._BatchNorm:
    """A normalization with statistics, weights and bias as after training; some weights are negative."""
    generator = torch.Generator().manual_seed(0)
    size = norm.num_features
    with torch.no_grad():
        norm.running_mean = torch.randn(size, generator=generator)
        norm.running_var = 0.1 + torch.rand(size, generator=generator)
        if norm.affine:
            norm.weight.copy_(torch.randn(size, generator=generator))
            norm.bias.copy_(torch.randn(size, generator=generator))
    return norm.eval()


def pair(text: str = "w4a4", **settings: bool) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(conv(text, **settings), used(nn.BatchNorm2d(6)), nn.ReLU()).eval()


def images(*shape: int) -> Tensor:
    return 1.6 * torch.rand(shape or (5, 3, 8, 8), generator=torch.Generator().manual_seed(1)) - 0.3


def norms(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def folded(model: nn.Module) -> nn.Module:
    copied = copy.deepcopy(model)
    fold_norms_(copied)
    return copied


def assert_close(found: Tensor, expected: Tensor, share: float = 1e-5) -> None:
    assert torch.allclose(found, expected, rtol=0, atol=share * float(expected.abs().max()))


# -- By hand


def _known() -> nn.Sequential:
    layer = QuantConv2d(1, 2, 1, precision=Precision.parse("w2a2"))
    norm = nn.BatchNorm2d(2, eps=0.0)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -0.2]).view(2, 1, 1, 1))
        layer.bias.copy_(torch.tensor([0.5, 0.25]))  # type: ignore[union-attr]
        norm.running_mean = torch.tensor([1.0, -1.0])
        norm.running_var = torch.tensor([4.0, 0.25])
        norm.weight.copy_(torch.tensor([3.0, -1.0]))
        norm.bias.copy_(torch.tensor([0.125, 2.0]))
    return nn.Sequential(layer, norm).eval()


@torch.no_grad()
def test_scale_and_bias_by_hand() -> None:
    network = folded(_known())
    layer = network[0]
    integers = layer.integer_weights()
    scale, bias = layer.scale_and_bias(integers)
    # Gains 3 / 2 and -1 / 0.5; shifts 0.125 - 1.5 and 2 - 2. The scale without normalization is 1 / 9.
    assert torch.equal(scale.flatten(), (torch.tensor([1.5, -2.0]).double() * (torch.tensor(1.0) / 9)).float())
    assert bias.flatten().tolist() == [0.5 * 1.5 - 1.375, 0.25 * -2 + 0.0]
    # The integers are 3 and -1, the input's 2: (6 / 9 + 0.5 - 1) * 1.5 + 0.125, and (-2 / 9 + 0.25 + 1) * -2 + 2.
    found = network(torch.full((1, 1, 1, 1), 0.7)).flatten()
    assert found.tolist() == pytest.approx([0.375, (-2 / 9 + 1.25) * -2 + 2], abs=1e-6)
    assert type(network[1]) is nn.Identity


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("text", ["w1a1", "w2a4", "w4a2", "w7a8"])
@torch.no_grad()
def test_the_function_stays_the_same(text: str, bias: bool, affine: bool) -> None:
    network = pair(text, bias=bias)
    network[1] = used(nn.BatchNorm2d(6, affine=affine))
    found = folded(network)
    assert norms(found) == []
    assert_close(found(images()), network(images()))
    assert not torch.allclose(network[0](images()).relu(), network(images()), atol=1e-2), "normalization matters"


@torch.no_grad()
def test_a_learned_range_is_folded_with_its_bound() -> None:
    network = pair()
    layer = network[0]
    layer.use_quantizers_(layer.weight_quantizer, layer.activation_quantizer, 0.6)
    found = folded(network)
    assert norms(found) == []
    assert_close(found(images()), network(images()))


def test_a_norm_without_fixed_statistics_is_refused() -> None:
    for norm in (nn.BatchNorm2d(6).train(), nn.BatchNorm2d(6, track_running_stats=False).eval()):
        with pytest.raises(InputError, match=r"fixed statistics.*call eval"):
            conv().fold_(norm)


# -- Architectures


def _statistics_(network: nn.Module, size: int) -> nn.Module:
    """Batch statistics from noise, as initial ones would fold to almost nothing."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.2, 0.6)
    with torch.no_grad():
        network.train()(torch.rand(4, 3, size, size))
    return network.eval()


def _timm_resnet18() -> nn.Module:
    network = timm.create_model("resnet18", num_classes=10)
    quantize_(network, "w4a4", scale="max")
    return _statistics_(network, 64)


def _robustbench(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from robustbench.model_zoo.architectures import resnet, wide_resnet

        network = resnet.ResNet18() if name == "ResNet18" else wide_resnet.WideResNet(depth=10, widen_factor=1)
        quantize_(network, "w4a4", scale="max", activations="unsigned")
        return _statistics_(network, 32)

    return build


NETWORKS = [
    pytest.param(_timm_resnet18, 64, id="timm-resnet18"),
    pytest.param(_robustbench("ResNet18"), 32, id="robustbench-resnet18"),
    pytest.param(_robustbench("WideResNet"), 32, id="robustbench-wrn-10-1"),
]


@pytest.mark.parametrize(("build", "size"), NETWORKS)
@torch.no_grad()
def test_architectures_of_others_compute_the_same(build: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(0)
    network = build()
    before = norms(network)
    found = folded(network)
    left = norms(found)
    behind = {name: layer for name, layer in quantized_layers(found) if layer._folded is not None}
    assert len(before) - len(left) == len(behind) >= 3
    assert all(type(found.get_submodule(name)) is nn.Identity for name in set(before) - set(left))
    x = torch.rand(2, 3, size, size)
    # A rounding may move an activation to its neighbour level, and a layer behind it by that: compare layer by layer.
    for (name, own), (_, plain) in zip(quantized_layers(found), quantized_layers(network), strict=True):
        inputs = torch.rand(2, own.weight.shape[1], 5, 5)
        if name not in behind:
            assert torch.equal(own(inputs), plain(inputs))
    differences = (found(x) - network(x)).abs().max()
    assert differences <= 0.02 * network(x).abs().max()
    doubled = (found.double()(x.double()) - network.double()(x.double())).abs().max()
    assert doubled <= 1e-10 * network(x.double()).abs().max()


@pytest.mark.parametrize(("build", "size"), NETWORKS)
@torch.no_grad()
def test_folded_architectures_on_int8_give_the_same_bits(build: Callable[[], nn.Module], size: int) -> None:
    torch.manual_seed(0)
    network = prepare(build(), CPU)
    integer = to_integer(network)
    assert any(isinstance(module, IntegerLayer) for module in integer.modules())
    x = torch.rand(4, 3, size, size).to(memory_format=torch.channels_last)
    assert torch.equal(integer(x), network(x))


# -- What stays


class Net(nn.Module):
    """A layer, its normalization, and a forward pass of its own."""

    def __init__(self, forward: Callable[[Net, Tensor], Tensor], between: nn.Module | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.bn = conv(), used(nn.BatchNorm2d(6))
        self.between, self.run = between or nn.Identity(), forward
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def _branch_on_values(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    return y if y.sum() > 0 else -y


def _twice(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) + net.bn(net.conv(x.flip(3)))


def _norm_twice(net: Net, x: Tensor) -> Tensor:
    y = net.bn(net.conv(x))
    return net.bn(y) + y


def _two_users(net: Net, x: Tensor) -> Tensor:
    y = net.conv(x)
    return net.bn(y) + y


def _user_of_the_weight(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) + net.bn.weight.view(-1, 1, 1)


def _user_of_the_statistics(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) + net.bn.running_mean.view(-1, 1, 1)  # type: ignore[union-attr,operator]


def _user_of_its_size(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) / net.bn.num_features


def _user_of_the_filters(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(x)) + net.conv.weight.sum()


def _something_between(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(x).relu())


def _plain(net: Net, x: Tensor) -> Tensor:
    return net.bn(net.conv(x))


def _changed(change: Callable[[Net], object], forward: Callable[[Net, Tensor], Tensor] = _plain) -> Net:
    net = Net(forward)
    change(net)
    return net


def _hook(*_: object) -> None:
    """Sees the output of a module."""


STAYS = [
    pytest.param(Net(_branch_on_values), id="branch-on-values"),
    pytest.param(Net(_twice), id="called-twice"),
    pytest.param(Net(_norm_twice), id="norm-called-twice"),
    pytest.param(Net(_two_users), id="two-users"),
    pytest.param(Net(_user_of_the_weight), id="weight-of-the-norm"),
    pytest.param(Net(_user_of_the_statistics), id="statistics-of-the-norm"),
    pytest.param(Net(_user_of_its_size), id="size-of-the-norm"),
    pytest.param(Net(_user_of_the_filters), id="weights-of-the-layer"),
    pytest.param(Net(_something_between), id="relu-between"),
    pytest.param(_changed(lambda net: net.conv.register_forward_hook(_hook)), id="hook-of-the-layer"),
    pytest.param(_changed(lambda net: net.bn.register_forward_hook(_hook)), id="hook-of-the-norm"),
    pytest.param(_changed(lambda net: net.bn.register_forward_pre_hook(_hook)), id="pre-hook-of-the-norm"),
    pytest.param(_changed(lambda net: net.bn.train()), id="training-mode"),
    pytest.param(
        _changed(lambda net: setattr(net, "bn", nn.BatchNorm2d(6, track_running_stats=False).eval())),
        id="no-statistics",
    ),
    pytest.param(_changed(lambda net: setattr(net, "alias", net.conv)), id="layer-under-two-names"),
    pytest.param(_changed(lambda net: setattr(net, "alias", net.bn)), id="norm-under-two-names"),
    pytest.param(_changed(lambda net: setattr(net, "conv", nn.Conv2d(3, 6, 3).eval())), id="no-quantized-layer"),
    pytest.param(_changed(lambda net: setattr(net, "conv", conv("w32a4").eval())), id="full-precision-weights"),
    pytest.param(_changed(lambda net: setattr(net, "bn", nn.InstanceNorm2d(6).eval())), id="another-norm"),
    pytest.param(_changed(lambda net: parametrizations.weight_norm(net.bn, "weight", dim=0)), id="parametrized-norm"),
]


@pytest.mark.parametrize("network", STAYS)
@torch.no_grad()
def test_what_is_not_folded_computes_the_same_bits(network: Net) -> None:
    found = folded(network)
    assert [type(module) for module in found.modules()] == [type(module) for module in network.modules()]
    assert all(layer._folded is None for _, layer in quantized_layers(found))
    if not network.bn.training:
        assert torch.equal(found(images()), network(images()))


def test_the_same_network_without_these_is_folded() -> None:
    assert norms(folded(Net(_plain))) == []


def test_eight_bits_with_too_many_inputs_stay() -> None:
    network = nn.Sequential(conv("w8a8", inputs=29), used(nn.BatchNorm2d(6))).eval()
    assert network[0].inexact_reason
    assert norms(folded(network)) == ["1"]


@torch.no_grad()
def test_baked_weights_off_the_grid_stay() -> None:
    network = pair()
    network[0].baked_weight = torch.randn_like(network[0].weight)
    fold_norms_(network)
    assert norms(network) == ["1"]


@torch.no_grad()
def test_a_layer_that_two_members_share_stays() -> None:
    shared = conv()
    members = [nn.Sequential(shared, used(nn.BatchNorm2d(6))), nn.Sequential(shared, nn.BatchNorm2d(6))]
    ensemble = Ensemble([nn.Sequential(*member, nn.AdaptiveAvgPool2d(1), nn.Flatten()) for member in members]).eval()
    found = folded(ensemble)
    assert torch.equal(found.member_logits(images()), ensemble.member_logits(images()))
    for other in (ensemble, nn.ModuleDict({"ensemble": ensemble, "head": ensemble.members[0][0]})):
        assert len(norms(folded(other))) == 2


@torch.no_grad()
def test_features_of_a_sequence_are_normalized_along_the_sequence() -> None:
    """``BatchNorm1d`` takes ``(N, C, L)``; a linear layer maps the last dimension, which may be as long as C."""
    network = nn.Sequential(QuantLinear(4, 6, precision=Precision(4, 4)), used(nn.BatchNorm1d(6))).eval()
    x = images(5, 6, 4)
    assert_close(folded(network)(x), network(x))
    assert_close(folded(network)(x[:, 0]), network(x[:, 0]))


# -- What a folded network is


def test_members_of_an_ensemble_are_folded() -> None:
    member = nn.Sequential(*pair(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    ensemble = Ensemble([copy.deepcopy(member), copy.deepcopy(member)]).eval()
    found = folded(nn.Sequential(ensemble))
    assert norms(found) == []
    with torch.no_grad():
        assert_close(found(images()), ensemble(images()))


class Keeps(nn.Module):
    """Keeps its features, as networks made for visualization do."""

    def __init__(self) -> None:
        super().__init__()
        self.body = pair()
        self.features: object = None

    def forward(self, x: Tensor) -> Tensor:
        self.features = self.body(x)
        return self.features  # type: ignore[return-value]


def test_stand_ins_for_tensors_do_not_remain() -> None:
    network = Keeps().eval()
    fold_norms_(network)
    assert norms(network) == []
    assert network.features is None
    with torch.no_grad():
        assert network(images()) is network.features


@pytest.mark.parametrize(
    "duplicate",
    [copy.deepcopy, frozen_copy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["copy", "frozen", "pickle"],
)
@torch.no_grad()
def test_copies_stay_folded(duplicate: Callable[[nn.Module], nn.Module]) -> None:
    network = pair()
    bake_(network)
    fold_norms_(network)
    found = duplicate(network)
    assert norms(found) == []
    assert torch.equal(found(images()), network(images()))
    assert torch.equal(found.double()(images().double()).float() > 0.5, network(images()) > 0.5)


def test_folding_twice_changes_nothing() -> None:
    network = pair()
    fold_norms_(network)
    again = folded(network)
    with torch.no_grad():
        assert torch.equal(again(images()), network(images()))


def test_two_norms_in_a_row_are_folded_once() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(conv(), used(nn.BatchNorm2d(6)), used(nn.BatchNorm2d(6))).eval()
    found = folded(network)
    assert norms(found) == ["2"]
    with torch.no_grad():
        assert_close(found(images()), network(images()))
        assert_close(folded(found)(images()), network(images()))


def test_gradients_pass_through_folded_layers() -> None:
    network = pair()
    found = folded(network)
    grads = []
    for each in (network, found):
        x = images().requires_grad_()
        y = each(x)
        towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
        layer = each[0]
        grads.append(torch.autograd.grad(y, [x, layer.weight, layer.bias], towards))
    for own, expected in zip(*grads, strict=True):
        assert expected.abs().sum() > 0
        assert_close(own, expected)


@torch.no_grad()
def test_bits_are_the_same_in_every_layout_and_on_int8() -> None:
    network = folded(pair())
    expected = network(images())
    assert torch.equal(to_integer(network)(images()), expected)
    channels_last = network.to(memory_format=torch.channels_last)
    assert torch.equal(channels_last(images().to(memory_format=torch.channels_last)), expected)


@torch.no_grad()
def test_the_output_is_rounded_three_times() -> None:
    """The scale and the bias once each, then the product and the sum: no other order gives these bits."""
    network = folded(pair())
    layer: QuantizedLayer = network[0]
    integers = layer.integer_weights()
    assert integers is not None
    sums = F.conv2d(layer.integer_input(images()).double(), integers.values.double(), padding=1).float()
    scale, bias = layer.scale_and_bias(integers)
    assert bias is not None
    assert torch.equal(layer(images()), sums * scale + bias)
