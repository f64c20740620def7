"""Integer layers: reasons for staying in float, baked weights, and emitted codes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.models.integer.codes import Grid
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.kernels import Kernel
from empir_plugin.models.integer.layers import IntegerLayer, integer_layer
from empir_plugin.models.integer.selftest import emitting
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer
from empir_plugin.models.quantize import Precision


def conv(text: str = "w4a4", *, seed: int = 0, **settings: Any) -> QuantConv2d:
    torch.manual_seed(seed)
    options = {"padding": 1, "bias": False, **settings}
    return QuantConv2d(4, 6, 3, precision=Precision.parse(text), **options).eval()  # type: ignore[arg-type]


def inputs(*shape: int) -> Tensor:
    """Some below 0, some above 1."""
    return 1.6 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.3


class OwnConv(QuantConv2d):
    """A subclass of unknown arithmetic."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


STAYS = [
    pytest.param(conv("w8a4"), "8-bit weights are the integers -255 to 255, more than int8 holds", id="w8"),
    pytest.param(conv("w4"), "its weights and its input are not both quantized", id="a32"),
    pytest.param(conv("w32a4"), "its weights and its input are not both quantized", id="w32"),
    pytest.param(conv().double(), "its weights are torch.float64", id="double"),
    pytest.param(conv(padding_mode="reflect"), "its padding is 'reflect'", id="reflect"),
    pytest.param(conv(padding="same", dilation=(1, 1)), None, id="same-is-fine"),
    pytest.param(
        QuantConv2d(1, 1, 2, padding="same", precision=Precision(2, 2)), "its padding differs", id="uneven-padding"
    ),
    pytest.param(OwnConv(1, 1, 2, precision=Precision(2, 2)), "no integer form of a OwnConv is known", id="subclass"),
]


@pytest.mark.parametrize(("layer", "reason"), STAYS)
def test_layers_without_integers_stay_float_for_a_reason(layer: QuantizedLayer, reason: str | None) -> None:
    (outcome,) = to_integer(layer).report.layers
    assert outcome.on_integers == (reason is None)
    assert reason is None or reason in outcome.reason


def test_full_precision_layers_are_named() -> None:
    report = to_integer(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), conv("w8a8"), conv("w2a2"))).report
    assert (report.on_integers, report.in_float) == (("3",), ("0", "2"))
    assert str(report).splitlines()[0] == "0 (fp): float, its weights and its input have full precision"


def test_baked_weights_are_used_unchanged() -> None:
    layer = conv("w2a2")
    layer.baked_weight = torch.ones_like(layer.weight)
    assert to_integer(layer)(torch.ones(1, 4, 3, 3))[0, 0, 1, 1].item() == pytest.approx(36)


def test_emitted_codes_are_those_of_the_outputs(kernel: Kernel) -> None:
    plain = integer_layer(conv(scale="max"), kernel)
    grid = Grid(0, 15)
    codes = torch.randint(0, 16, (2, 4, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = IntegerLayer(plain.precision, plain.grid, emitting(plain.op, grid, kernel), kernel)(codes)
    assert found.dtype == torch.uint8
    assert 0 < found.float().mean() < 15
    assert torch.equal(found, grid.codes(plain(codes)))


def test_weights_on_no_grid_stay_float() -> None:
    layer = conv("w2a2")
    layer.baked_weight = torch.randn_like(layer.weight)
    assert "no integers times one number" in to_integer(layer).report.layers[0].reason
