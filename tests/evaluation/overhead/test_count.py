"""Operations and weights by hand and by an independent counter, baselines, and sizes of weight files."""

from __future__ import annotations

from importlib.resources import files

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.overhead.count import (
    OUTSIDE,
    LayerCost,
    baseline_of,
    count,
    float_twin,
    members_of,
    packed_bytes,
)
from empir_plugin.models.architectures import ARCHITECTURES, CIFARConv
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, bake_, is_full_precision
from empir_plugin.models.quantize import Precision
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards

W2A2 = Precision.parse("w2a2")
W2A4 = Precision.parse("w2a4")


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, stride=2, padding=1),
        nn.BatchNorm2d(6),
        QuantConv2d(6, 6, 3, groups=6, bias=False, precision=W2A4),
        nn.AvgPool2d(2),
        nn.Flatten(),
        QuantLinear(6, 4, precision=Precision.parse("w4")),
    ).eval()


class CalledByKeyword(nn.Sequential):
    """Modules one after the other, each called with its input as keyword."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(input=x)
        return x


def test_calls_by_keyword_count_as_others() -> None:
    modules = nn.Conv2d(2, 6, 3), nn.ConvTranspose2d(6, 6, 2, stride=2), *small()[2:3]
    x = torch.zeros(1, 2, 6, 6)
    called, plain = CalledByKeyword(*modules).eval(), nn.Sequential(*modules).eval()
    assert count(called, x).layers == count(plain, x).layers


def test_a_small_network_by_hand() -> None:
    cost = count(small(), torch.zeros(1, 2, 8, 8))
    # 8x8 -> 4x4 (stride 2) -> 2x2 (3x3 without padding) -> 1x1
    assert cost.layers == (
        LayerCost("0", "Conv2d", 6 * 2 * 9, 16 * 6 * 2 * 9, 18, Precision()),
        LayerCost("2", "QuantConv2d", 6 * 9, 4 * 6 * 9, 9, W2A4),
        LayerCost("5", "QuantLinear", 24, 24, 6, Precision(4, 32)),
    )
    assert (cost.macs, cost.weights) == (1728 + 216 + 24, 108 + 54 + 24)
    assert cost.parameters == 108 + 6 + 12 + 54 + 24 + 4
    assert cost.quantized_macs == 216, "the inputs of the last layer are in floating point"
    assert cost.quantized_weights == 54 + 24
    assert [layer.bit_operations for layer in cost.layers] == [1728 * 1024, 216 * 8, 24 * 128]
    assert cost.layers[1].bit_operations_with_sums == pytest.approx(216 * (8 + 2 + 4 + 3.169925), rel=1e-6)


RELEASED = {
    # Table of the release's networks: parameters, MACs, quantized share of weights (%).
    "mnistconv": ((1, 28, 28), 709_888, 802_816 + 7_372_800 + 409_600 + 1_280, 99.82),
    "cifarconv": ((3, 32, 32), 116_704, 2_457_600 + 5_760_000 + 2_508_800 + 36_864 + 640, 67.86),
    "cifarconv-table3": ((3, 32, 32), 433_120, 2_457_600 + 29_491_200 + 12_845_056 + 36_864 + 640, 91.34),
    "alexnet": ((3, 224, 224), 61_265_256, 1_937_082_368, 93.21),
}


@pytest.mark.parametrize(("name", "expected"), RELEASED.items(), ids=RELEASED)
def test_the_networks_of_the_release(name: str, expected: tuple[tuple[int, ...], int, int, float]) -> None:
    shape, parameters, macs, share = expected
    with torch.device("meta"):
        network, image = ARCHITECTURES[name](W2A4).eval(), torch.zeros(1, *shape)
        cost = count(network, image)
        assert (cost.parameters, cost.macs) == (parameters, macs)
        assert round(100 * cost.quantized_weights / cost.weights, 2) == share
        assert oracle(network, image) == macs


def oracle(network: nn.Module, image: Tensor) -> int:
    with FlopCounterMode(display=False) as flops, torch.no_grad():
        network(image)
    return flops.get_total_flops() // 2


LAYERS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(4, 6, 5, stride=(2, 3), padding=2),
    "dilated": nn.Conv2d(4, 6, 3, dilation=2),
    "grouped": nn.Conv2d(4, 6, 3, groups=2),
    "depthwise": nn.Conv2d(4, 8, 3, groups=4),
    "same": nn.Conv2d(4, 6, 4, padding="same", padding_mode="circular", bias=False),
    "transposed": nn.ConvTranspose2d(4, 6, 3, stride=2),
    "transposed, grouped": nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1),
    "linear on rows": nn.Linear(9, 5),
    "quantized": QuantConv2d(4, 6, 3, groups=2, precision=W2A4),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
def test_layers_agree_with_an_independent_counter(layer: nn.Module) -> None:
    image = torch.rand(1, 4, 9, 9)
    (row,) = count(layer.eval(), image).layers
    assert row.macs == oracle(layer, image) > 0
    assert row.kind == type(layer).__name__


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "resnext50_32x4d", "convnext_atto"])
def test_timm_networks_agree_with_an_independent_counter(name: str) -> None:
    network, image = timm.create_model(name).eval().to("meta"), torch.zeros(1, 3, 64, 64, device="meta")
    cost = count(network, image)
    assert cost.macs == oracle(network, image)
    assert OUTSIDE not in {row.name for row in cost.layers}
    assert cost.parameters == sum(p.numel() for p in network.parameters())
    assert cost.quantized_macs == cost.quantized_weights == 0


def test_quantized_layers_of_a_converted_timm_network() -> None:
    network = timm.create_model("resnet18", num_classes=10).eval()
    quantize_(network, W2A4, activations="unsigned")
    cost = count(network, torch.rand(1, 3, 32, 32))
    full = {row.name for row in cost.layers if row.precision.is_full}
    assert full == {"conv1", "fc"}, "a conversion leaves the first and the last layer in full precision"
    assert cost.quantized_weights == cost.weights - 3 * 64 * 49 - 512 * 10


@pytest.mark.parametrize("fused", [True, False])
def test_matrix_products_of_attention_are_counted(fused: bool) -> None:
    network = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, num_classes=10).eval()
    for block in network.blocks:
        block.attn.fused_attn = fused
    cost = count(network, torch.rand(1, 3, 32, 32))
    tokens, width = 17, 192
    assert {row.name: row.macs for row in cost.layers}[OUTSIDE] == 2 * (2 * tokens * tokens * width)
    assert cost.macs == 16 * 3 * 64 * width + 2 * 12 * tokens * width**2 + 2 * 2 * tokens**2 * width + 10 * width


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (1, 16, 8)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


def test_weights_used_outside_of_their_layer_are_counted() -> None:
    cost = count(Attending().eval(), torch.rand(1, 8, 4, 4))
    rows = {row.name: row.macs for row in cost.layers}
    assert rows == {"attention.out_proj": 0, OUTSIDE: 4 * 16 * 64 + 2 * 16 * 16 * 8}
    assert torch.backends.mha.get_fastpath_enabled(), "the setting must be restored"


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def test_every_call_of_a_layer_is_counted() -> None:
    network = Twice().eval()
    cost = count(network, torch.rand(1, 2, 5, 5))
    assert [(row.name, row.macs, row.weights) for row in cost.layers] == [("conv", 2 * 25 * 36, 36), ("unused", 0, 9)]
    assert not network.conv._forward_hooks
    assert not network.conv._forward_pre_hooks


class OnIntegers(QuantizedLayer):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_invalid_networks_and_images() -> None:
    with pytest.raises(InputError, match=r"'0' .*pass the network it was converted from"):
        count(nn.Sequential(OnIntegers()).eval(), torch.zeros(1, 2, 8, 8))
    with pytest.raises(InputError, match=r"got training mode: call \.eval\(\)"):
        count(small().train(), torch.zeros(1, 2, 8, 8))
    with pytest.raises(InputError, match=r"one image .*got the shape \(2, 2, 8, 8\)"):
        count(small(), torch.zeros(2, 2, 8, 8))
    with pytest.raises(InputError, match=r"one image .*got the shape \(2, 8, 8\)"):
        count(small(), torch.zeros(2, 8, 8))
    with pytest.raises(InputError, match=r"image of 1x8x8 .*pass its own shape"):
        count(small(), torch.zeros(1, 1, 8, 8))


# Baselines.


def test_the_float_twin_equals_the_full_precision_network() -> None:
    torch.manual_seed(0)
    low = nn.Sequential(QuantConv2d(3, 4, 3, precision=W2A2), nn.Flatten(), QuantLinear(16, 3, precision=W2A2)).eval()
    full = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    full.load_state_dict(low.state_dict())
    bake_(low)
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(float_twin(low)(x), full(x))
    assert not torch.equal(low(x), full(x)), "the model itself is still quantized"
    assert is_full_precision(float_twin(low))
    assert not is_full_precision(low)


def test_the_float_twin_has_no_learned_range() -> None:
    layer = QuantLinear(3, 2, precision=W2A2)
    layer.use_quantizers_(layer.weight_quantizer, layer.activation_quantizer, bound=0.5)
    x = torch.randn(4, 3)
    assert torch.equal(float_twin(layer)(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert len(list(layer.parameters())) == len(list(float_twin(layer).parameters())) + 1


def test_the_baseline_of_an_ensemble_is_its_full_precision_member() -> None:
    full = nn.Linear(3, 2)
    ensemble = Ensemble([QuantLinear(3, 2, precision=W2A2), full, nn.Linear(9, 2)])
    baseline = baseline_of(ensemble)
    assert baseline.description == "member 1 of the ensemble, its full-precision one"
    assert torch.equal(baseline.network.state_dict()["weight"], full.weight)


def test_without_a_full_precision_member_the_baseline_is_the_largest_member() -> None:
    ensemble = Ensemble([QuantLinear(3, 2, precision=W2A2), QuantLinear(9, 2, precision=W2A2)])
    baseline = baseline_of(ensemble)
    assert "member 1 of the ensemble, its largest, in full precision" in baseline.description
    assert baseline.network.weight.shape == (2, 9)
    assert is_full_precision(baseline.network)


def test_the_baseline_of_a_single_network_is_itself_in_full_precision() -> None:
    assert baseline_of(QuantLinear(3, 2, precision=W2A2)).description == "the same network in full precision"
    assert baseline_of(nn.Linear(3, 2)).description == "the model itself, which is in full precision"


def test_an_ensemble_inside_another_module_is_an_error() -> None:
    inner = Ensemble([nn.Linear(3, 2), nn.Linear(3, 2)])
    assert len(members_of(inner)) == 2
    for function in (members_of, baseline_of):
        with pytest.raises(InputError, match=r"inside Sequential: pass the ensemble itself"):
            function(nn.Sequential(nn.ReLU(), inner))


# Weight files.


@pytest.mark.parametrize(("precision", "payload"), [("fp", 466_816), ("w4a2", 189_616), ("w2a2", 169_816)])
def test_weights_are_packed_in_their_own_bits(precision: str, payload: int) -> None:
    quantized, rest = 79_200, 37_504
    bits = Precision.parse(precision).weight_bits
    scales = 0 if bits == 32 else 3 * 4
    assert payload == quantized * bits // 8 + rest * 4
    header = packed_bytes(CIFARConv(Precision.parse(precision))) - payload - scales
    assert 0 < header < 1200


def test_packed_bytes_is_the_size_of_the_shipped_file() -> None:
    shipped = files("empir_plugin.zoo").joinpath("weights") / cards()["cifarconv-w2a2"].networks[0].weights
    assert packed_bytes(build_model(cards()["cifarconv-w2a2"])) == len(shipped.read_bytes())


def test_buffers_are_stored_too() -> None:
    statistics = 2 * 4 * 100 + 8
    assert packed_bytes(nn.BatchNorm1d(100)) > 2 * 4 * 100 + statistics


def test_shared_tensors_count_once() -> None:
    one, other = nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False)
    apart = packed_bytes(nn.Sequential(one, other))
    other.weight = one.weight
    assert 40_000 < packed_bytes(nn.Sequential(one, other)) < 41_000 < 80_000 < apart


def test_weights_without_values_are_an_error() -> None:
    with torch.device("meta"), pytest.raises(EvaluationError, match=r"(?s)cannot be packed .*meta"):
        packed_bytes(nn.Linear(2, 2))
