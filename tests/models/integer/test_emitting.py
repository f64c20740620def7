"""Emitted codes: right for every sum that a layer can have, also by a kernel that multiplies with an inverse step."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from empir_plugin.models.integer.codes import Grid, StaysFloat
from empir_plugin.models.integer.kernels import Geometry, IntegerOp, IntMM, Kernel, OneDNN, Program
from empir_plugin.models.integer.selftest import emitting

TOPS = (1, 3, 7, 15, 31, 63, 127, 255)
POINT = Geometry((1, 1), (0, 0), (1, 1), 1)
CODE, INPUTS = 127, 6
LARGEST = CODE * INPUTS
"""Largest sum of the layers below, whose weights are all 1 or all -1."""


@dataclass(frozen=True)
class InverseStep:
    """Codes as kernels compute them that multiply with the inverse of a rounded step.

    Args:
        units: By how many units in the last place the factor is too large.
        off: Added to each product before it is rounded.
    """

    units: int = 1
    off: float = 0.0
    name: str = "inverse step"

    def unusable(self, device: torch.device) -> str | None:
        return None

    def compile(self, op: IntegerOp) -> Program:
        if op.emits is None:
            return IntMM().compile(op)
        top, plain = op.emits.top, IntMM().compile(replace(op, emits=None))
        factor = torch.tensor(top * (1 + self.units * 2.0**-23))

        def program(codes: Tensor) -> Tensor:
            scaled = plain(codes) * factor
            return (scaled + self.off).round().clamp(0, top).to(torch.uint8)

        return program


def every_sum() -> Tensor:
    """Codes ``(n, 6, 1, 1)`` whose sums are 0 .. 762, so that filters of 1 and of -1 have all from -762 to 762."""
    total = torch.arange(LARGEST + 1)
    return torch.stack([(total - CODE * index).clamp(0, CODE) for index in range(INPUTS)], 1).to(torch.uint8)[
        ..., None, None
    ]


def layer(top: int, *, linear: bool = False, biased: bool = True) -> IntegerOp:
    """Filters as quantized layers have them: levels of 1 to 4 bits with and without a scale, and folded ones."""
    generator = torch.Generator().manual_seed(top)
    levels = torch.tensor([1 / (weights * top) for weights in (1, 3, 7, 15)]).repeat(4)
    scale = torch.cat([levels, torch.rand(48, generator=generator) / top])
    bias = torch.cat([torch.zeros(16), 2 * torch.rand(48, generator=generator) - 0.5])
    return _op(scale, bias if biased else None, linear)


def ties(top: int) -> IntegerOp:
    """Filters that put sums exactly on the borders between two codes, which levels cannot."""
    generator = torch.Generator().manual_seed(top)
    steps = torch.tensor([2, 6, 10, 14, 2 / 3, 22, 26, 34]).repeat(8)
    bias = torch.randint(0, 2 * top, (64,), generator=generator) / (2 * top)
    return _op(1 / (steps * top), bias, False)


def near_borders(top: int) -> IntegerOp:
    """Filters each of which has one sum on the border between two codes, or within rounding of it."""
    generator = torch.Generator().manual_seed(top)
    scale = (0.1 + torch.rand(64, generator=generator)) * 3 / LARGEST
    border = (torch.randint(0, top, (64,), generator=generator) + 0.5) / top
    sums = torch.randint(-LARGEST, LARGEST + 1, (64,), generator=generator)
    plain = _op(scale, torch.zeros(64), False)
    sums = torch.where(plain.weight[:, 0, 0, 0] > 0, sums.abs(), -sums.abs())
    return replace(plain, bias=border - sums * plain.scale)


def _op(scale: Tensor, bias: Tensor | None, linear: bool) -> IntegerOp:
    weight = torch.ones(64, INPUTS, dtype=torch.int8)
    weight[1::2] = -1
    scale = scale.clone()
    scale[1::4] *= -1  # as behind a normalization with a negative weight
    shaped = weight if linear else weight[..., None, None]
    return IntegerOp(shaped, 0, scale, bias, None if linear else POINT)


def codes(kernel: Kernel, op: IntegerOp) -> Tensor:
    x = every_sum()
    return kernel.compile(op)(x if op.geometry is not None else x.flatten(1)).flatten(1)


def wanted(op: IntegerOp, grid: Grid) -> Tensor:
    """The codes of the float outputs, from exact sums."""
    sums = every_sum().flatten(1).long() @ op.weight.flatten(1).long().T
    outputs = sums.float() * op.scale + (0 if op.bias is None else op.bias)
    return (outputs.clamp(0, 1) * grid.top).round().to(torch.uint8)


def test_the_sums_are_complete() -> None:
    assert every_sum().flatten(1).sum(1).tolist() == list(range(LARGEST + 1))


@pytest.mark.parametrize("linear", [False, True], ids=["conv", "linear"])
@pytest.mark.parametrize("biased", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("top", TOPS)
def test_every_code_is_that_of_the_float_output(top: int, biased: bool, linear: bool, kernel: Kernel) -> None:
    grid, plain = Grid(0, top), layer(top, linear=linear, biased=biased)
    op = emitting(plain, grid, kernel)
    assert op.emits == grid
    assert torch.equal(codes(kernel, op), wanted(plain, grid))
    assert len(wanted(plain, grid).unique()) == top + 1, "all codes occur"


def filters(op: IntegerOp) -> list[IntegerOp]:
    """The same, filter by filter."""
    assert op.bias is not None
    ones = [torch.tensor([index]) for index in range(len(op.scale))]
    return [replace(op, weight=op.weight[one], scale=op.scale[one], bias=op.bias[one]) for one in ones]


def emitting_or_none(op: IntegerOp, grid: Grid, kernel: Kernel) -> IntegerOp | None:
    """None where it is refused."""
    try:
        return emitting(op, grid, kernel)
    except StaysFloat:
        return None


@pytest.mark.parametrize("top", TOPS)
def test_sums_on_borders_get_the_right_codes_or_none(top: int, kernel: Kernel) -> None:
    """No bias may be right for all sums of a filter, but a wrong code must not occur."""
    grid, refused = Grid(0, top), 0
    for plain in filters(ties(top)):
        op = emitting_or_none(plain, grid, kernel)
        refused += op is None
        assert op is None or torch.equal(codes(kernel, op), wanted(plain, grid))
    assert refused == 0 or isinstance(kernel, OneDNN), "the other kernel rounds as the definition does"


@pytest.mark.parametrize("units", [1, -1])
@pytest.mark.parametrize("top", TOPS)
def test_a_moved_bias_makes_an_inverse_step_right(top: int, units: int) -> None:
    grid, kernel, counts = Grid(0, top), InverseStep(units), Counter[str]()
    for plain in filters(near_borders(top)):
        wrong = not torch.equal(codes(kernel, replace(plain, emits=grid)), wanted(plain, grid))
        op = emitting_or_none(plain, grid, kernel)
        counts["refused"] += op is None
        if op is None:
            continue
        assert torch.equal(codes(kernel, op), wanted(plain, grid))
        assert op.bias is not None
        assert plain.bias is not None
        assert (op.bias - plain.bias).abs().max() <= 1e-6
        assert not (wrong and torch.equal(op.bias, plain.bias))
        counts["moved"] += wrong
    assert counts["moved"] >= 3 or (top, units) == (1, -1), counts
    assert counts["refused"] <= 3, counts


@pytest.mark.parametrize("top", TOPS)
def test_without_it_codes_are_wrong(top: int) -> None:
    grid, plain = Grid(0, top), near_borders(top)
    assert not torch.equal(codes(InverseStep(), replace(plain, emits=grid)), wanted(plain, grid))
    assert torch.equal(codes(InverseStep(0), replace(plain, emits=grid)), wanted(plain, grid)), "with the exact factor"


@pytest.mark.parametrize("biased", [True, False])
def test_a_bias_that_need_not_move_stays_as_it_is(biased: bool) -> None:
    plain = layer(15, biased=biased)
    assert emitting(plain, Grid(0, 15), IntMM()).bias is plain.bias


@pytest.mark.parametrize("off", [0.01, -0.01, 1.0, -0.5])
@pytest.mark.parametrize("top", [3, 15, 255])
def test_codes_that_no_bias_makes_right_are_refused(top: int, off: float) -> None:
    with pytest.raises(StaysFloat, match=r"\d+ of its 64 filters emit other codes"):
        emitting(ties(top), Grid(0, top), InverseStep(off=off))


def test_wrong_filters_are_counted() -> None:
    # The outputs of the second are codes themselves, never next to a border.
    plain = _op(torch.tensor([1 / 30, 4 / 15]), torch.zeros(2), False)
    both = replace(plain, weight=plain.weight[[0, 0]], scale=torch.tensor([1 / 30, 4 / 15]))
    with pytest.raises(StaysFloat, match="1 of its 2 filters"):
        emitting(both, Grid(0, 15), InverseStep(off=0.1))
