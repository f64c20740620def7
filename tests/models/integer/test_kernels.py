"""Integer kernels: sums by hand, and equality with float32's convolutions, linear layers and pooling."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.kernels import (
    Float32,
    Geometry,
    IntegerOp,
    IntMM,
    Kernel,
    OneDNN,
    Unfolded,
    convolve_in_a_row,
    output_width,
    pool_codes,
)
from empir_plugin.models.integer.layers import integer_layer
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.quantize import Precision

CPU = torch.device("cpu")


def conv(text: str = "w4a4", *, seed: int = 0, **settings: Any) -> QuantConv2d:
    torch.manual_seed(seed)
    options = {"padding": 1, "bias": False, **settings}
    return QuantConv2d(4, 6, 3, precision=Precision.parse(text), **options).eval()  # type: ignore[arg-type]


def linear(text: str = "w4a4", *, bias: bool = True) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear(12, 5, bias=bias, precision=Precision.parse(text)).eval()


def inputs(*shape: int) -> Tensor:
    """Some below 0, some above 1."""
    return 1.6 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.3


def known_layer() -> QuantLinear:
    """Weights on -1, -1/3, 1/3, 1."""
    layer = QuantLinear(4, 1, bias=False, precision=Precision.parse("w2a2")).eval()
    layer.weight.data.copy_(torch.tensor([[-1.0, -0.2, 0.2, 1.0]]))
    return layer


def test_the_sum_of_a_known_layer(kernel: Kernel) -> None:
    # 0 * -3 + 1 * -1 + 2 * 1 + 3 * 3 = 10, in ninths.
    found = integer_layer(known_layer(), kernel)(torch.tensor([[-0.5, 0.3, 0.6, 7.0]]))
    assert found.item() == pytest.approx(10 / 9, rel=1e-6)


def test_the_sums_of_a_known_convolution(kernel: Kernel) -> None:
    layer = QuantConv2d(1, 1, 3, padding=1, bias=True, precision=Precision.parse("w2a1")).eval()
    layer.weight.data.copy_(torch.tensor([-1.0, 0.2, 1.0]).expand(1, 1, 3, 3))
    layer.bias.data.fill_(0.5)  # type: ignore[union-attr]
    # Every row of the filter is (-3, 1, 3) thirds; padding counts as 0.
    found = integer_layer(layer, kernel)(torch.tensor([[1.0, 0.0, 1.0]]).view(1, 1, 1, 3))
    assert (found.flatten() - 0.5).mul(3).tolist() == pytest.approx([1 + 0, -3 + 3, 0 + 1], abs=1e-5)


GEOMETRIES = [
    pytest.param({}, id="plain"),
    pytest.param({"stride": 2, "bias": True}, id="stride-bias"),
    pytest.param({"padding": (2, 1), "stride": (1, 2)}, id="uneven"),
    pytest.param({"groups": 2}, id="groups"),
    pytest.param({"dilation": 2}, id="dilation"),
    pytest.param({"padding": "same"}, id="same"),
    pytest.param({"scale": "max"}, id="scaled"),
    pytest.param({"scale": "mean", "bias": True}, id="scaled-bias"),
]


@pytest.mark.parametrize("settings", GEOMETRIES)
@pytest.mark.parametrize("text", ["w1a1", "w2a4", "w4a4"])
def test_convolutions_equal_the_float32_ones(text: str, settings: dict[str, Any], kernel: Kernel) -> None:
    layer = conv(text, **settings)
    integer = to_integer(layer, kernel=kernel)
    assert integer.report.on_integers == ("",)
    x = inputs(3, 4, 9, 8)
    with torch.no_grad():
        assert torch.equal(integer(x), layer(x))


@pytest.mark.parametrize("shape", [(3, 12), (12,), (2, 3, 12)])
def test_linear_layers_are_equal_for_every_number_of_dimensions(shape: tuple[int, ...], kernel: Kernel) -> None:
    layer = linear()
    x = inputs(*shape)
    with torch.no_grad():
        assert torch.equal(to_integer(layer, kernel=kernel)(x), layer(x))


@pytest.mark.parametrize("text", ["w7a8", "w6a8", "w4a8"])
def test_real_kernels_are_exact_or_not_used(text: str, kernel: Kernel) -> None:
    layer = conv(text)
    integer = to_integer(layer, kernel=kernel)
    x = torch.rand(4, 4, 9, 9).round()  # zeros and ones: the largest sums
    with torch.no_grad():
        assert torch.equal(integer(x), layer(x))


def test_a_filter_of_zeros_gives_zeros() -> None:
    layer = conv("w2a2")
    layer.baked_weight = torch.zeros_like(layer.weight)
    assert to_integer(layer)(inputs(1, 4, 5, 5)).abs().max() == 0


@pytest.mark.parametrize("settings", [(3, 2), (3, 2, 1), (2, None, 0, 1, True), ((3, 2), (2, 1), (1, 0))])
def test_pooling_codes_equals_max_pool2d(settings: tuple[object, ...]) -> None:
    codes = torch.randint(0, 256, (2, 3, 9, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = F.max_pool2d(codes.float(), *settings)  # type: ignore[arg-type]
    assert torch.equal(pool_codes(codes, *settings).float(), expected)  # type: ignore[arg-type]


def test_without_kernels_everything_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = conv()
    integer = to_integer(layer)
    assert "lacks oneDNN's int8 kernels" in integer.report.layers[0].reason
    assert torch.equal(integer(inputs(1, 4, 5, 5)), layer(inputs(1, 4, 5, 5)))


def test_a_build_without_the_operator_for_a_device_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def multiply(*args: Tensor) -> Tensor:
        raise NotImplementedError("Could not run 'aten::_int_mm' with arguments from the 'CPU' backend.")

    monkeypatch.setattr(torch, "_int_mm", multiply)
    assert "lacks torch._int_mm for cpu" in (IntMM().unusable(CPU) or "")
    assert "lacks torch._int_mm for cpu" in to_integer(conv(), kernel=IntMM()).report.layers[0].reason


def test_kernels_name_the_devices_they_do_not_run_on() -> None:
    meta = torch.device("meta")
    assert "not on meta" in (OneDNN().unusable(meta) or "")
    assert "does not run on meta" in (IntMM().unusable(meta) or "")


@pytest.mark.parametrize("images", [1, 3, 9])
@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("side", [1, 2, 3, 4, 7])
def test_images_in_a_row_are_convolved_as_they_are_one_by_one(images: int, zero: int, groups: int, side: int) -> None:
    torch.manual_seed(side)
    codes = torch.randint(0, 7, (images, 4, side, side), dtype=torch.uint8)
    compared = 0
    for stride, padding, dilation, size in itertools.product((1, 2, 3), (0, 1, 2, 3), (1, 2), (1, 2, 3, 5)):
        geometry = Geometry((stride, stride), (padding, padding), (dilation, dilation), groups)
        width = output_width(side, size, geometry)
        if side + 2 * padding < dilation * (size - 1) + 1:
            continue
        weight = torch.randint(-3, 4, (4, 4 // groups, size, size), dtype=torch.int8)
        convolve = Float32().compile(IntegerOp(weight, zero, torch.rand(4), torch.randn(4), geometry))
        assert torch.equal(convolve_in_a_row(convolve, codes, width, zero, geometry), convolve(codes)), geometry
        compared += 1
    assert compared > 30


@pytest.mark.parametrize("zero", [0, 3])
@pytest.mark.parametrize("groups", [1, 2])
def test_matrix_products_of_unfolded_images_are_the_convolutions(zero: int, groups: int) -> None:
    torch.manual_seed(0)
    codes = torch.randint(0, 16, (3, 4, 7, 6), dtype=torch.uint8)
    for stride, padding, dilation, size in itertools.product((1, 2), (0, 1), (1, 2), (1, 3)):
        geometry = Geometry((stride, stride), (padding, padding), (dilation, dilation), groups)
        weight = torch.randint(-15, 16, (6, 4 // groups, size, size), dtype=torch.int8)
        op = IntegerOp(weight, zero, torch.rand(6), torch.randn(6), geometry)
        assert torch.equal(Unfolded().compile(op)(codes), Float32().compile(op)(codes)), geometry


def test_a_linear_layer_is_a_matrix_product_as_it_is() -> None:
    op = IntegerOp(torch.tensor([[1, -2], [3, 4]], dtype=torch.int8), 1, torch.tensor([1.0, 0.5]), None, None)
    codes = torch.tensor([[2, 3], [1, 1]], dtype=torch.uint8)
    assert Unfolded().compile(op)(codes).tolist() == [[1 - 4, (3 + 8) / 2], [0, 0]]


def test_the_width_of_an_output_is_the_convolutions() -> None:
    for stride, padding, dilation, size in itertools.product((1, 2, 3), (0, 2), (1, 2), (1, 3)):
        geometry = Geometry((stride, stride), (padding, padding), (dilation, dilation), 1)
        found = F.conv2d(torch.zeros(1, 1, 9, 9), torch.zeros(1, 1, size, size), None, stride, padding, dilation)
        assert output_width(9, size, geometry) == found.shape[3]


@pytest.mark.parametrize(("scale", "bias", "bounded"), [(1e-3, 1.0, True), (1e25, None, False), (1.0, 1e31, False)])
def test_outputs_are_bounded_where_scale_and_bias_are(scale: float, bias: float | None, bounded: bool) -> None:
    term = None if bias is None else torch.tensor([bias])
    op = IntegerOp(torch.ones(1, 1, dtype=torch.int8), 0, torch.tensor([scale]), term, None)
    assert op.is_bounded is bounded
