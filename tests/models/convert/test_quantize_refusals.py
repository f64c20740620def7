"""Conversions that are refused or fail half-way leave the network as it was, and say what is wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from empir_plugin.errors import InputError
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.layers import QuantizedLayer, quantized_layers
from empir_plugin.models.quantize import Precision

# -- Failing half-way


def fingerprint(model: nn.Module, images: Tensor) -> list[Any]:
    return [str(model), *(value.clone() for value in model.state_dict().values()), model(images).detach()]


def same(after: list[Any], before: list[Any]) -> bool:
    return after[0] == before[0] and all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))


class FailsOnceConverted(nn.Module):
    """Passes its input on, but fails at one of the calls after a layer has become a quantized one."""

    def __init__(self, call: int, error: BaseException) -> None:
        super().__init__()
        self.left, self.error, self.watched = call, error, [nn.Module()]

    def forward(self, x: Tensor) -> Tensor:
        self.left -= (converted := isinstance(self.watched[0], QuantizedLayer))
        if converted and not self.left:
            raise self.error
        return x


# A converted network is tried, then called to start ranges if they are learned, and then to calibrate.
@pytest.mark.parametrize(("activations", "call"), [("auto", 1), ("auto", 2), ("unsigned", 2), ("pact", 2), ("pact", 3)])
@pytest.mark.parametrize("error", [RuntimeError("full"), TypeError("odd"), KeyboardInterrupt("stop")], ids=repr)
def test_a_conversion_that_fails_half_way_is_undone(
    toys: ModuleType, activations: str, error: BaseException, call: int
) -> None:
    model = toys.network(act=(failing := FailsOnceConverted(call, error)))
    failing.watched[0] = model[3]
    layers = [(layer, type(layer), {*vars(layer)}, {*layer._parameters}) for layer in model.modules()]
    state = copy.deepcopy(model.state_dict())
    with pytest.raises((InputError, type(error)), match=str(error)):
        quantize_(model, "w4a4", calibration=toys.IMAGES, activations=activations)
    assert [(x, type(x), {*vars(x)}, {*x._parameters}) for x in model.modules()] == layers
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(quantize_(model, "w4a4", calibration=toys.IMAGES, activations=activations).converted) == 2


class FailsLate(nn.Sequential):
    """Runs with its own layers, and fails with quantized ones: at once, or on more than two images."""

    def __init__(self, network: nn.Sequential, most: int) -> None:
        super().__init__(*network)
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if type(self[3]) is not nn.Conv2d and len(x) > self.most:
            raise ValueError("no convolution")
        return super().forward(x)


@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("activations", ["auto", "pact"])
def test_a_failure_with_quantized_layers_is_not_blamed_on_the_images(
    toys: ModuleType, most: int, activations: str
) -> None:
    model = FailsLate(toys.network(), most)
    before, hooks = fingerprint(model, toys.IMAGES), len(model[3]._forward_pre_hooks)
    with pytest.raises(
        InputError, match=r"FailsLate .*not with quantized ones \(ValueError: no convolution\).*layers="
    ) as error:
        quantize_(model, "w4a4", activations=activations, calibration=toys.IMAGES)
    assert "does not take images" not in str(error.value)
    assert same(fingerprint(model, toys.IMAGES), before)
    assert len(model[3]._forward_pre_hooks) == hooks
    assert model[1].momentum == 0.1


# -- Refusals


class Functional(nn.Module):
    """Applies a layer's weights without calling the layer, as some transformers do."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Linear(3, 3) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x.mean((2, 3)))
        return self.d(self.c(nn.functional.linear(x, self.b.weight)))


def attention() -> nn.Module:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.attn, self.c, self.d = (
                nn.Linear(3, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 4), nn.Linear(4, 2),
            )  # fmt: skip

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x.mean((2, 3)))
            return self.d(self.c(self.attn(x, x, x)[0]))

    return Attending()


class _MyConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


def subclassed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), _MyConv(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(256, 2))


def normed() -> nn.Module:
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    return nn.Sequential(nn.Conv2d(3, 4, 1), conv, nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(256, 2))


def quantized_elsewhere() -> nn.Module:
    """With a weight of another class of tensors, as torchao makes them; torch brings a small one for its tests."""
    model = subclassed()
    weight = torch.randn(4, 4, 1, 1)
    model[1] = nn.Conv2d(4, 4, 1)
    model[1].weight = nn.Parameter(TwoTensor(weight, weight), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("make", "name", "reason"),
    [
        (Functional, "b", "the network never calls it"),
        (attention, "attn", "it applies its weights without calling its layers"),
        (subclassed, "1", "_MyConv has no quantized counterpart"),
        (normed, "1", "its weight is recomputed from other parameters"),
        (quantized_elsewhere, "1", "its weight is a TwoTensor, which another library may have quantized"),
    ],
    ids=["functional", "attention", "subclass", "weight-norm", "tensor-subclass"],
)
def test_a_layer_that_cannot_be_quantized_is_refused(
    toys: ModuleType, make: Callable[[], Any], name: str, reason: str
) -> None:
    model = make().eval()
    before = fingerprint(model, toys.IMAGES)
    with pytest.raises(InputError, match=rf"cannot be quantized: {name} \({reason}"):
        quantize_(model, "w4a4", calibration=toys.IMAGES)
    assert same(fingerprint(model, toys.IMAGES), before)
    report = quantize_(model, "w4a4", calibration=toys.IMAGES, allow_unsupported=True)
    left = {layer.name: layer for layer in report.kept}
    assert reason in left[name].reason
    assert left[name].weights > 0
    assert not any(each.startswith(name) for each, _ in quantized_layers(model))
    assert len(report.converted) == 1


@pytest.mark.parametrize(
    ("precision", "settings", "message"),
    [
        ("w9a4", {}, "weight_bits .*1 to 8, or 32.* 9"),
        ("four", {}, "'fp', 'w2a4' or 'w4'.*'four'"),
        ("fp", {}, "precision 'fp' .*such as 'w4a4'"),
        ("w4a4", {"scale": "sat"}, "scale .*none, max, mean.*'sat'"),
        ("w4a4", {"activations": "relu"}, "activations .*signed, pact.*'relu'"),
        ("w4a4", {"one_bit": "bnn"}, "one_bit='bnn' .*w4a4"),
        ("w1a1", {"one_bit": "bnn", "activations": "pact"}, "1-bit inputs by their sign.*'pact'"),
        ("w4a4", {"layers": ["7"]}, "'7'.* 0, 3, 5, 6"),
        ("w4a4", {}, "activations='auto' .*Sequential.*pass calibration=images"),
    ],
)
def test_impossible_settings_are_refused(
    toys: ModuleType, precision: str, settings: dict[str, Any], message: str
) -> None:
    model = toys.network()
    before = fingerprint(model, toys.IMAGES)
    with pytest.raises(InputError, match=message):
        quantize_(model, precision, **settings)
    assert same(fingerprint(model, toys.IMAGES), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images: images[0], r"images \(N, C, H, W\), got torch.float32 of shape \(3, 8, 8\)"),
        (lambda images: (255 * images).byte(), "must be a float tensor"),
        (lambda images: images[:1], "calibration .*two images.* 1:"),
        (lambda images: images / 0, "calibration .*not finite.*\\[0, 1\\]"),
        (lambda images: images[:, :1], r"does not take images of shape \(8, 1, 8, 8\)"),
        (lambda images: torch.rand(2, 3, 9, 9), r"does not take images of shape \(2, 3, 9, 9\)"),
    ],
)
def test_impossible_images_are_refused(toys: ModuleType, change: Callable[[Tensor], Tensor], message: str) -> None:
    model = toys.network()
    before = fingerprint(model, toys.IMAGES)
    with pytest.raises(InputError, match=message):
        quantize_(model, "w4a4", calibration=change(toys.IMAGES))
    assert same(fingerprint(model, toys.IMAGES), before)


@pytest.mark.parametrize("make", [lambda: nn.Flatten(), lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))])
def test_nothing_to_quantize_is_an_error(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError, match="nothing to quantize in"):
        quantize_(make(), "w4a4", activations="unsigned")


class Wrapped(nn.Module):
    """A network with a function before it."""

    def __init__(self, network: nn.Module, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.function = network, function

    def forward(self, x: Tensor) -> Tensor:
        return self.network(self.function(x))


def raising(x: Tensor) -> Tensor:
    raise KeyError("\x1b[31mstage4\x1b[0m")


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "in-place normalisation": (lambda x: x.sub_(0.5).div_(0.25), r"writes to its input.*x = x - mean"),
    "a clip in place": (lambda x: x.clamp_(0.2, 0.8), r"writes to its input"),
    "behind autograd's back": (lambda x: (x.data.mul_(0.5), x)[1], r"writes to its input"),
    "an error of its own": (raising, r"Wrapped does not take images.*it fails with KeyError: 'stage4'$"),
    "a missing attribute": (lambda x: x.nothing, r"it fails with AttributeError: 'Tensor' object has no"),  # type: ignore[attr-defined]
}


@pytest.mark.parametrize(("function", "sentence"), REFUSED.values(), ids=REFUSED)
def test_a_network_that_fails_or_writes_to_its_input(
    toys: ModuleType, function: Callable[[Tensor], Tensor], sentence: str
) -> None:
    model, given = Wrapped(toys.network(), function), toys.IMAGES.clone()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=sentence):
        quantize_(model, "w4a4", calibration=given)
    assert torch.equal(given, toys.IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(quantized_layers(model))


def test_weights_made_inside_inference_mode_are_named(toys: ModuleType) -> None:
    with torch.inference_mode():
        model = toys.network()
    with pytest.raises(InputError, match=r"0\.weight was made inside torch\.inference_mode\(\).*copy\.deepcopy"):
        quantize_(model, "w4a4", calibration=toys.IMAGES)
    assert quantize_(copy.deepcopy(model), "w4a4", calibration=toys.IMAGES).converted


def test_layers_out_of_sight_are_no_layers(toys: ModuleType) -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [toys.network()]

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[0](x)

    with pytest.raises(InputError, match=r"nothing to quantize in Hidden \(no submodule is a layer\)"):
        quantize_(Hidden(), "w4a4", calibration=toys.IMAGES)


def test_a_network_is_not_quantized_twice(toys: ModuleType) -> None:
    model = toys.network()
    quantize_(model, "w4a4", calibration=toys.IMAGES)
    with pytest.raises(InputError, match="3 is quantized already"):
        quantize_(model, "w2a2", calibration=toys.IMAGES)
    with pytest.raises(InputError, match="conv1 is quantized already"):
        quantize_(CIFARConv(Precision.parse("w4a2")), "w2a2")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_weights_of_other_types_are_refused_by_type(toys: ModuleType, dtype: torch.dtype) -> None:
    model = toys.network()
    model[3].weight = nn.Parameter(model[3].weight.to(dtype), requires_grad=False)
    with pytest.raises(InputError, match=f"3 .*{dtype}.*allow_unsupported"):
        quantize_(model, "w4a4", calibration=toys.IMAGES)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_that_torch_has_quantized_are_refused_by_name(toys: ModuleType) -> None:
    model = torch.ao.quantization.quantize_dynamic(toys.network(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(InputError, match=r"5 \(torch has quantized it already\).*allow_unsupported"):
        quantize_(model, "w4a4", calibration=toys.IMAGES)
    report = quantize_(model, "w4a4", calibration=toys.IMAGES, allow_unsupported=True)
    assert [layer.name for layer in report.converted] == ["3"]
