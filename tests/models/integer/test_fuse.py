"""Fusion: layers pass codes to each other, and sums, roundings and ReLUs in place give the same results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.models.activations import SignedActivationQuantizer
from empir_plugin.models.integer import codes as integer_pieces
from empir_plugin.models.integer.codes import Grid, NotANumber
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.fuse import AddAndRound, AddInto, Codes
from empir_plugin.models.integer.kernels import Kernel
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.integer.selftest import agree
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.quantize import Precision

FOUR_BITS = Grid(0, 15)

EIGHT_BITS = Grid(0, 255)

W4A4 = Precision.parse("w4a4")
SIGNED = Grid(15, 30, SignedActivationQuantizer(4).integers)

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


def conv(text: str = "w4a4", *, seed: int = 0, **settings: Any) -> QuantConv2d:
    torch.manual_seed(seed)
    options = {"padding": 1, "bias": False, **settings}
    return QuantConv2d(4, 6, 3, precision=Precision.parse(text), **options).eval()  # type: ignore[arg-type]


def linear(text: str = "w4a4", *, bias: bool = True) -> QuantLinear:
    torch.manual_seed(0)
    return QuantLinear(12, 5, bias=bias, precision=Precision.parse(text)).eval()


def layers_of(network: nn.Module) -> dict[str, IntegerLayer]:
    return {name: module for name, module in network.named_modules() if isinstance(module, IntegerLayer)}


def test_modules_called_by_keyword_are_fused_as_others(kernel: Kernel) -> None:
    class ByKeyword(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            for module in self:
                x = module(input=x)
            return x

    modules = conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), QuantLinear(24, 5, precision=W4A4)
    plain, called = nn.Sequential(*modules).eval(), ByKeyword(*modules).eval()
    expected, found = to_integer(plain, kernel=kernel), to_integer(called, kernel=kernel)
    assert found.report.notes == expected.report.notes
    assert [layer.op.emits for layer in layers_of(found).values()] == [FOUR_BITS, None]
    assert torch.equal(found(inputs(3, 4, 4, 4)), expected(inputs(3, 4, 4, 4)))
    assert agree(plain, found, inputs(9, 4, 4, 4)).differing_decisions == 0


def test_batch_normalisation_is_folded_and_codes_are_passed_on(kernel: Kernel, block: Callable[..., nn.Module]) -> None:
    network = block()
    integer = to_integer(network, kernel=kernel)
    found = layers_of(integer)
    assert {name: layer.op.emits is not None for name, layer in found.items()} == {
        "network.conv1": True,
        "network.conv2": False,
        "network.short": False,
    }
    left = [name for name, module in integer.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert left == ["network.bn0"]
    # conv1 and the shortcut take the same input: it is rounded once.
    assert [name for name, _ in integer.named_modules() if "codes_of" in name] == ["network.codes_of_relu"]
    assert any(isinstance(module, AddInto) for module in integer.modules())
    assert integer.report.notes == ()
    agreement = agree(network, integer, torch.rand(64, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    assert agreement.differing_decisions == 0
    assert agreement.median_logit_difference < 1e-5


class Sum(nn.Module):
    """An integer layer's output plus something that must not be overwritten."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.layer = QuantLinear(6, outputs, precision=Precision.parse("w4a4"))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.layer(x)) + x


@pytest.mark.parametrize("outputs", [6, 1], ids=["same-shape", "broadcast"])
def test_sums_in_place_do_not_change_the_other_term(outputs: int) -> None:
    network, x = Sum(outputs).eval(), inputs(50, 6)
    integer, before = to_integer(network), inputs(50, 6)
    assert any(isinstance(module, AddInto) for module in integer.modules())
    assert agree(network, integer, x).max_logit_difference == 0
    assert torch.equal(x, before)


def test_an_output_needed_elsewhere_is_not_added_to_in_place() -> None:
    class Reused(Sum):
        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return (y + x) * y

    network = Reused(6).eval()
    integer = to_integer(network)
    assert not any(isinstance(module, AddInto) for module in integer.modules())
    assert agree(network, integer, inputs(50, 6)).max_logit_difference == 0


def pooled(text: str = "w2a2") -> nn.Sequential:
    torch.manual_seed(0)
    first = QuantConv2d(1, 4, 3, padding=1, precision=Precision.parse(text))
    last = QuantLinear(4 * 4 * 4, 10, precision=Precision.parse(text))
    pool, pad = nn.MaxPool2d(3, 2, padding=1), nn.ZeroPad2d((0, 1, 1, 0))
    return nn.Sequential(first, pool, nn.ReLU(), conv(text), nn.ReLU(), nn.Dropout(), pad, nn.Flatten(), last).eval()


def test_what_only_moves_values_works_on_codes() -> None:
    network = pooled()
    network[8] = QuantLinear(6 * 5 * 5, 10, precision=Precision.parse("w2a2")).eval()
    integer = to_integer(network)
    emits = [layer.op.emits is not None for layer in layers_of(integer).values()]
    assert emits == [True, True, False]
    assert not any(isinstance(module, (nn.ReLU, nn.MaxPool2d)) for module in integer.modules())
    assert agree(network, integer, torch.rand(50, 1, 8, 8)).max_logit_difference == 0


@pytest.mark.parametrize("at", range(9))
def test_modules_with_hooks_compute_what_their_hooks_make_of_it(at: int) -> None:
    network, seen = pooled(), []
    network[8] = QuantLinear(6 * 5 * 5, 10, precision=Precision.parse("w2a2")).eval()
    network[at].register_forward_hook(lambda module, args, output: (seen.append(type(module)), output * 0.5 + 0.1)[1])
    integer, x = to_integer(network), torch.rand(50, 1, 8, 8)
    seen.clear()
    integer(x)
    assert seen == [type(network[at])]
    assert agree(network, integer, x).max_logit_difference == 0


def test_layers_of_different_grids_get_float_inputs() -> None:
    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = QuantLinear(6, 12, precision=Precision.parse("w2a2"))
            self.two, self.four = linear("w2a2"), linear("w2a4")

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x).relu()
            return self.two(y) + self.four(y)

    network = Fork().eval()
    integer = to_integer(network)
    assert layers_of(integer)["network.first"].op.emits is None
    assert layers_of(integer)["network.first"].op.relu
    assert agree(network, integer, inputs(50, 6)).max_logit_difference == 0


def test_a_layer_used_twice_is_not_changed() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = QuantLinear(5, 5, precision=Precision.parse("w4a4"))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())

    network = Twice().eval()
    integer = to_integer(network)
    assert layers_of(integer)["network.layer"].op.emits is None
    assert agree(network, integer, inputs(50, 5)).max_logit_difference == 0


def test_a_network_that_cannot_be_traced_still_runs_on_integers() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = QuantLinear(6, 12, precision=Precision.parse("w2a2")), linear("w2a2")

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            return self.second(y.relu() if y.sum() > 0 else y)

    network = Untraceable().eval()
    integer = to_integer(network)
    assert integer.report.on_integers == ("first", "second")
    assert "Untraceable cannot be traced" in integer.report.notes[0]
    assert agree(network, integer, inputs(50, 6)).max_logit_difference == 0


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("relu", [False, True])
def test_a_sum_is_computed_in_its_first_term(relu: bool) -> None:
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
def test_a_sum_is_rounded_where_it_is_computed(texts: tuple[str, ...], kinds: list[type]) -> None:
    network = Residual(*texts).eval()
    integer, x = to_integer(network), inputs(50, 6)
    before = x.clone()
    assert integer.report.notes == ()
    assert [type(m) for m in integer.modules() if isinstance(m, (AddInto, AddAndRound, Codes))] == kinds
    assert agree(network, integer, x).max_logit_difference == 0
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
def test_a_relu_overwrites_outputs_without_other_users(again: bool) -> None:
    network = Rectified(again).eval()
    integer, x = to_integer(network), inputs(50, 6)
    assert [m.inplace for m in integer.modules() if isinstance(m, nn.ReLU)] == ([] if again else [True])
    assert agree(network, integer, x).max_logit_difference == 0


def test_a_relu_does_not_change_the_image() -> None:
    network = nn.Sequential(nn.ReLU(), QuantLinear(6, 2, precision=Precision.parse("w4a4"))).eval()
    x = inputs(50, 6)
    before = x.clone()
    assert agree(network, to_integer(network), x).max_logit_difference == 0
    assert torch.equal(x, before)
    assert (x < 0).any()


def test_parts_with_hooks_show_them_tensors_and_call_them_in_every_pass() -> None:
    network, seen = nn.Sequential(*pooled()[:3], nn.Sequential(*pooled()[3:5])).eval(), []
    part: Any = network[3]
    part.register_forward_hook(lambda module, args, output: seen.append(type(output)))
    integer = to_integer(network)
    assert seen == []
    assert len(layers_of(integer)) == 2
    x = torch.rand(50, 1, 8, 8)
    integer(x)
    assert seen == [Tensor]
    assert agree(network, integer, x).max_logit_difference == 0


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = pooled()[:1]

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x + 0.5 * torch.rand(1, 8, 8))


def test_random_numbers_are_drawn_anew_in_every_pass() -> None:
    network, x = Noisy().eval(), torch.rand(5, 1, 8, 8)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    integer = to_integer(network)
    assert torch.equal(torch.rand(3), expected)
    assert "draws random numbers" in integer.report.notes[0]
    assert not torch.equal(integer(x), integer(x))


def test_sums_that_cannot_be_nan_are_not_checked_for_it_and_others_are() -> None:
    def checks(network: nn.Module) -> list[bool]:
        return [module.check for module in to_integer(network).modules() if isinstance(module, AddAndRound)]

    network = Residual("w4a4", "w4a4").eval()
    assert checks(network) == [False]  # the image is rounded by the first layer, which raises
    with torch.no_grad():
        network.layers[0].bias.fill_(1e35)  # type: ignore[operator, union-attr]
    assert checks(network) == [True]

    class Doubtful(Residual):
        def forward(self, x: Tensor) -> Tensor:
            return self.layers[1]((self.layers[0](x) + x.log()).relu())

    doubtful, x = Doubtful("w4a4", "w4a4").eval(), inputs(50, 6).abs()
    assert checks(doubtful) == [True]
    assert agree(doubtful, to_integer(doubtful), x).max_logit_difference == 0
    x[3, 2] = -1
    with pytest.raises(NotANumber, match="NaN"):
        to_integer(doubtful)(x)
