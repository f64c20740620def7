"""Forward passes on integer kernels with the gradient of the quantized layer: equal bits, and equal gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.activations import SignedActivationQuantizer
from empir_plugin.models.backward import BackwardRule, as_trained, identity, soft
from empir_plugin.models.integer import convert
from empir_plugin.models.integer.convert import run_on_integers
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, quantized_layers, use_backward_rule
from empir_plugin.models.quantize import Precision, WeightQuantizer

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


def test_layers_of_other_levels_keep_their_own_forward_pass() -> None:
    layer = QuantLinear(4, 3, precision=Precision.parse("w2a2"))
    layer.use_quantizers_(WeightQuantizer(2), SignedActivationQuantizer(2))
    model, _ = run_on_integers(prepare(nn.Sequential(nn.Flatten(), layer), CPU), images()[:, :1, :2, :2])
    assert all(each.on_integers is None for _, each in quantized_layers(model))


def test_weights_that_need_a_gradient_get_it() -> None:
    model, _ = run_on_integers(prepare(network(), CPU), images())
    model.requires_grad_(True)
    model(images()).sum().backward()
    assert all(layer.weight.grad is not None for _, layer in quantized_layers(model))
