"""Forward passes on integer kernels with the gradient of the quantized layer: equal bits, and equal gradients."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.activations import SignedActivationQuantizer
from empir_plugin.models.backward import BackwardRule, as_trained, identity, soft
from empir_plugin.models.integer import convert
from empir_plugin.models.integer.convert import IntegerModel, run_on_integers
from empir_plugin.models.integer.kernels import Geometry, IntMM, Kernel, Unfolded, float32_kernels, kernel_for
from empir_plugin.models.integer.layers import filters_of_squares, gradient_of_squares
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, quantized_layers, use_backward_rule
from empir_plugin.models.quantize import ActivationQuantizer, Precision, WeightQuantizer

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that every machine has."""
    monkeypatch.setattr(convert, "kernel_for", lambda device: IntMM())


def network(precision: str = "w2a4") -> nn.Module:
    """Strides, groups, dilation, padding, batch normalization to fold, and a linear layer."""
    low = Precision.parse(precision)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(
            QuantConv2d(3, 8, 3, stride=2, padding=1, precision=low),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            QuantConv2d(8, 8, 3, groups=2, dilation=2, padding=2, bias=False, precision=low, scale="max"),
            nn.Flatten(),
            QuantLinear(8 * 36, 5, precision=low),
        )
        norm: Any = model[1]
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model.eval()


def images(seed: int = 0) -> Tensor:
    # Beyond [0, 1] at both ends, so that the clip's slope matters.
    return 1.5 * torch.rand(6, 3, 12, 12, generator=torch.Generator().manual_seed(seed)) - 0.25


def input_gradient(model: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone(memory_format=torch.channels_last).requires_grad_(True)
    logits = model(x)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]


@pytest.mark.parametrize("rule", [as_trained, identity, soft], ids=str)
def test_logits_are_equal_and_gradients_equal_to_rounding(rule: BackwardRule) -> None:
    expected_model = prepare(network(), CPU)
    model, backend = run_on_integers(prepare(network(), CPU), images())
    assert backend.gradients == "int8 (int_mm) forward, float32 backward"
    assert all(layer.on_integers is not None for _, layer in quantized_layers(model))
    with use_backward_rule(expected_model, rule), use_backward_rule(model, rule):
        (expected_logits, expected), (logits, found) = (
            input_gradient(each, images(2)) for each in (expected_model, model)
        )
    assert torch.equal(logits, expected_logits)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_logits_and_gradients_are_the_same_bit_for_bit_on_every_kernel() -> None:
    on_int8, backend = run_on_integers(prepare(network(), CPU), images())
    in_float32, other = run_on_integers(prepare(network(), CPU), images(), int8=False)
    assert (backend.name, other.name, other.gradients) == ("int8 (int_mm)", "float32", "float32")
    (logits, gradient), (same_logits, same_gradient) = (
        input_gradient(each, images(2)) for each in (on_int8, in_float32)
    )
    assert torch.equal(logits, same_logits)
    assert torch.equal(gradient, same_gradient)
    assert gradient.stride() == same_gradient.stride()


def test_the_kernel_runs_in_forward_passes_with_a_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = run_on_integers(prepare(network(), CPU), images())
    with monkeypatch.context() as patched:
        patched.setattr(QuantizedLayer, "integer_input", lambda self, input: pytest.fail("float32 was used"))
        input_gradient(model, images())


def test_in_bfloat16_only_the_gradient_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "_without_bf16", lambda device: "")
    exact, _ = run_on_integers(prepare(network(), CPU), images())
    rounded, backend = run_on_integers(prepare(network(), CPU), images(), gradients="bf16")
    assert backend.gradients == "int8 (int_mm) forward, bf16 backward"
    (logits, expected), (same_logits, found) = (input_gradient(each, images(2)) for each in (exact, rounded))
    assert torch.equal(logits, same_logits)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02 * float(expected.abs().max()))


def test_without_instructions_for_bfloat16_gradients_are_float32_and_the_reason_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convert, "_without_bf16", lambda device: "the processor has no instructions for bfloat16")
    _, backend = run_on_integers(prepare(network(), CPU), images(), gradients="bf16")
    assert (backend.backward, backend.reason) == ("float32", "the processor has no instructions for bfloat16")


def test_transforms_of_functions_see_the_derivatives_of_the_layer() -> None:
    model, _ = run_on_integers(prepare(network(), CPU), images())
    x = images(3)

    def total(image: Tensor) -> Tensor:
        return model(image.unsqueeze(0)).square().sum()

    each = torch.func.vmap(torch.func.grad(total))(x)
    one_by_one = torch.stack(
        [torch.autograd.grad(total(leaf := image.clone().requires_grad_(True)), leaf)[0] for image in x]
    )
    torch.testing.assert_close(each, one_by_one, rtol=1e-4, atol=1e-5 * float(one_by_one.abs().max()))
    direction = torch.ones_like(x[0])
    with torch.no_grad():
        _, slope = torch.func.jvp(total, (x[0],), (direction,))
    torch.testing.assert_close(slope, (one_by_one[0] * direction).sum(), rtol=1e-3, atol=1e-4)


def test_layers_of_other_levels_keep_their_own_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = QuantLinear(4, 3, precision=Precision.parse("w2a2"))
    layer.use_quantizers_(WeightQuantizer(2), SignedActivationQuantizer(2))
    monkeypatch.setattr(convert, "_without_bf16", lambda device: "")
    subject = prepare(nn.Sequential(nn.Flatten(), layer), CPU)
    model, backend = run_on_integers(subject, images()[:, :1, :2, :2], gradients="bf16")
    assert all(each.on_integers is None for _, each in quantized_layers(model))
    assert (backend.name, backend.gradients, backend.backward) == ("int8 (int_mm)", "float32", "float32")
    assert backend.reason == "no layer of the model has a gradient on integer kernels"


def test_weights_that_need_a_gradient_get_it() -> None:
    model, _ = run_on_integers(prepare(network(), CPU), images())
    model.requires_grad_(True)
    model(images()).sum().backward()
    assert all(layer.weight.grad is not None for _, layer in quantized_layers(model))


def rectified() -> nn.Module:
    """ReLUs in place behind a convolution and behind a linear layer."""
    low = Precision.parse("w2a4")
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        conv, linear = QuantConv2d(3, 4, 5, precision=low), QuantLinear(4 * 64, 16, precision=low)
        head = QuantLinear(16, 5, precision=low)
    relu = nn.ReLU(inplace=True)
    return nn.Sequential(conv, relu, nn.MaxPool2d(1), nn.Flatten(), linear, relu, head).eval()


def test_outputs_can_be_changed_in_place(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "kernel_for", lambda device: kernel)
    model, backend = run_on_integers(prepare(rectified(), CPU), images())
    assert backend.name == f"int8 ({kernel.name})"
    (logits, found), (expected_logits, expected) = (
        input_gradient(each, images(2)) for each in (model, prepare(rectified(), CPU))
    )
    assert torch.equal(logits, expected_logits)
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("size", [0, 1])
def test_batches_of_any_size(size: int, kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "kernel_for", lambda device: kernel)
    model, _ = run_on_integers(prepare(rectified(), CPU), images())
    x, expected_model = images()[:size], prepare(rectified(), CPU)
    (logits, found), (expected_logits, expected) = (input_gradient(each, x) for each in (model, expected_model))
    with torch.no_grad():
        assert torch.equal(model(x), expected_logits)
    assert torch.equal(logits, expected_logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_a_single_image_without_a_batch(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "kernel_for", lambda device: kernel)
    layer = prepare(QuantConv2d(3, 4, 3, precision=Precision.parse("w2a4")), CPU)
    model, _ = run_on_integers(copy.deepcopy(layer))
    (output, found), (expected_output, expected) = (input_gradient_of_one(each) for each in (model, layer))
    assert torch.equal(output, expected_output)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        assert torch.equal(model(images()[0]), expected_output)


def input_gradient_of_one(model: nn.Module) -> tuple[Tensor, Tensor]:
    x = images()[0].requires_grad_(True)
    output = model(x)
    return output.detach(), torch.autograd.grad(output.square().sum(), x)[0]


def test_a_second_derivative_is_that_of_the_layers() -> None:
    def second(model: nn.Module) -> Tensor:
        x = images().requires_grad_(True)
        (gradient,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
        return torch.autograd.grad(gradient.square().sum(), x)[0]

    model, _ = run_on_integers(prepare(network(), CPU), images())
    expected = second(prepare(network(), CPU))
    assert expected.abs().max() > 0
    torch.testing.assert_close(second(model), expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_nan_is_passed_on_as_by_the_layers() -> None:
    model, _ = run_on_integers(prepare(network(), CPU), images())
    x = images()
    x[1, 0, 3, 3] = float("nan")
    with torch.no_grad():
        expected = prepare(network(), CPU)(x)
        assert expected.isnan().any(1).tolist() == [False, True, False, False, False, False]
        found = model(x), model.model(x)
    for logits in (*found, input_gradient(model, x)[0]):
        torch.testing.assert_close(logits, expected, rtol=0, atol=0, equal_nan=True)


def halve_(layer: QuantizedLayer) -> None:
    with torch.no_grad():
        layer.weight.mul_(torch.linspace(-1, 1, len(layer.weight)).view(-1, 1, 1, 1))


CHANGES: dict[str, Callable[[QuantizedLayer], Any]] = {
    "weights": halve_,
    "weights, baked again": lambda layer: (halve_(layer), layer.bake_()),
    "new weights": lambda layer: setattr(layer, "weight", nn.Parameter(-layer.weight, requires_grad=False)),
    "baked weights": lambda layer: setattr(layer, "baked_weight", -layer.quantized_weight()),
    "bias": lambda layer: layer.bias.data.add_(1),
    "new bias": lambda layer: setattr(layer, "bias", nn.Parameter(layer.bias + 1, requires_grad=False)),
    "state dict": lambda layer: (
        layer.load_state_dict({name: -value for name, value in layer.state_dict().items()}),
        layer.bake_(),
    ),
    "quantizers": lambda layer: (layer.use_quantizers_(WeightQuantizer(3), ActivationQuantizer(3)), layer.bake_()),
    "input": lambda layer: setattr(layer, "activation_quantizer", ActivationQuantizer(2)),
    "norm": lambda layer: layer.fold_(nn.BatchNorm2d(8, eps=1.0).eval()),
}
DUPLICATES = [
    pytest.param(lambda model: model, id="itself"),
    pytest.param(copy.deepcopy, id="copy"),
    pytest.param(lambda model: pickle.loads(pickle.dumps(model)), id="pickled"),
]
UNCOUNTED = ("bias", "norm")
"""Changes that only the layer sees: one bypasses autograd, one is no change of a parameter."""


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("duplicate", DUPLICATES)
def test_a_changed_layer_computes_with_its_new_numbers(change: str, duplicate: Callable[[Any], Any]) -> None:
    model, expected_model = duplicate(run_on_integers(prepare(network(), CPU), images())[0]), prepare(network(), CPU)
    for each in (model.model, expected_model):
        CHANGES[change](each[0])
    (logits, found), (expected_logits, expected) = (input_gradient(each, images(2)) for each in (model, expected_model))
    assert torch.equal(logits, expected_logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    with torch.no_grad():
        assert torch.equal(model.model(images(2)), expected_logits)
        if change not in UNCOUNTED:
            assert torch.equal(model(images(2)), expected_logits)
        assert not torch.equal(prepare(network(), CPU)(images(2)), expected_logits)


def shown(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x)


def test_the_whole_network_runs_on_integers_until_it_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    model: Any = run_on_integers(prepare(network(), CPU), images())[0]
    calls: list[int] = []
    run = IntegerModel.forward
    monkeypatch.setattr(IntegerModel, "forward", lambda self, x: (calls.append(len(x)), run(self, x))[1])
    for each in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        shown(each, images())
    assert calls == [6, 6, 6]
    changed = copy.deepcopy(model)
    changed.model[0].weight.mul_(1)
    for each in (changed, copy.deepcopy(changed), copy.deepcopy(model).double().float()):
        assert torch.equal(shown(each, images()), shown(prepare(network(), CPU), images()))
    assert calls == [6, 6, 6]


def test_hooks_added_later_are_called() -> None:
    model: Any = run_on_integers(prepare(network(), CPU), images())[0]
    seen: list[str] = []
    for layer in model.model:
        layer.register_forward_hook(lambda module, args, output: seen.append(type(module).__name__))
    shown(model, images())
    assert seen == [type(layer).__name__ for layer in model.model]


def test_training_mode_of_a_part_is_respected() -> None:
    model: Any = run_on_integers(prepare(nn.Sequential(network(), nn.Dropout(1.0)), CPU), images())[0]
    assert shown(model, images()).abs().max() > 0
    model.model[1].train()
    assert shown(model, images()).abs().max() == 0


def test_autocast_and_other_types_are_those_of_the_layers() -> None:
    model, plain = run_on_integers(prepare(network(), CPU), images())[0], prepare(network(), CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = plain(images())
        assert torch.equal(shown(model, images()), expected)
        assert torch.equal(model(images()), expected)
    assert not torch.equal(expected.float(), plain(images()))
    x = images().double()
    assert torch.equal(shown(model.double(), x), shown(plain.double(), x))


@dataclass(frozen=True)
class OfOldForm:
    """A rule without a backward pass of its own."""

    def __call__(self, x: Tensor) -> Tensor:
        return x.clamp(0, 1)


def test_gradients_of_batches_at_once_and_of_gradients() -> None:
    model, _ = run_on_integers(prepare(network(), CPU), images())
    x = images(2).requires_grad_(True)
    logits = model(x)
    weights = torch.randn(3, *logits.shape, generator=torch.Generator().manual_seed(1))
    together = torch.autograd.grad(logits, x, weights, is_grads_batched=True, retain_graph=True)[0]
    one_by_one = [torch.autograd.grad(logits, x, each, retain_graph=True)[0] for each in weights]
    torch.testing.assert_close(together, torch.stack(one_by_one))
    (first,) = torch.autograd.grad(logits.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    expected = torch.autograd.functional.hvp(
        lambda z: prepare(network(), CPU)(z).square().sum(), x.detach(), 2 * first.detach()
    )[1]
    torch.testing.assert_close(second, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_a_rule_that_states_no_backward_pass_is_differentiated_itself() -> None:
    model, plain = run_on_integers(prepare(network(), CPU), images())[0], prepare(network(), CPU)
    rule: Any = OfOldForm()
    with use_backward_rule(model, rule), use_backward_rule(plain, rule):
        (logits, found), (expected_logits, expected) = (input_gradient(each, images(2)) for each in (model, plain))
    assert torch.equal(logits, expected_logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("geometry", [((3, 3), 1), ((5, 5), 2), ((5, 3), (2, 0)), ((1, 1), 0), ((2, 4), (1, 3))])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_gradients_of_squares_are_the_convolutions(geometry: tuple[Any, Any], channels: int) -> None:
    size, padding = geometry
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, 6, size, padding=padding, bias=False).double()
    x = torch.rand(3, channels, 8, 6, dtype=torch.float64, requires_grad=True)
    y = conv(x)
    output = torch.randn_like(y)
    (expected,) = torch.autograd.grad(y, x, output)
    weight = conv.weight.detach()
    both = (padding, padding) if isinstance(padding, int) else padding
    found = gradient_of_squares(output, filters_of_squares(weight), weight.shape, Geometry((1, 1), both, (1, 1), 1))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("settings", "used"),
    [
        ({"padding": 1}, True),
        ({"padding": 1, "stride": 2}, False),
        ({"padding": 2, "dilation": 2}, False),
        ({"padding": 3}, False),
    ],
)
@pytest.mark.parametrize("side", [8, 7])
def test_first_layers_have_their_gradient_by_squares_or_without(settings: Any, used: bool, side: int) -> None:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(QuantConv2d(3, 8, 3, precision=Precision.parse("w4a4"), **settings)).eval()
    x = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))
    ready = prepare(model, CPU)
    expected = input_gradient(ready, x)[1]
    fast, _ = run_on_integers(ready, x)
    (layer,) = (layer for _, layer in quantized_layers(ready))
    assert (layer.on_integers.of_squares is not None) is used  # type: ignore[union-attr]
    torch.testing.assert_close(input_gradient(fast, x)[1], expected)


def rounding(altered: Callable[..., Kernel]) -> Kernel:
    """Convolutions as by Winograd's algorithm: off by a millionth."""
    return altered(after=lambda y: y * (1 + 1e-6), name="float32")


@pytest.mark.parametrize("int8", [True, False])
def test_float32_convolutions_that_round_are_replaced_by_matrix_products(
    altered: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch, int8: bool
) -> None:
    monkeypatch.setattr(convert, "float32_kernels", lambda device: (rounding(altered), Unfolded()))
    monkeypatch.setattr(convert, "kernel_for", lambda device: altered(name="int8", after=lambda y: y + 1))
    model, backend = run_on_integers(prepare(rectified(), CPU), images(), int8=int8)
    expected_model = prepare(rectified(), CPU)
    kernels = {layer.on_integers.integer.kernel.name for _, layer in quantized_layers(model)}  # type: ignore[union-attr]
    assert kernels == {"float32, unfolded"}
    first = "the kernel int8 is not exact here" if int8 else "int8 kernels are turned off"
    assert backend.reason.startswith(first)
    assert "; the kernel float32 is not exact here: an output is off by" in backend.reason
    assert backend.reason.endswith(": float32, unfolded instead")
    assert (backend.name, backend.gradients) == ("float32", "float32")
    (logits, found), (expected_logits, expected) = (input_gradient(each, images(2)) for each in (model, expected_model))
    assert torch.equal(logits, expected_logits)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_without_any_exact_kernel_the_layers_themselves_run_and_the_reason_says_so(
    altered: Callable[..., Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(convert, "float32_kernels", lambda device: (rounding(altered),))
    model, backend = run_on_integers(prepare(rectified(), CPU), images(), int8=False)
    assert all(layer.on_integers is None for _, layer in quantized_layers(model))
    assert "the kernel float32 is not exact here" in backend.reason
    assert "instead" not in backend.reason


def test_exact_float32_kernels_need_no_word() -> None:
    model, backend = run_on_integers(prepare(rectified(), CPU), images(), int8=False)
    kernels = {layer.on_integers.integer.kernel.name for _, layer in quantized_layers(model)}  # type: ignore[union-attr]
    assert kernels == {"float32"}
    assert backend.reason == "int8 kernels are turned off"


def test_a_device_whose_convolutions_may_round_does_not_run_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "float32_kernels", lambda device: (Unfolded(),))
    _, backend = run_on_integers(prepare(rectified(), CPU), images(), int8=False)
    assert backend.reason == (
        "int8 kernels are turned off; float32 convolutions may round on cpu: float32, unfolded instead"
    )
    _, backend = run_on_integers(prepare(rectified(), CPU), images())
    assert (backend.name, backend.reason) == ("int8 (int_mm)", "")


def test_on_a_gpu_no_convolution_sums_integers_in_float32() -> None:
    on_gpu = torch.device("cuda")
    assert [kernel.name for kernel in (kernel_for(on_gpu), *float32_kernels(on_gpu))] == ["int_mm", "float32, unfolded"]
    assert [kernel.name for kernel in (kernel_for(CPU), *float32_kernels(CPU))] == [
        "onednn", "float32", "float32, unfolded"
    ]  # fmt: skip


@pytest.mark.gpu
@pytest.mark.parametrize("int8", [True, False])
def test_a_gpu_gives_the_logits_of_the_cpu_bit_for_bit(int8: bool) -> None:
    gpu = torch.device("cuda")
    model, backend = run_on_integers(prepare(rectified(), gpu), images().to(gpu), int8=int8)
    assert all(layer.on_integers is not None for _, layer in quantized_layers(model)), backend.reason
    with torch.no_grad():
        assert torch.equal(model(images().to(gpu)).cpu(), prepare(rectified(), CPU)(images()))
