"""Conversion in place: what changes and what stays, selection of layers, signs of inputs, calibration, reports."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.models.activations import SignedActivationQuantizer
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.convert.probe import recalibrate_
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import LayerSelection
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, quantized_layers
from empir_plugin.models.quantize import Precision


class ByKeyword(nn.Sequential):
    """Modules one after the other, each called with its input as keyword."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(input=x)
        return x


# -- What changes and what stays


@pytest.mark.parametrize("activations", ["auto", "pact"])
def test_layers_called_by_keyword_are_converted_as_others(toys: ModuleType, activations: str) -> None:
    model, called = toys.network(), ByKeyword(*toys.network())
    report = quantize_(model, "w4a4", calibration=toys.IMAGES, activations=activations)
    found = quantize_(called, "w4a4", calibration=toys.IMAGES, activations=activations)
    assert [layer.name for layer in found.converted] == ["3", "5"]
    assert found.converted == report.converted
    assert torch.equal(called(toys.IMAGES), model(toys.IMAGES))


def test_the_result_is_the_network_written_with_quantized_layers(toys: ModuleType) -> None:
    model, full = toys.network(norm=False), toys.network(norm=False)
    quantize_(model, "w2a4", scale="none", activations="unsigned")
    precision = Precision.parse("w2a4")
    conv = QuantConv2d(6, 6, 3, bias=False, precision=precision)
    linear = QuantLinear(96, 12, precision=precision)
    written = nn.Sequential(full[0], full[1], full[2], conv, full[4], linear, full[6])
    written.load_state_dict(full.state_dict())
    assert torch.equal(model(toys.IMAGES), written(toys.IMAGES))
    assert str(model) == str(written)
    assert not torch.equal(model(toys.IMAGES), full(toys.IMAGES))


@pytest.mark.parametrize("activations", ["auto", "unsigned", "signed"])
def test_names_parameters_and_hooks_stay(toys: ModuleType, activations: str) -> None:
    model, full = toys.network(), toys.network()
    parameters = dict(model.named_parameters())
    seen: list[nn.Module] = []
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(module))
    quantize_(model, "w4a4", activations=activations, calibration=toys.IMAGES)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == list(full.state_dict())
    model.load_state_dict(full.state_dict(), strict=True)
    full.load_state_dict(model.state_dict(), strict=True)
    seen.clear()
    model(toys.IMAGES)
    assert seen == [model[3]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activations", ["auto", "pact"])
def test_other_precisions_compute_in_their_own_type_with_exact_levels(
    toys: ModuleType, dtype: torch.dtype, activations: str
) -> None:
    model, reference = toys.network(norm=False).to(dtype), toys.network(norm=False).to(dtype).float()
    images = toys.IMAGES.to(dtype)
    quantize_(model, "w4a4", calibration=images, activations=activations)
    quantize_(reference, "w4a4", calibration=images.float(), activations=activations)
    assert model(images).dtype == dtype
    for layer, exact in zip(model, reference, strict=True):
        if isinstance(layer, QuantizedLayer):
            assert isinstance(exact, QuantizedLayer)
            torch.testing.assert_close(layer.quantized_weight().float(), exact.quantized_weight())
            x = torch.rand(4, 6, 3, 3) if isinstance(layer, nn.Conv2d) else torch.rand(4, 96)
            torch.testing.assert_close(layer(x.to(dtype)), exact(x.to(dtype).float()).to(dtype), rtol=0.02, atol=0.002)


@pytest.mark.parametrize("settings", [{}, {"activations": "pact"}, {"one_bit": "bnn"}, {"one_bit": "xnor"}], ids=str)
def test_copies_and_pickles_compute_the_same(toys: ModuleType, settings: dict[str, Any]) -> None:
    model = toys.network()
    quantize_(model, "w1a1" if "one_bit" in settings else "w4a4", calibration=toys.IMAGES, **settings)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(toys.IMAGES), model(toys.IMAGES))
        assert str(other) == str(model)


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.parametrize(
    "settings",
    [
        {},
        pytest.param({"activations": "pact"}, marks=pytest.mark.slow),
        pytest.param({"one_bit": "bnn"}, marks=pytest.mark.slow),
    ],
    ids=str,
)
@pytest.mark.skipif(torch.__version__.startswith("2.5."), reason="no torch.compile with setup_context there")
def test_export_and_compile_have_one_graph(toys: ModuleType, settings: dict[str, Any]) -> None:
    model = toys.network()
    quantize_(model, "w1a1" if "one_bit" in settings else "w2a2", calibration=toys.IMAGES, **settings)
    expected = model(toys.IMAGES)
    assert torch.equal(torch.export.export(model, (toys.IMAGES,)).module()(toys.IMAGES), expected)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(toys.IMAGES), expected)
    x = toys.IMAGES.clone().requires_grad_(True)
    slopes = [torch.autograd.grad(each(x).square().sum(), x)[0] for each in (model, compiled)]
    assert torch.equal(*slopes)
    assert bool(slopes[0].any())


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.slow
def test_inductor_compiles_it(toys: ModuleType) -> None:
    model = toys.network()
    quantize_(model, "w4a4", calibration=toys.IMAGES)
    compiled: Any = torch.compile(model, fullgraph=True)
    assert bool((compiled(toys.IMAGES).argmax(1) == model(toys.IMAGES).argmax(1)).all())


def test_32_bit_inputs_need_no_images(toys: ModuleType) -> None:
    model, full = toys.network(), toys.network()
    report = quantize_(model, "w8")
    assert report.looked_at == ""
    assert "whether the network calls each of them is not known" in str(report)
    assert (model(toys.IMAGES) - full(toys.IMAGES)).norm() < 0.2 * full(toys.IMAGES).norm()
    assert all(isinstance(layer, QuantizedLayer) for _, layer in quantized_layers(model))


@pytest.mark.parametrize("output", [lambda y: (y, None), lambda y: {"logits": y}, lambda y: y.to(torch.complex64)])
def test_what_a_network_returns_does_not_matter(toys: ModuleType, output: Callable[[Tensor], object]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = toys.network()

        def forward(self, x: Tensor) -> object:
            return output(self.network(x))

    report = quantize_(Net(), "w4a4", calibration=toys.IMAGES)
    assert report.converted[0].name == "network.3"


# -- Which layers


@pytest.mark.parametrize(
    ("layers", "converted"),
    [
        ("inner", ["3", "5"]),
        ("all", ["0", "3", "5", "6"]),
        (LayerSelection(first=True), ["0", "3", "5"]),
        (LayerSelection(last=True), ["3", "5", "6"]),
        (["3"], ["3"]),
        ("[05]", ["0", "5"]),
    ],
    ids=str,
)
def test_layers_are_chosen_and_the_others_are_reported(toys: ModuleType, layers: Any, converted: list[str]) -> None:
    model = toys.network()
    report = quantize_(model, "w4a4", layers=layers, calibration=toys.IMAGES)
    assert [name for name, _ in quantized_layers(model)] == converted
    assert [layer.name for layer in report.converted] == converted
    assert {layer.name for layer in report.kept} == {"0", "3", "5", "6"} - set(converted)
    weights = {"0": 162, "3": 324, "5": 1152, "6": 48}
    assert report.quantized_weights == sum(weights[name] for name in converted)
    assert report.quantized_share == report.quantized_weights / sum(weights.values())
    assert report.other_parameters == sum(p.numel() for p in model.parameters()) - sum(weights.values())


def test_the_released_cifarconv_is_reached_by_naming_layers() -> None:
    torch.manual_seed(0)
    model, released = CIFARConv(), CIFARConv(Precision.parse("w4a2"))
    released.load_state_dict(model.state_dict())
    report = quantize_(model, "w4a2", scale="none", activations="unsigned", layers=["conv*"])
    x = torch.rand(2, 3, 32, 32)
    assert torch.equal(model(x), released(x))
    assert [layer.reason for layer in report.kept] == ["not among layers="] * 2


def test_first_and_last_follow_default_cfg(toys: ModuleType) -> None:
    model: Any = toys.network()
    model.default_cfg = {"first_conv": "3", "classifier": ("5", "6"), "input_size": (3, 8, 8)}
    report = quantize_(model, "w4a4")
    assert [layer.name for layer in report.converted] == ["0"]
    kept = [(layer.name, layer.reason) for layer in report.kept]
    assert kept == [("3", "first layer"), ("5", "last layer"), ("6", "last layer")]
    assert report.looked_at == "noise"


class Excited(nn.Module):
    """A depthwise convolution and a squeeze-excite block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, groups=4)
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.pointwise, self.head = nn.Conv2d(4, 5, 1), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.stem(x))
        return self.head(self.pointwise(x * self.se(x)).mean((2, 3)))


def test_depthwise_and_squeeze_excite_are_not_quantized_by_default(toys: ModuleType) -> None:
    report = quantize_(Excited(), "w4a4", calibration=toys.IMAGES)
    reasons = {layer.name: layer.reason for layer in report.kept}
    expected = {"stem": "first layer", "depthwise": "depthwise", "se.1": "squeeze-excite", "head": "last layer"}
    assert reasons == expected
    assert [layer.name for layer in report.converted] == ["pointwise"]
    both = quantize_(
        Excited(), "w4a4", layers=LayerSelection(depthwise=True, squeeze_excite=True), calibration=toys.IMAGES
    )
    assert [layer.name for layer in both.converted] == ["depthwise", "se.1", "pointwise"]


def test_the_report_as_text_names_every_group(toys: ModuleType) -> None:
    text = str(quantize_(Excited(), "w4a4", calibration=toys.IMAGES))
    assert text.startswith("Excited: 1 layers at w4a4, scale max: 20 weights, 21.3 % of those in layers")
    assert all(word in text for word in ("first layer: 1", "depthwise: 1", "squeeze-excite: 1", "last layer: 1"))


# -- Signs and ranges


@pytest.mark.parametrize(
    ("act", "signs"), [(nn.ReLU(), ["unsigned", "signed"]), (nn.GELU(), ["signed", "signed"])], ids=["relu", "gelu"]
)
def test_the_sign_of_each_input_is_decided_and_recorded(toys: ModuleType, act: nn.Module, signs: list[str]) -> None:
    model = toys.network(act=act)
    report = quantize_(model, "w4a4", calibration=toys.IMAGES)
    assert [layer.activations for layer in report.converted] == signs
    shares = [layer.negative for layer in report.converted]
    assert [share is not None and share > 0.01 for share in shares] == [sign == "signed" for sign in signs]
    found = [isinstance(each.activation_quantizer, SignedActivationQuantizer) for _, each in quantized_layers(model)]
    assert found == [sign == "signed" for sign in signs]


def test_only_layers_that_differ_say_so(toys: ModuleType) -> None:
    model = toys.network()
    quantize_(model, "w4a4", calibration=toys.IMAGES)
    assert str(model[3]) == "QuantConv2d(6, 6, kernel_size=(3, 3), stride=(1, 1), bias=False, precision=w4a4)"
    assert str(model[5]).endswith("precision=w4a4, activations=signed)")


def test_probing_changes_nothing(toys: ModuleType) -> None:
    model, untouched = toys.network(), toys.network()
    model.train()
    quantize_(model, "w4a4", activations="auto", layers=["3"], calibration=toys.IMAGES)
    assert model.training
    assert model[1].training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_a_learned_range_starts_at_the_quantile_and_learns(toys: ModuleType) -> None:
    model = toys.network()
    report = quantize_(model, "w4a4", activations="pact", calibration=toys.IMAGES)
    layers: list[Any] = [layer for _, layer in quantized_layers(model)]
    bounds = [layer.activation_bound.item() for layer in layers]
    assert [line.bound for line in report.converted] == bounds
    assert all(0 < bound != 1 for bound in bounds)
    seen: list[Tensor] = []
    model[3].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(toys.IMAGES)
    assert bounds[0] == pytest.approx(torch.quantile(seen[0].flatten(), 0.999).item(), rel=0.02)
    model(3 * toys.IMAGES).square().sum().backward()
    assert all(layer.activation_bound.grad.abs() > 0 for layer in layers)


def test_a_learned_range_without_calibration_starts_at_one(toys: ModuleType) -> None:
    model: Any = toys.network()
    model.default_cfg = {"input_size": (3, 8, 8)}
    report = quantize_(model, "w4a4", activations="pact")
    assert [line.bound for line in report.converted] == [1.0, 1.0]


def test_full_precision_weights_load_strictly_into_learned_ranges(toys: ModuleType) -> None:
    model, full = toys.network(), toys.network()
    quantize_(model, "w4a4", activations="pact", calibration=toys.IMAGES)
    bounds = [key for key in model.state_dict() if key.endswith("activation_bound")]
    assert bounds == ["3.activation_bound", "5.activation_bound"]
    before = model.state_dict()[bounds[0]].clone()
    model.load_state_dict(full.state_dict(), strict=True)
    assert torch.equal(model.state_dict()[bounds[0]], before)
    other = toys.network()
    quantize_(other, "w4a4", activations="pact", calibration=2 * toys.IMAGES)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.state_dict()[bounds[0]], before)


# -- Batch normalisation


def test_batch_normalisations_are_calibrated_for_the_new_precision(toys: ModuleType) -> None:
    model = toys.network()
    quantize_(model, "w2a2", layers="all", scale="none", activations="unsigned")
    stale = model[1].running_mean.clone()
    assert recalibrate_(model, toys.IMAGES) == 1
    inputs = model[0](toys.IMAGES)
    torch.testing.assert_close(model[1].running_mean, inputs.mean((0, 2, 3)).detach())
    torch.testing.assert_close(model[1].running_var, inputs.transpose(0, 1).flatten(1).var(1).detach())
    assert not torch.equal(model[1].running_mean, stale)
    assert model[1].momentum == 0.1
    assert not model[1].training


def test_calibration_restores_what_a_converted_network_gives(toys: ModuleType) -> None:
    full, model = toys.network(), toys.network()
    recalibrate_(full, toys.IMAGES)
    report = quantize_(model, "w8a8", calibration=toys.IMAGES)
    assert report.recalibrated == 1
    apart = (model(toys.IMAGES) - full(toys.IMAGES)).norm() / full(toys.IMAGES).norm()
    assert apart < 0.3
    untuned = toys.network()
    quantize_(untuned, "w8a8", activations="signed")
    assert (untuned(toys.IMAGES) - full(toys.IMAGES)).norm() / full(toys.IMAGES).norm() > 2 * apart


# -- Attention


def _attending(model: nn.Sequential, kind: str) -> nn.Sequential:
    """A network with a part whose class has that name."""
    model.insert(4, type(kind, (nn.Identity,), {})())
    return model


@pytest.mark.parametrize(
    "kind",
    ["Attention", "ClassAttn", "Attention2d", "XCA", "AttentionDownsample", "MobileAttention", "WindowAttentionV2"],
)
def test_attention_is_recognised_by_the_name_of_its_class(toys: ModuleType, kind: str) -> None:
    assert quantize_(_attending(toys.network(), kind), "w4a4", calibration=toys.IMAGES).attention == ("4",)


@pytest.mark.parametrize("kind", ["FlattenAttention", "AttentionBlock", "XCABlock", "Identity", "Flatten"])
def test_modules_that_only_contain_attention_are_not_listed(toys: ModuleType, kind: str) -> None:
    assert quantize_(_attending(toys.network(), kind), "w4a4", calibration=toys.IMAGES).attention == ()
