"""Operations and weights: by hand, by an independent counter, and as the release's networks have them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from empir_plugin.errors import InputError
from empir_plugin.evaluation.overhead.count import OUTSIDE, LayerCost, count
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.precision import Precision

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


def test_a_timm_conversion_counts_its_quantized_layers() -> None:
    network = timm.create_model("resnet18", num_classes=10).eval()
    quantize_(network, W2A4, activations="unsigned")
    cost = count(network, torch.rand(1, 3, 32, 32))
    full = {row.name for row in cost.layers if row.precision.is_full}
    assert full == {"conv1", "fc"}, "the first and the last layer, which a conversion leaves alone"
    assert cost.quantized_weights == cost.weights - 3 * 64 * 49 - 512 * 10


@pytest.mark.parametrize("fused", [True, False])
def test_attention_counts_though_it_has_no_layer(fused: bool) -> None:
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


def test_weights_used_outside_of_their_layer_count() -> None:
    cost = count(Attending().eval(), torch.rand(1, 8, 4, 4))
    rows = {row.name: row.macs for row in cost.layers}
    assert rows == {"attention.out_proj": 0, OUTSIDE: 4 * 16 * 64 + 2 * 16 * 16 * 8}
    assert torch.backends.mha.get_fastpath_enabled(), "as it was"


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1, bias=False)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.conv(x))


def test_every_call_counts_and_no_call_is_none() -> None:
    network = Twice().eval()
    cost = count(network, torch.rand(1, 2, 5, 5))
    assert [(row.name, row.macs, row.weights) for row in cost.layers] == [("conv", 2 * 25 * 36, 36), ("unused", 0, 9)]
    assert not network.conv._forward_hooks
    assert not network.conv._forward_pre_hooks


class OnIntegers(QuantizedLayer):
    def forward(self, x: Tensor) -> Tensor:
        return x


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(InputError, match="'0' has no weights to count"):
        count(nn.Sequential(OnIntegers()).eval(), torch.zeros(1, 2, 8, 8))
    with pytest.raises(InputError, match="evaluation mode"):
        count(small().train(), torch.zeros(1, 2, 8, 8))
    with pytest.raises(InputError, match="one image"):
        count(small(), torch.zeros(2, 2, 8, 8))
    with pytest.raises(InputError, match="one image"):
        count(small(), torch.zeros(2, 8, 8))
