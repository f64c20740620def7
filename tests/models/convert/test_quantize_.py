"""Conversion in place: selection of layers, signs of inputs, calibration, reports and errors."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from empir_plugin.errors import InputError
from empir_plugin.models.activations import SignedActivationQuantizer
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.convert.probe import recalibrate_
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import LayerSelection
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, quantized_layers
from empir_plugin.models.quantize import Precision

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Network = nn.Sequential


def network(*, norm: bool = True, act: nn.Module | None = None) -> Network:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        act or nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False),
        nn.Flatten(),
        nn.Linear(96, 12),
        nn.Linear(12, 4),
    ).eval()


def fingerprint(model: nn.Module) -> list[Any]:
    return [str(model), *(value.clone() for value in model.state_dict().values()), model(IMAGES).detach()]


def unchanged(model: nn.Module, before: list[Any]) -> bool:
    after = fingerprint(model)
    return after[0] == before[0] and all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))


class ByKeyword(nn.Sequential):
    """Modules one after the other, each called with its input as keyword."""

    def forward(self, x: Tensor) -> Tensor:
        for module in self:
            x = module(input=x)
        return x


# -- Failing half-way, and other types


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
def test_a_conversion_that_fails_half_way_is_undone(activations: str, error: BaseException, call: int) -> None:
    model = network(act=(failing := FailsOnceConverted(call, error)))
    failing.watched[0] = model[3]
    layers = [(layer, type(layer), {*vars(layer)}, {*layer._parameters}) for layer in model.modules()]
    state = copy.deepcopy(model.state_dict())
    with pytest.raises((InputError, type(error)), match=str(error)):
        quantize_(model, "w4a4", calibration=IMAGES, activations=activations)
    assert [(x, type(x), {*vars(x)}, {*x._parameters}) for x in model.modules()] == layers
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert len(quantize_(model, "w4a4", calibration=IMAGES, activations=activations).converted) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("activations", ["auto", "pact"])
def test_other_precisions_compute_in_their_own_type_with_exact_levels(dtype: torch.dtype, activations: str) -> None:
    model, reference = network(norm=False).to(dtype), network(norm=False).to(dtype).float()
    images = IMAGES.to(dtype)
    quantize_(model, "w4a4", calibration=images, activations=activations)
    quantize_(reference, "w4a4", calibration=images.float(), activations=activations)
    assert model(images).dtype == dtype
    for layer, exact in zip(model, reference, strict=True):
        if isinstance(layer, QuantizedLayer):
            assert isinstance(exact, QuantizedLayer)
            torch.testing.assert_close(layer.quantized_weight().float(), exact.quantized_weight())
            x = torch.rand(4, 6, 3, 3) if isinstance(layer, nn.Conv2d) else torch.rand(4, 96)
            torch.testing.assert_close(layer(x.to(dtype)), exact(x.to(dtype).float()).to(dtype), rtol=0.02, atol=0.002)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_weights_of_other_types_are_refused_by_type(dtype: torch.dtype) -> None:
    model = network()
    model[3].weight = nn.Parameter(model[3].weight.to(dtype), requires_grad=False)
    with pytest.raises(InputError, match=f"3 .*{dtype}.*allow_unsupported"):
        quantize_(model, "w4a4", calibration=IMAGES)


# -- What changes and what stays


@pytest.mark.parametrize("activations", ["auto", "pact"])
def test_layers_called_by_keyword_are_converted_as_others(activations: str) -> None:
    model, called = network(), ByKeyword(*network())
    report = quantize_(model, "w4a4", calibration=IMAGES, activations=activations)
    found = quantize_(called, "w4a4", calibration=IMAGES, activations=activations)
    assert [layer.name for layer in found.converted] == ["3", "5"]
    assert found.converted == report.converted
    assert torch.equal(called(IMAGES), model(IMAGES))


def test_the_result_is_the_network_written_with_quantized_layers() -> None:
    model, full = network(norm=False), network(norm=False)
    quantize_(model, "w2a4", scale="none", activations="unsigned")
    precision = Precision.parse("w2a4")
    conv = QuantConv2d(6, 6, 3, bias=False, precision=precision)
    linear = QuantLinear(96, 12, precision=precision)
    written = nn.Sequential(full[0], full[1], full[2], conv, full[4], linear, full[6])
    written.load_state_dict(full.state_dict())
    assert torch.equal(model(IMAGES), written(IMAGES))
    assert str(model) == str(written)
    assert not torch.equal(model(IMAGES), full(IMAGES))


@pytest.mark.parametrize("activations", ["auto", "unsigned", "signed"])
def test_names_parameters_and_hooks_stay(activations: str) -> None:
    model, full = network(), network()
    parameters = dict(model.named_parameters())
    seen: list[nn.Module] = []
    model[3].register_forward_hook(lambda module, inputs, output: seen.append(module))
    quantize_(model, "w4a4", activations=activations, calibration=IMAGES)
    assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
    assert list(model.state_dict()) == list(full.state_dict())
    model.load_state_dict(full.state_dict(), strict=True)
    full.load_state_dict(model.state_dict(), strict=True)
    seen.clear()
    model(IMAGES)
    assert seen == [model[3]]


@pytest.mark.parametrize("settings", [{}, {"activations": "pact"}, {"one_bit": "bnn"}, {"one_bit": "xnor"}], ids=str)
def test_copies_and_pickles_compute_the_same(settings: dict[str, Any]) -> None:
    model = network()
    quantize_(model, "w1a1" if "one_bit" in settings else "w4a4", calibration=IMAGES, **settings)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IMAGES), model(IMAGES))
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
def test_export_and_compile_have_one_graph(settings: dict[str, Any]) -> None:
    model = network()
    quantize_(model, "w1a1" if "one_bit" in settings else "w2a2", calibration=IMAGES, **settings)
    expected = model(IMAGES)
    assert torch.equal(torch.export.export(model, (IMAGES,)).module()(IMAGES), expected)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(IMAGES), expected)
    x = IMAGES.clone().requires_grad_(True)
    slopes = [torch.autograd.grad(each(x).square().sum(), x)[0] for each in (model, compiled)]
    assert torch.equal(*slopes)
    assert bool(slopes[0].any())


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.slow
def test_inductor_compiles_it() -> None:
    model = network()
    quantize_(model, "w4a4", calibration=IMAGES)
    compiled: Any = torch.compile(model, fullgraph=True)
    assert bool((compiled(IMAGES).argmax(1) == model(IMAGES).argmax(1)).all())


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
def test_layers_are_chosen_and_the_others_are_reported(layers: Any, converted: list[str]) -> None:
    model = network()
    report = quantize_(model, "w4a4", layers=layers, calibration=IMAGES)
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


def test_first_and_last_follow_default_cfg() -> None:
    model: Any = network()
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


def test_depthwise_and_squeeze_excite_are_not_quantized_by_default() -> None:
    report = quantize_(Excited(), "w4a4", calibration=IMAGES)
    reasons = {layer.name: layer.reason for layer in report.kept}
    expected = {"stem": "first layer", "depthwise": "depthwise", "se.1": "squeeze-excite", "head": "last layer"}
    assert reasons == expected
    assert [layer.name for layer in report.converted] == ["pointwise"]
    both = quantize_(Excited(), "w4a4", layers=LayerSelection(depthwise=True, squeeze_excite=True), calibration=IMAGES)
    assert [layer.name for layer in both.converted] == ["depthwise", "se.1", "pointwise"]


def test_the_report_as_text_names_every_group() -> None:
    text = str(quantize_(Excited(), "w4a4", calibration=IMAGES))
    assert text.startswith("Excited: 1 layers at w4a4, scale max: 20 weights, 21.3 % of those in layers")
    assert all(word in text for word in ("first layer: 1", "depthwise: 1", "squeeze-excite: 1", "last layer: 1"))


# -- Signs and ranges


@pytest.mark.parametrize(
    ("act", "signs"), [(nn.ReLU(), ["unsigned", "signed"]), (nn.GELU(), ["signed", "signed"])], ids=["relu", "gelu"]
)
def test_the_sign_of_each_input_is_decided_and_recorded(act: nn.Module, signs: list[str]) -> None:
    model = network(act=act)
    report = quantize_(model, "w4a4", calibration=IMAGES)
    assert [layer.activations for layer in report.converted] == signs
    shares = [layer.negative for layer in report.converted]
    assert [share is not None and share > 0.01 for share in shares] == [sign == "signed" for sign in signs]
    found = [isinstance(each.activation_quantizer, SignedActivationQuantizer) for _, each in quantized_layers(model)]
    assert found == [sign == "signed" for sign in signs]


def test_only_layers_that_differ_say_so() -> None:
    model = network()
    quantize_(model, "w4a4", calibration=IMAGES)
    assert str(model[3]) == "QuantConv2d(6, 6, kernel_size=(3, 3), stride=(1, 1), bias=False, precision=w4a4)"
    assert str(model[5]).endswith("precision=w4a4, activations=signed)")


def test_probing_changes_nothing() -> None:
    model, untouched = network(), network()
    model.train()
    quantize_(model, "w4a4", activations="auto", layers=["3"], calibration=IMAGES)
    assert model.training
    assert model[1].training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), untouched.parameters(), strict=True))


def test_a_learned_range_starts_at_the_quantile_and_learns() -> None:
    model = network()
    report = quantize_(model, "w4a4", activations="pact", calibration=IMAGES)
    layers: list[Any] = [layer for _, layer in quantized_layers(model)]
    bounds = [layer.activation_bound.item() for layer in layers]
    assert [line.bound for line in report.converted] == bounds
    assert all(0 < bound != 1 for bound in bounds)
    seen: list[Tensor] = []
    model[3].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(IMAGES)
    assert bounds[0] == pytest.approx(torch.quantile(seen[0].flatten(), 0.999).item(), rel=0.02)
    model(3 * IMAGES).square().sum().backward()
    assert all(layer.activation_bound.grad.abs() > 0 for layer in layers)


def test_a_learned_range_without_calibration_starts_at_one() -> None:
    model: Any = network()
    model.default_cfg = {"input_size": (3, 8, 8)}
    report = quantize_(model, "w4a4", activations="pact")
    assert [line.bound for line in report.converted] == [1.0, 1.0]


def test_full_precision_weights_load_strictly_into_learned_ranges() -> None:
    model, full = network(), network()
    quantize_(model, "w4a4", activations="pact", calibration=IMAGES)
    bounds = [key for key in model.state_dict() if key.endswith("activation_bound")]
    assert bounds == ["3.activation_bound", "5.activation_bound"]
    before = model.state_dict()[bounds[0]].clone()
    model.load_state_dict(full.state_dict(), strict=True)
    assert torch.equal(model.state_dict()[bounds[0]], before)
    other = network()
    quantize_(other, "w4a4", activations="pact", calibration=2 * IMAGES)
    other.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(other.state_dict()[bounds[0]], before)


# -- Batch normalisation


def test_batch_normalisations_are_calibrated_for_the_new_precision() -> None:
    model = network()
    quantize_(model, "w2a2", layers="all", scale="none", activations="unsigned")
    stale = model[1].running_mean.clone()
    assert recalibrate_(model, IMAGES) == 1
    inputs = model[0](IMAGES)
    torch.testing.assert_close(model[1].running_mean, inputs.mean((0, 2, 3)).detach())
    torch.testing.assert_close(model[1].running_var, inputs.transpose(0, 1).flatten(1).var(1).detach())
    assert not torch.equal(model[1].running_mean, stale)
    assert model[1].momentum == 0.1
    assert not model[1].training


def test_calibration_restores_what_a_converted_network_gives() -> None:
    full, model = network(), network()
    recalibrate_(full, IMAGES)
    report = quantize_(model, "w8a8", calibration=IMAGES)
    assert report.recalibrated == 1
    apart = (model(IMAGES) - full(IMAGES)).norm() / full(IMAGES).norm()
    assert apart < 0.3
    untuned = network()
    quantize_(untuned, "w8a8", activations="signed")
    assert (untuned(IMAGES) - full(IMAGES)).norm() / full(IMAGES).norm() > 2 * apart


# -- Refusals leave the network as it was


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
def test_a_layer_that_cannot_be_quantized_is_refused(make: Callable[[], Any], name: str, reason: str) -> None:
    model = make().eval()
    before = fingerprint(model)
    with pytest.raises(InputError, match=rf"cannot be quantized: {name} \({reason}"):
        quantize_(model, "w4a4", calibration=IMAGES)
    assert unchanged(model, before)
    report = quantize_(model, "w4a4", calibration=IMAGES, allow_unsupported=True)
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
        ("w4a4", {"calibration": IMAGES[0]}, r"images \(N, C, H, W\), got torch.float32 of shape \(3, 8, 8\)"),
        ("w4a4", {"calibration": (255 * IMAGES).byte()}, "must be a float tensor"),
        ("w4a4", {"calibration": IMAGES[:1]}, "calibration .*two images.* 1:"),
        ("w4a4", {"calibration": IMAGES / 0}, "calibration .*not finite.*\\[0, 1\\]"),
        ("w4a4", {"calibration": IMAGES[:, :1]}, r"does not take images of shape \(8, 1, 8, 8\)"),
        ("w4a4", {"calibration": torch.rand(2, 3, 9, 9)}, r"does not take images of shape \(2, 3, 9, 9\)"),
        ("w4a4", {}, "activations='auto' .*Sequential.*pass calibration=images"),
    ],
)
def test_impossible_settings_are_refused(precision: str, settings: dict[str, Any], message: str) -> None:
    model = network()
    before = fingerprint(model)
    with pytest.raises(InputError, match=message):
        quantize_(model, precision, **settings)
    assert unchanged(model, before)


@pytest.mark.parametrize("make", [lambda: nn.Flatten(), lambda: nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))])
def test_nothing_to_quantize_is_an_error(make: Callable[[], nn.Module]) -> None:
    with pytest.raises(InputError, match="nothing to quantize in"):
        quantize_(make(), "w4a4", activations="unsigned")


class Wrapped(nn.Module):
    """A network with a function before it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.network, self.function = network(), function

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
def test_a_network_that_fails_or_writes_to_its_input(function: Callable[[Tensor], Tensor], sentence: str) -> None:
    model, given = Wrapped(function), IMAGES.clone()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InputError, match=sentence):
        quantize_(model, "w4a4", calibration=given)
    assert torch.equal(given, IMAGES)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not list(quantized_layers(model))


def test_weights_made_inside_inference_mode_are_named() -> None:
    with torch.inference_mode():
        model = network()
    with pytest.raises(InputError, match=r"0\.weight was made inside torch\.inference_mode\(\).*copy\.deepcopy"):
        quantize_(model, "w4a4", calibration=IMAGES)
    assert quantize_(copy.deepcopy(model), "w4a4", calibration=IMAGES).converted


def test_layers_out_of_sight_are_no_layers() -> None:
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = [network()]

        def forward(self, x: Tensor) -> Tensor:
            return self.parts[0](x)

    with pytest.raises(InputError, match=r"nothing to quantize in Hidden \(no submodule is a layer\)"):
        quantize_(Hidden(), "w4a4", calibration=IMAGES)


@pytest.mark.parametrize("output", [lambda y: (y, None), lambda y: {"logits": y}, lambda y: y.to(torch.complex64)])
def test_what_a_network_returns_does_not_matter(output: Callable[[Tensor], object]) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, x: Tensor) -> object:
            return output(self.network(x))

    report = quantize_(Net(), "w4a4", calibration=IMAGES)
    assert report.converted[0].name == "network.3"


def test_a_network_is_not_quantized_twice() -> None:
    model = network()
    quantize_(model, "w4a4", calibration=IMAGES)
    with pytest.raises(InputError, match="3 is quantized already"):
        quantize_(model, "w2a2", calibration=IMAGES)
    with pytest.raises(InputError, match="conv1 is quantized already"):
        quantize_(CIFARConv(Precision.parse("w4a2")), "w2a2")


def test_32_bit_inputs_need_no_images() -> None:
    model, full = network(), network()
    report = quantize_(model, "w8")
    assert report.looked_at == ""
    assert "whether the network calls each of them is not known" in str(report)
    assert (model(IMAGES) - full(IMAGES)).norm() < 0.2 * full(IMAGES).norm()
    assert all(isinstance(layer, QuantizedLayer) for _, layer in quantized_layers(model))


# -- Attention


def _attending(kind: str) -> nn.Module:
    """A network with a part whose class has that name."""
    model = network()
    model.insert(4, type(kind, (nn.Identity,), {})())
    return model


@pytest.mark.parametrize(
    "kind",
    ["Attention", "ClassAttn", "Attention2d", "XCA", "AttentionDownsample", "MobileAttention", "WindowAttentionV2"],
)
def test_attention_is_recognised_by_the_name_of_its_class(kind: str) -> None:
    assert quantize_(_attending(kind), "w4a4", calibration=IMAGES).attention == ("4",)


@pytest.mark.parametrize("kind", ["FlattenAttention", "AttentionBlock", "XCABlock", "Identity", "Flatten"])
def test_modules_that_only_contain_attention_are_not_listed(kind: str) -> None:
    assert quantize_(_attending(kind), "w4a4", calibration=IMAGES).attention == ()


class FailsLate(nn.Sequential):
    """Runs with its own layers, and fails with quantized ones: at once, or on more than two images."""

    def __init__(self, most: int) -> None:
        super().__init__(*network())
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if type(self[3]) is not nn.Conv2d and len(x) > self.most:
            raise ValueError("no convolution")
        return super().forward(x)


@pytest.mark.parametrize("most", [0, 2])
@pytest.mark.parametrize("activations", ["auto", "pact"])
def test_a_failure_with_quantized_layers_is_not_blamed_on_the_images(most: int, activations: str) -> None:
    model = FailsLate(most)
    before, hooks = fingerprint(model), len(model[3]._forward_pre_hooks)
    with pytest.raises(
        InputError, match=r"FailsLate .*not with quantized ones \(ValueError: no convolution\).*layers="
    ) as error:
        quantize_(model, "w4a4", activations=activations, calibration=IMAGES)
    assert "does not take images" not in str(error.value)
    assert unchanged(model, before)
    assert len(model[3]._forward_pre_hooks) == hooks
    assert model[1].momentum == 0.1


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_layers_that_torch_has_quantized_are_refused_by_name() -> None:
    model = torch.ao.quantization.quantize_dynamic(network(), {nn.Linear}, dtype=torch.qint8)
    with pytest.raises(InputError, match=r"5 \(torch has quantized it already\).*allow_unsupported"):
        quantize_(model, "w4a4", calibration=IMAGES)
    report = quantize_(model, "w4a4", calibration=IMAGES, allow_unsupported=True)
    assert [layer.name for layer in report.converted] == ["3"]
