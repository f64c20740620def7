"""Codes of inputs: known answers, every level and the floats next to it, other quantizers, and pieces."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from empir_plugin.errors import InputError
from empir_plugin.models.activations import SignActivationQuantizer, SignedActivationQuantizer
from empir_plugin.models.integer import codes as integer_pieces
from empir_plugin.models.integer.codes import Grid, StaysFloat, input_grid, pieces
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.quantize import ActivationQuantizer, Precision, WeightQuantizer

FOUR_BITS = Grid(0, 15)

EIGHT_BITS = Grid(0, 255)

SIGNED = Grid(15, 30, SignedActivationQuantizer(4).integers)

each_grid = pytest.mark.parametrize("grid", [FOUR_BITS, EIGHT_BITS, SIGNED], ids=["4", "8", "signed"])


def conv(text: str = "w4a4", *, seed: int = 0, **settings: Any) -> QuantConv2d:
    torch.manual_seed(seed)
    options = {"padding": 1, "bias": False, **settings}
    return QuantConv2d(4, 6, 3, precision=Precision.parse(text), **options).eval()  # type: ignore[arg-type]


def inputs(*shape: int) -> Tensor:
    """Some below 0, some above 1."""
    return 1.6 * torch.rand(shape, generator=torch.Generator().manual_seed(1)) - 0.3


def known_layer() -> QuantLinear:
    """Weights on -1, -1/3, 1/3, 1."""
    layer = QuantLinear(4, 1, bias=False, precision=Precision.parse("w2a2")).eval()
    layer.weight.data.copy_(torch.tensor([[-1.0, -0.2, 0.2, 1.0]]))
    return layer


def test_the_codes_of_a_known_layer() -> None:
    grid = input_grid(known_layer())
    assert (grid.zero, grid.top, grid.is_default) == (0, 3, True)
    assert grid.codes(torch.tensor([-0.5, 0.3, 0.6, 7.0])).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_codes_are_the_quantizers_levels_bit_for_bit(bits: int) -> None:
    layer = conv(f"w2a{bits}")
    n = 2**bits - 1
    edges = (torch.arange(n).double() + 0.5).div(n).float()
    near = torch.cat([edges, torch.nextafter(edges, edges + 1), torch.nextafter(edges, edges - 1), inputs(1000)])
    levels = layer.activation_quantizer(near)
    assert torch.equal(input_grid(layer).codes(near), levels.mul(n).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("quantizer", "bound", "zero", "top"),
    [
        (SignedActivationQuantizer(2), None, 3, 6),
        (SignedActivationQuantizer(4), 1.7, 15, 30),
        (ActivationQuantizer(4), 2.5, 0, 15),
        (SignActivationQuantizer(), None, 1, 2),
    ],
    ids=["signed", "signed-learned", "learned", "sign"],
)
def test_other_input_quantizers(quantizer: SignedActivationQuantizer, bound: float | None, zero: int, top: int) -> None:
    layer = conv("w2a2")
    layer.use_quantizers_(WeightQuantizer(2), quantizer, bound)
    layer.requires_grad_(False)
    grid = input_grid(layer)
    assert (grid.zero, grid.top) == (zero, top)
    x = 4 * inputs(3, 4, 7, 7) - 2
    codes = grid.codes(x)
    assert (codes.min(), codes.max()) == (0, top)
    assert torch.equal(codes.float() - zero, layer.integer_input(x))
    step = (1 if bound is None else bound) / quantizer.steps
    assert torch.allclose((codes.float() - zero) * step, layer.quantized_input(x), atol=1e-6)
    integer = to_integer(layer)
    assert integer.report.in_float == ()
    assert torch.equal(integer(x), layer(x))


def test_codes_beyond_one_byte_are_refused_with_their_largest() -> None:
    layer = conv("w2a8")
    layer.activation_quantizer = SignedActivationQuantizer(8)
    with pytest.raises(StaysFloat, match="8-bit input reach 510"):
        input_grid(layer)
    layer.activation_quantizer = SignedActivationQuantizer(7)
    assert input_grid(layer).top == 254


def test_a_quantizer_with_another_clip_rounds_its_inputs_itself() -> None:
    layer = conv("w2a2")
    layer.activation_quantizer = ActivationQuantizer(2, clip=lambda x: x.sigmoid())
    assert not input_grid(layer).is_default
    integer = to_integer(layer)
    assert integer.report.in_float == ()
    assert torch.equal(integer(inputs(1, 4, 5, 5)), layer(inputs(1, 4, 5, 5)))
    assert not torch.equal(layer(inputs(1, 4, 5, 5)), conv("w2a2")(inputs(1, 4, 5, 5)))


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 20 numbers at a time, on one thread."""
    monkeypatch.setattr(integer_pieces, "_PIECE", 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(
    ("shape", "rows"), [((7, 6), [3, 3, 1]), ((2, 30), [1, 1]), ((4, 5), [4]), ((0, 3), [0]), ((), [()])]
)
def test_pieces_are_rows_that_fit_or_single_ones(shape: tuple[int, ...], rows: list[object]) -> None:
    x = torch.arange(float(torch.Size(shape).numel())).view(shape)
    found = list(pieces(x, x + 1))
    assert [tuple(part.shape) if not shape else len(part) for part, _ in found] == rows
    assert all(torch.equal(one + 1, other) for one, other in found)
    assert not shape or torch.equal(torch.cat([part for part, _ in found]), x)
    assert found[0][0].data_ptr() == x.data_ptr(), "views, no copies"


@pytest.mark.usefixtures("small_pieces")
def test_several_threads_get_everything_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(7, 6)
    assert len(list(pieces(x))) == 3
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert [part.shape for (part,) in pieces(x)] == [x.shape]


@each_grid
@pytest.mark.usefixtures("small_pieces")
def test_codes_in_pieces_are_codes_at_once_in_the_same_layout(grid: Grid) -> None:
    x = inputs(9, 2, 3, 4).to(memory_format=torch.channels_last)
    found = grid.codes(x)
    assert torch.equal(found, torch.cat([grid.codes(image) for image in x.split(1)]))
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert (found.dtype, int(found.max())) == (torch.uint8, grid.top)


def test_float64_inputs_are_not_rounded_to_float32_first() -> None:
    above = torch.tensor([0.5 / 15 + 1e-12], dtype=torch.float64)
    assert FOUR_BITS.codes(above).item() == 1
    assert FOUR_BITS.codes(above - 2e-12).item() == 0


def test_codes_have_no_gradient() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(InputError, match="integers have no gradient"):
        FOUR_BITS.codes(x)
    with torch.no_grad():
        assert FOUR_BITS.codes(x).shape == (2, 3)
