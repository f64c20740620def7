"""Norms of quantization errors: against explicit matrices, and against analytic values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import timm.layers
import torch
from torch import Tensor, nn

from empir_plugin.models.layers import QuantConv2d, QuantLinear, quantized_layers
from empir_plugin.models.lipschitz import error_norms, matrix_norm, quantization_error_norms, spectral_norm
from empir_plugin.models.packing import load_packed, save_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.models.weight_quantizers import SignWeightQuantizer

W2 = Precision.parse("w2a4")


def written_out(operator: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """The matrix of a linear module: its outputs for every unit vector."""
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        return operator(units).flatten(1).T


def of_error(layer: Any) -> nn.Conv2d:
    """A plain convolution whose weights are the layer's quantization error."""
    plain = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
        layer.groups, bias=False, padding_mode=layer.padding_mode, dtype=torch.float64,
    )  # fmt: skip
    plain.weight = nn.Parameter((layer.weight - layer.quantized_weight()).detach().double())
    return plain


def test_layers_called_by_keyword_have_norms() -> None:
    class Called(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = QuantLinear(4, 3, precision=W2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(input=x.flatten(1))

    model, images = Called().eval(), torch.zeros(2, 1, 2, 2)
    expected = error_norms(model.layer, (2, 4), (2, 3))
    assert quantization_error_norms(model, images) == {"layer": expected}


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": dict(kernel_size=3),
    "padded": dict(kernel_size=3, padding=1),
    "strided": dict(kernel_size=5, stride=2, padding=(2, 1)),
    "dilated": dict(kernel_size=2, dilation=2),
    "grouped": dict(kernel_size=3, groups=2, padding=1),
    "depthwise": dict(kernel_size=3, groups=4, padding=1),
    "same, circular": dict(kernel_size=3, padding="same", padding_mode="circular"),
    "larger than the image": dict(kernel_size=9, padding=4),
}


@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_a_convolution_against_its_matrix(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(4, 8, precision=W2, scale="max", **settings).eval()
    matrix = written_out(of_error(layer), (4, 6, 7))
    found = quantization_error_norms(layer, torch.zeros(2, 4, 6, 7))[""]
    assert found.spectral == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-6)
    assert found.infinity == pytest.approx(matrix.abs().sum(1).max().item(), rel=1e-12)
    flattened = of_error(layer).weight.flatten(1)
    assert found.flattened == pytest.approx(torch.linalg.matrix_norm(flattened, 2).item(), rel=1e-9)
    # Every input enters at most kernel-size outputs of a filter, which bounds the one norm by the other.
    assert found.spectral <= math.sqrt(math.prod(layer.kernel_size)) * found.flattened * (1 + 1e-9)


def test_the_size_of_the_image_matters() -> None:
    torch.manual_seed(0)
    layer = QuantConv2d(2, 4, 5, padding=2, precision=W2).eval()
    small, large = (quantization_error_norms(layer, torch.zeros(1, 2, n, n))[""] for n in (2, 12))
    assert small.spectral < large.spectral
    assert small.infinity < large.infinity
    assert small.flattened == large.flattened


def test_a_linear_layer_is_exact() -> None:
    torch.manual_seed(0)
    layer = QuantLinear(7, 5, precision=W2).eval()
    error = (layer.weight - layer.quantized_weight()).detach()
    found = quantization_error_norms(layer, torch.zeros(1, 7))[""]
    assert found.spectral == found.flattened == pytest.approx(torch.linalg.matrix_norm(error, 2).item(), rel=1e-5)
    assert found.infinity == pytest.approx(torch.linalg.matrix_norm(error, torch.inf).item(), rel=1e-6)


def test_a_one_by_one_convolution_is_its_matrix() -> None:
    torch.manual_seed(0)
    found = quantization_error_norms(QuantConv2d(6, 4, 1, precision=W2).eval(), torch.zeros(1, 6, 3, 3))[""]
    assert found.spectral == pytest.approx(found.flattened, rel=1e-8)


def test_a_mean_filter_is_known_analytically() -> None:
    """Circular convolution with a positive filter has its largest gain at the constant image: the filter's sum."""
    mean = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
    nn.init.constant_(mean.weight, 1 / 9)
    assert spectral_norm(mean, (1, 1, 8, 8)) == pytest.approx(1.0, rel=1e-9)
    assert spectral_norm(lambda x: -2 * mean(x), (1, 1, 8, 8)) == pytest.approx(2.0, rel=1e-9)


def test_close_singular_values_are_distinguished() -> None:
    values = torch.linspace(0.9, 1.0, 500, dtype=torch.float64)
    assert spectral_norm(lambda x: values * x, (500,)) == pytest.approx(1.0, rel=1e-5)
    assert spectral_norm(lambda x: values * x, (500,), iterations=3) < 0.995, "too few iterations stay below"


def test_nothing_amplifies_nothing() -> None:
    assert spectral_norm(lambda x: 0 * x, (3,)) == 0
    assert matrix_norm(torch.zeros(2, 3)) == 0


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (1, 1)])
def test_matrix_norm(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert matrix_norm(matrix) == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-12)


class SameConv(QuantConv2d):
    """A quantized convolution padded as TensorFlow does, as converted timm networks have them."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(timm.layers.pad_same(input, list(self.kernel_size), list(self.stride)))


@pytest.mark.parametrize("size", [6, 7])
def test_padding_that_depends_on_the_image_is_seen(size: int) -> None:
    torch.manual_seed(0)
    layer = SameConv(2, 4, 3, stride=2, bias=False, precision=W2).eval()
    plain = of_error(layer)
    padded = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1) if size == 6 else 1), plain)
    matrix = written_out(padded, (2, size, size))
    found = quantization_error_norms(layer, torch.zeros(1, 2, size, size))[""]
    assert found.spectral == pytest.approx(torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-6)
    assert found.infinity == pytest.approx(matrix.abs().sum(1).max().item(), rel=1e-12)


def test_more_bits_err_less() -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 3, 3, 3)

    def norm(bits: int) -> float:
        layer = QuantConv2d(3, 8, 3, bias=False, precision=Precision(bits, 4), scale="max").eval()
        layer.load_state_dict({"weight": 0.1 * weight})
        return error_norms(layer, (1, 3, 6, 6), (1, 8, 4, 4)).spectral

    norms = [norm(bits) for bits in (2, 4, 8)]
    assert norms == sorted(norms, reverse=True)
    assert norms[2] < 0.1 * norms[0]


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used = QuantLinear(4, 4, precision=W2)
        self.unused = QuantLinear(4, 4, precision=W2)
        self.activations = QuantLinear(4, 4, precision=Precision(32, 4))
        self.plain = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.plain(self.activations(self.used(x)))


def test_only_layers_with_an_error_appear_and_hooks_are_removed() -> None:
    model = Half().eval()
    assert set(quantization_error_norms(model, torch.zeros(1, 4))) == {"used"}
    assert not any(module._forward_hooks for module in model.modules())
    assert not quantization_error_norms(nn.Linear(4, 4), torch.zeros(1, 4))


def test_weights_that_are_their_own_quantization_have_no_error() -> None:
    layer = QuantLinear(20, 20, precision=W2)
    layer.use_quantizers_(SignWeightQuantizer(per_filter=True), layer.activation_quantizer)
    assert quantization_error_norms(layer, torch.zeros(1, 20))
    with torch.no_grad():
        layer.weight.copy_(layer.quantized_weight())
    assert not quantization_error_norms(layer, torch.zeros(1, 20))


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_packed_weights_have_no_error(bits: int, tmp_path: Path) -> None:
    model = nn.Sequential(QuantLinear(20, 20, precision=Precision(bits, 4))).eval()
    assert quantization_error_norms(model, torch.zeros(1, 20))
    save_packed(model, tmp_path / "weights.safetensors")
    load_packed(model, tmp_path / "weights.safetensors")
    assert len(list(quantized_layers(model))) == 1
    assert not quantization_error_norms(model, torch.zeros(1, 20))
