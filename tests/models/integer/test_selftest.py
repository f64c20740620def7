"""Checks of integer execution: wrong and saturating kernels are detected, and models are compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.integer.codes import Inexact, StaysFloat
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.kernels import IntegerOp, IntMM, Kernel, Program
from empir_plugin.models.integer.layers import integer_layer
from empir_plugin.models.integer.selftest import _reference, agree, check_layer
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.quantize import Precision


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


def refuse(op: IntegerOp) -> IntegerOp:
    raise RuntimeError("could not create a primitive\nand more")


BROKEN = [
    pytest.param({"change": lambda op: replace(op, scale=1.001 * op.scale)}, "not exact", id="scale"),
    pytest.param({"change": lambda op: replace(op, weight=op.weight + 1)}, "not exact", id="weights"),
    pytest.param({"change": lambda op: replace(op, bias=op.scale.clone())}, "not exact", id="bias"),
    pytest.param({"after": lambda y: y.roll(1, 0)}, "not exact", id="images-mixed"),
    pytest.param({"change": refuse}, "refuses it: could not create a primitive", id="refusal"),
]


@pytest.mark.parametrize(("how", "reason"), BROKEN)
def test_a_wrong_kernel_is_detected_and_not_used(
    altered: Callable[..., Kernel], how: dict[str, Any], reason: str
) -> None:
    layer = conv()
    integer = to_integer(layer, kernel=altered(**how))
    assert integer.report.on_integers == ()
    assert reason in integer.report.layers[0].reason
    assert torch.equal(integer(inputs(1, 4, 5, 5)), layer(inputs(1, 4, 5, 5)))


def test_an_equivalent_kernel_is_used(altered: Callable[..., Kernel]) -> None:
    assert to_integer(conv(), kernel=altered()).report.on_integers == ("",)


def test_a_wrong_scale_is_detected_by_comparison_with_the_layer() -> None:
    layer = conv()
    integer = integer_layer(layer, IntMM())
    check_layer(layer, integer)
    with pytest.raises(StaysFloat, match="not exact here: an output is off by"):
        check_layer(layer, integer.with_changes(scale=1.001 * integer.op.scale))


@dataclass(frozen=True)
class Saturating:
    """What x86 without VNNI does: neighbouring products added in 16 bits, and held there."""

    name: str = "saturating"

    def unusable(self, device: torch.device) -> str | None:
        return None

    def compile(self, op: IntegerOp) -> Program:
        def program(codes: Tensor) -> Tensor:
            products = codes.int().unsqueeze(1) * op.weight.int()  # (N, K, F)
            pairs = products.unflatten(2, (-1, 2)).sum(3).clamp(-(2**15), 2**15 - 1)
            return (pairs.sum(2) * op.scale + (0 if op.bias is None else op.bias)).float()

        return program


@pytest.mark.parametrize(("text", "exact"), [("w4a8", True), ("w7a4", True), ("w7a8", False)])
def test_saturation_is_detected_where_it_can_occur(text: str, exact: bool) -> None:
    layer = linear(text)
    integer = to_integer(layer, kernel=Saturating())
    assert bool(integer.report.on_integers) == exact
    assert exact or "not exact here" in integer.report.layers[0].reason
    assert torch.equal(integer(inputs(9, 12)), layer(inputs(9, 12)))


def test_a_single_pair_that_can_saturate_is_found_among_many_filters() -> None:
    layer = QuantLinear(12, 200, bias=False, precision=Precision.parse("w7a8")).eval()
    weight = torch.full((200, 12), 1 / 127)
    weight[0, 0] = weight[171, 4] = weight[171, 5] = 1.0
    layer.baked_weight = weight.clone()
    assert "not exact here" in to_integer(layer, kernel=Saturating()).report.layers[0].reason
    weight[171, 5] = 1 / 127  # 255 * (127 + 1) still fits
    layer.baked_weight = weight
    assert to_integer(layer, kernel=Saturating()).report.on_integers == ("",)


def test_agreement_counts_and_measures() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    swapped = nn.Linear(2, 2, bias=False)
    swapped.weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
    found = agree(nn.Identity().eval(), swapped.eval(), images, batch_size=2)
    assert (found.differing_decisions, found.images, found.max_logit_difference) == (1, 3, 1.0)
    assert found.median_logit_difference == 0.0


def test_agreement_refuses_training_mode_and_no_images() -> None:
    with pytest.raises(InputError, match="training mode"):
        agree(nn.Identity(), nn.Identity().eval(), torch.rand(1, 2))
    with pytest.raises(InputError, match="at least one image"):
        agree(nn.Identity().eval(), nn.Identity().eval(), torch.rand(0, 2))


def test_sums_to_compare_with_are_integers_even_if_a_convolution_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = conv()
    integer = integer_layer(layer, IntMM())
    convolve = torch.nn.functional.conv2d
    monkeypatch.setattr("empir_plugin.models.integer.selftest.F.conv2d", lambda *args: convolve(*args) + 0.2)
    codes = torch.randint(0, 16, (2, 4, 5, 5)).to(torch.uint8)
    expected = integer(codes)
    assert torch.equal(_reference(integer.op, codes), expected)
    monkeypatch.setattr("empir_plugin.models.integer.selftest.F.conv2d", lambda *args: convolve(*args) + 0.6)
    assert not torch.equal(_reference(integer.op, codes), expected)


def test_a_difference_is_told_apart_from_a_refusal(altered: Callable[..., Kernel]) -> None:
    layer = conv()
    with pytest.raises(Inexact):
        check_layer(layer, integer_layer(layer, altered(after=lambda y: y + 1)))
    with pytest.raises(StaysFloat) as refusal:
        integer_layer(layer, altered(change=refuse))
    assert not isinstance(refusal.value, Inexact)
