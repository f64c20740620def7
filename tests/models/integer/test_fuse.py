"""What stands between integer layers: sums, roundings and ReLUs in place and in pieces, with the same results."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.activations import SignedActivationQuantizer
from empir_plugin.models.integer import grid as integer_pieces
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.fuse import AddAndRound, AddInto, Codes
from empir_plugin.models.integer.grid import Grid, pieces
from empir_plugin.models.integer.selftest import agree
from empir_plugin.models.layers import QuantLinear
from empir_plugin.models.precision import Precision

FOUR_BITS = Grid(1 / 15, 0, 15)
EIGHT_BITS = Grid(1 / 255, 0, 255)
SIGNED = Grid(1 / 15, 15, 30, SignedActivationQuantizer(4))
each_grid = pytest.mark.parametrize("grid", [FOUR_BITS, EIGHT_BITS, SIGNED], ids=["4", "8", "signed"])


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for 20 numbers at a time, on one thread."""
    monkeypatch.setattr(integer_pieces, "_PIECE", 20)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.fixture(autouse=True)
def same_weights() -> Iterator[None]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        yield


def inputs(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.rand(shape, generator=torch.Generator().manual_seed(seed)) - 0.5


# -- Pieces


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
def test_several_threads_are_given_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
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


# -- Sums


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_takes_the_memory_of_its_first_term(relu: bool) -> None:
    fresh, other = inputs(9, 2, 3, 4), inputs(9, 2, 3, 4, seed=1) - 1
    expected, kept = fresh + other, other.clone()
    found = AddInto(relu)(fresh, other)
    assert torch.equal(found, expected.relu() if relu else expected)
    assert found.data_ptr() == fresh.data_ptr()
    assert torch.equal(other, kept)


@each_grid
@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("channels", [2, 1], ids=["same-shape", "broadcast"])
def test_a_sum_and_its_codes(grid: Grid, channels: int) -> None:
    fresh, other = inputs(9, channels, 3, 4), inputs(9, 2, 3, 4, seed=1) - 0.3
    expected = (fresh + other).relu()
    total, codes = AddAndRound(True, grid)(fresh, other)
    assert torch.equal(total, expected)
    assert torch.equal(codes, grid.codes(expected))
    assert codes.dtype == torch.uint8


def test_codes_of_what_wants_a_gradient_are_refused() -> None:
    x = torch.rand(2, 3, requires_grad=True)
    with pytest.raises(InputError, match="integers have no gradient"):
        FOUR_BITS.codes(x)
    with torch.no_grad():
        assert FOUR_BITS.codes(x).shape == (2, 3)


# -- Networks


class Residual(nn.Module):
    """Sums of an integer layer and its input; the first goes on to layers of integers, and to the second sum."""

    def __init__(self, *texts: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList([QuantLinear(6, 6, precision=Precision.parse(text)) for text in texts])

    def forward(self, x: Tensor) -> Tensor:
        y = (self.layers[0](x) + x).relu()
        total = y
        for layer in self.layers[1:]:
            total = total + layer(y)
        return total


@pytest.mark.parametrize(
    ("texts", "kinds"),
    [
        (("w4a4", "w4a4"), [AddAndRound, AddInto]),
        (("w4a4", "w4a4", "w2a4"), [AddAndRound, AddInto, AddInto]),
        (("w4a4", "w4a4", "w4a2"), [AddInto, AddInto, AddInto]),
        (("w4a4",), [AddInto]),
    ],
    ids=["one-taker", "two-takers", "two-grids", "no-taker"],
)
def test_a_sum_is_rounded_where_it_is_made(texts: tuple[str, ...], kinds: list[type]) -> None:
    network = Residual(*texts).eval()
    integer, x = to_integer(network), inputs(50, 6)
    before = x.clone()
    assert integer.report.notes == ()
    assert [type(m) for m in integer.modules() if isinstance(m, (AddInto, AddAndRound, Codes))] == kinds
    assert agree(network, integer, x).max_logit_difference < 1e-4
    assert torch.equal(x, before)


class Rectified(nn.Module):
    """A layer in float, a ReLU, an integer layer; where the first output is needed again, nothing may overwrite it."""

    def __init__(self, again: bool) -> None:
        super().__init__()
        self.again = again
        self.stem, self.layer = nn.Linear(6, 6), QuantLinear(6, 6, precision=Precision.parse("w4a4"))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        z = self.layer(F.relu(y))
        return z * y if self.again else z


@pytest.mark.parametrize("again", [False, True])
def test_a_relu_overwrites_what_nothing_else_needs(again: bool) -> None:
    network = Rectified(again).eval()
    integer, x = to_integer(network), inputs(50, 6)
    assert [m.inplace for m in integer.modules() if isinstance(m, nn.ReLU)] == ([] if again else [True])
    assert agree(network, integer, x).max_logit_difference < 1e-4


def test_a_relu_leaves_the_image_alone() -> None:
    network = nn.Sequential(nn.ReLU(), QuantLinear(6, 2, precision=Precision.parse("w4a4"))).eval()
    x = inputs(50, 6)
    before = x.clone()
    assert agree(network, to_integer(network), x).max_logit_difference < 1e-4
    assert torch.equal(x, before)
    assert (x < 0).any()
