"""Classes that compute as a known layer, and classes that only look as if they did."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.convert.layers import quantized_class, unsupported_reason
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Empty(nn.Linear):
    """Nothing of its own."""


class Written(nn.Linear):
    """The same product, written out."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Dense(nn.Module):
    """A linear layer that is not derived from torch's."""

    def __init__(self, inputs: int, outputs: int, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / 4)
        self.bias = nn.Parameter(torch.randn(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


class Circular(nn.Conv2d):
    """A convolution that calls its parent's helper."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.weight, self.bias)


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (timm.layers.Linear(4, 3), QuantLinear),
        (timm.layers.Linear(4, 3, bias=False), QuantLinear),
        (Empty(4, 3), QuantLinear),
        (Written(4, 3), QuantLinear),
        (Dense(4, 3), QuantLinear),
        (Dense(4, 3, bias=False), QuantLinear),
        (nn.modules.linear.NonDynamicallyQuantizableLinear(4, 3), QuantLinear),
        (Circular(4, 6, 3, stride=2, padding=1, dilation=2, padding_mode="circular"), QuantConv2d),
        (Circular(4, 6, (1, 3), groups=2), QuantConv2d),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_layers_that_compute_as_a_known_one_are_accepted(layer: nn.Module, expected: type[QuantizedLayer]) -> None:
    assert quantized_class(layer) is expected
    assert unsupported_reason(layer) == ""


class Relu(nn.Linear):
    """Another function for negative outputs."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


class Clamped(nn.Linear):
    """Another function for large inputs only."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp(-6, 6))


class Saturating(nn.Linear):
    """Another function for very large inputs only."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.clamp(-1000, 1000))


class Thresholding(nn.Linear):
    """Another function for very small inputs only."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.hardshrink(input, 1e-3))


class Noisy(nn.Linear):
    """Another function in training mode only."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(F.dropout(input, 0.5, self.training))


class Masked(nn.Linear):
    """The same function until the mask is set."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.register_buffer("mask", torch.ones(self.out_features, 1))

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight * self.mask, self.bias)


class LowRank(nn.Linear):
    """The same function until the added factors are trained."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.down = nn.Parameter(torch.randn(2, self.in_features))
        self.up = nn.Parameter(torch.zeros(self.out_features, 2))

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + input @ self.down.T @ self.up.T


class Transposed(Dense):
    """The weights the other way round."""

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + (0 if self.bias is None else self.bias)


class Picky(nn.Linear):
    """A forward pass that rejects what it does not know."""

    def forward(self, input: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("kind", [Relu, Clamped, Saturating, Thresholding, Noisy, Masked, LowRank, Transposed, Picky])
def test_layers_that_compute_something_else_are_refused(kind: type[nn.Module]) -> None:
    layer: Any = kind(4, 4)
    before = dict(vars(layer))
    assert quantized_class(layer) is None
    assert unsupported_reason(layer) == f"{kind.__name__} has no quantized counterpart here"
    assert vars(layer) == before


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")  # by older releases of torch
def test_layers_without_weights_yet_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.LazyLinear(8), nn.Linear(8, 4))
    with pytest.raises(InputError, match=r"2 \(it has no weights before its first call.*once"):
        quantize_(model, "w4a4", activations="unsigned")
    model(IMAGES)
    assert len(quantize_(model, "w4a4", calibration=IMAGES).converted) == 1


def network(layer: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), layer, nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("kind", [timm.layers.Linear, Empty, Written, Dense])
def test_they_are_converted_as_the_known_layer(kind: Any) -> None:
    torch.manual_seed(1)
    model = network(kind(8, 8))
    plain = network(nn.Linear(8, 8))
    plain.load_state_dict(model.state_dict())
    report = quantize_(model, "w4a4", calibration=IMAGES)
    quantize_(plain, "w4a4", calibration=IMAGES)
    assert [(layer.name, layer.kind) for layer in report.converted] == [("3", kind.__name__)]
    assert torch.equal(model(IMAGES), plain(IMAGES))
    assert str(model) == str(plain)
    assert torch.equal(copy.deepcopy(model)(IMAGES), plain(IMAGES))


class CalledByName(nn.Module):
    """A network that gives a layer its input by the keyword of the layer's own class."""

    def __init__(self, inner: nn.Module, keyword: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.inner, self.last = nn.Conv2d(3, 8, 3), inner, nn.LazyLinear(4)
        self.keyword = keyword
        self(IMAGES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        hidden = hidden if isinstance(self.inner, nn.Conv2d) else hidden.mean((2, 3))
        return self.last(self.inner(**{self.keyword: hidden}).flatten(1))


class Convolution(nn.Conv2d):
    """A convolution with another name for its input."""

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features)


@pytest.mark.parametrize(
    ("make", "keyword"),
    [
        (lambda: Dense(8, 8), "x"),
        (lambda: Convolution(8, 8, 3), "features"),
        (lambda: timm.layers.Linear(8, 8), "input"),
        (lambda: timm.layers.Conv2dSame(8, 8, 3), "x"),
    ],
    ids=["linear", "convolution", "timm", "same"],
)
def test_a_converted_layer_is_called_by_the_keyword_of_its_former_class(make: Any, keyword: str) -> None:
    model = CalledByName(make(), keyword).eval()
    seen: list[Tensor] = []
    model.inner.register_forward_hook(lambda layer, inputs, output: seen.append(output))
    report = quantize_(model, "w4a4", calibration=IMAGES)
    assert [layer.name for layer in report.converted] == ["inner"]
    inner: Any = copy.deepcopy(model.inner)
    del seen[:]
    logits = model(IMAGES)
    hidden = model.first(IMAGES).relu()
    assert torch.equal(seen[0], inner(hidden if isinstance(inner, nn.Conv2d) else hidden.mean((2, 3))))
    assert torch.equal(copy.deepcopy(model)(IMAGES), logits)
    torch.testing.assert_close(to_integer(model)(IMAGES), logits)


def test_other_keywords_of_a_layer_are_not_dropped_silently() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return super().forward(scale * x)

    class Calls(CalledByName):
        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.inner(x=self.first(x).relu().mean((2, 3)), scale=2.0))

    model = Calls(Scaled(8, 8), "x").eval()
    expected = model(IMAGES)
    with pytest.raises(InputError, match=r"unexpected keyword argument 'scale'.*layers="):
        quantize_(model, "w4a4", calibration=IMAGES)
    assert type(model.inner) is Scaled
    assert not model.inner._forward_pre_hooks
    assert torch.equal(model(IMAGES), expected)


class Named(nn.Linear):
    """A linear layer with a method that its network needs."""

    def row_sums(self) -> Tensor:
        return self.weight.sum(1)


class Uses(nn.Module):
    """A network that calls a method which a quantized layer does not have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(108, 8), Named(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(self.first(x.flatten(1)))
        return self.last(hidden + self.inner.row_sums())


def test_a_network_that_needs_the_class_of_its_layer_is_refused_and_stays_as_it_is() -> None:
    model = Uses().eval()
    expected = model(IMAGES)
    with pytest.raises(InputError, match=r"row_sums.*layers="):
        quantize_(model, "w4a4", calibration=IMAGES)
    assert type(model.inner) is Named
    assert torch.equal(model(IMAGES), expected)
