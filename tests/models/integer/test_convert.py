"""Integer execution: hand-computed sums, agreement with the simulation, and what must fall back to float."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import empir_plugin
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import InputError
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.activations import SignActivationQuantizer, SignedActivationQuantizer
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer import convert as integer_module
from empir_plugin.models.integer.convert import to_integer
from empir_plugin.models.integer.fuse import AddInto, PoolCodes
from empir_plugin.models.integer.grid import Grid, StaysFloat, input_grid, weight_integers
from empir_plugin.models.integer.kernels import IntegerOp, IntMM, Kernel, OneDNN, Program, pool_codes
from empir_plugin.models.integer.layers import IntegerLayer, integer_layer
from empir_plugin.models.integer.selftest import agree, check_emitted, check_layer
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import ActivationQuantizer, WeightQuantizer
from empir_plugin.models.weight_quantizers import SignWeightQuantizer
from empir_plugin.zoo.quantized.build import normalize_images_

CPU = torch.device("cpu")
SHIPPED = ["cifarconv-w2a2", "cifarconv-w4a2", "mnistconv-w2a4", "empir-cifar", "empir-mnist"]
ONEDNN = pytest.param(
    OneDNN(),
    id="onednn",
    marks=pytest.mark.skipif(OneDNN().unusable(CPU) is not None, reason="no int8 kernels of oneDNN here"),
)
KERNELS = [ONEDNN, pytest.param(IntMM(), id="int_mm")]
each_kernel = pytest.mark.parametrize("kernel", KERNELS)


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


def layers_of(network: nn.Module) -> dict[str, IntegerLayer]:
    return {name: module for name, module in network.named_modules() if isinstance(module, IntegerLayer)}


# -- Known answers


def known_layer() -> QuantLinear:
    """Weights on -1, -1/3, 1/3, 1."""
    layer = QuantLinear(4, 1, bias=False, precision=Precision.parse("w2a2")).eval()
    layer.weight.data.copy_(torch.tensor([[-1.0, -0.2, 0.2, 1.0]]))
    return layer


def test_the_integers_of_a_known_layer() -> None:
    integers = weight_integers(known_layer())
    assert integers.values.tolist() == [[-3, -1, 1, 3]]
    assert integers.scale.tolist() == pytest.approx([1 / 3])
    grid = input_grid(known_layer())
    assert (grid.zero, grid.top, grid.scale) == (0, 3, 1 / 3)
    assert grid.codes(torch.tensor([-0.5, 0.3, 0.6, 7.0])).tolist() == [0, 1, 2, 3]


@each_kernel
def test_the_sum_of_a_known_layer(kernel: Kernel) -> None:
    # 0 * -3 + 1 * -1 + 2 * 1 + 3 * 3 = 10, in ninths.
    found = integer_layer(known_layer(), kernel)(torch.tensor([[-0.5, 0.3, 0.6, 7.0]]))
    assert found.item() == pytest.approx(10 / 9, rel=1e-6)


@each_kernel
def test_the_sums_of_a_known_convolution(kernel: Kernel) -> None:
    layer = QuantConv2d(1, 1, 3, padding=1, bias=True, precision=Precision.parse("w2a1")).eval()
    layer.weight.data.copy_(torch.tensor([-1.0, 0.2, 1.0]).expand(1, 1, 3, 3))
    layer.bias.data.fill_(0.5)  # type: ignore[union-attr]
    # Every row of the filter is (-3, 1, 3) thirds; padding counts as 0.
    found = integer_layer(layer, kernel)(torch.tensor([[1.0, 0.0, 1.0]]).view(1, 1, 1, 3))
    assert (found.flatten() - 0.5).mul(3).tolist() == pytest.approx([1 + 0, -3 + 3, 0 + 1], abs=1e-5)


def test_one_bit_weights_are_plus_and_minus_one_times_their_mean() -> None:
    layer = QuantLinear(4, 1, bias=False, precision=Precision.parse("w1a1"))
    layer.weight.data.copy_(torch.tensor([[-1.0, 0.5, 0.0, -0.5]]))
    integers = weight_integers(layer)
    assert integers.values.tolist() == [[-1, 1, 1, -1]]
    assert integers.scale.item() == pytest.approx(0.5)


def test_a_scale_per_filter_is_found() -> None:
    layer = QuantLinear(2, 2, bias=False, precision=Precision.parse("w1a1"))
    layer.weight.data.copy_(torch.tensor([[-1.0, 0.5], [0.25, 0.25]]))
    layer.use_quantizers_(SignWeightQuantizer(per_filter=True), ActivationQuantizer(1))
    integers = weight_integers(layer)
    assert integers.values.tolist() == [[-1, 1], [1, 1]]
    assert integers.scale.tolist() == pytest.approx([0.75, 0.25])


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
    x = 3 * inputs(3, 4, 7, 7) - 1.5
    assert torch.allclose(grid.values(grid.codes(x)), layer.quantized_input(x), atol=1e-6)
    integer = to_integer(layer)
    assert integer.report.in_float == ()
    assert torch.allclose(integer(x), layer(x), atol=1e-4)


# -- Layers


GEOMETRIES = [
    pytest.param({}, id="plain"),
    pytest.param({"stride": 2, "bias": True}, id="stride-bias"),
    pytest.param({"padding": (2, 1), "stride": (1, 2)}, id="uneven"),
    pytest.param({"groups": 2}, id="groups"),
    pytest.param({"dilation": 2}, id="dilation"),
    pytest.param({"padding": "same"}, id="same"),
    pytest.param({"scale": "max"}, id="scaled"),
    pytest.param({"scale": "mean", "bias": True}, id="scaled-bias"),
]


@each_kernel
@pytest.mark.parametrize("settings", GEOMETRIES)
@pytest.mark.parametrize("text", ["w1a1", "w2a4", "w4a4"])
def test_convolutions_agree_with_the_simulated_ones(text: str, settings: dict[str, Any], kernel: Kernel) -> None:
    layer = conv(text, **settings)
    integer = to_integer(layer, kernel=kernel)
    assert integer.report.on_integers == ("",)
    x = inputs(3, 4, 9, 8)
    with torch.no_grad():
        assert torch.allclose(integer(x), layer(x), rtol=1e-5, atol=1e-5)


@each_kernel
@pytest.mark.parametrize("shape", [(3, 12), (12,), (2, 3, 12)])
def test_linear_layers_agree_for_every_number_of_dimensions(shape: tuple[int, ...], kernel: Kernel) -> None:
    layer = linear()
    x = inputs(*shape)
    with torch.no_grad():
        assert torch.allclose(to_integer(layer, kernel=kernel)(x), layer(x), rtol=1e-5, atol=1e-5)


def test_a_filter_of_zeros_is_no_division_by_zero() -> None:
    layer = conv("w2a2")
    layer.baked_weight = torch.zeros_like(layer.weight)
    assert to_integer(layer)(inputs(1, 4, 5, 5)).abs().max() == 0


@each_kernel
def test_emitted_codes_are_those_of_the_outputs(kernel: Kernel) -> None:
    plain = integer_layer(conv(scale="max"), kernel)
    grid = Grid(1 / 15, 0, 15)
    codes = torch.randint(0, 16, (2, 4, 6, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = plain.with_changes(emits=grid)(codes)
    assert found.dtype == torch.uint8
    assert 0 < found.float().mean() < 15
    assert torch.equal(found, grid.codes(plain(codes)))
    with pytest.raises(StaysFloat, match="emitted codes are wrong"):
        check_emitted(plain, plain.with_changes(emits=grid, scale=1.1 * plain.op.scale), grid)


@pytest.mark.parametrize("settings", [(3, 2), (3, 2, 1), (2, None, 0, 1, True), ((3, 2), (2, 1), (1, 0))])
def test_pooling_codes_is_pooling(settings: tuple[object, ...]) -> None:
    codes = torch.randint(0, 256, (2, 3, 9, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = F.max_pool2d(codes.float(), *settings)  # type: ignore[arg-type]
    assert torch.equal(pool_codes(codes, *settings).float(), expected)  # type: ignore[arg-type]


# -- What stays in float


class OwnConv(QuantConv2d):
    """A subclass of unknown arithmetic."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + 1


STAYS = [
    pytest.param(conv("w8a4"), "8-bit weights are the integers -255 to 255, more than int8 holds", id="w8"),
    pytest.param(conv("w4"), "its input has full precision", id="a32"),
    pytest.param(conv("w32a4"), "its weights have full precision", id="w32"),
    pytest.param(conv().double(), "its weights are torch.float64", id="double"),
    pytest.param(conv(padding_mode="reflect"), "its padding is 'reflect'", id="reflect"),
    pytest.param(conv(padding="same", dilation=(1, 1)), None, id="same-is-fine"),
    pytest.param(
        QuantConv2d(1, 1, 2, padding="same", precision=Precision(2, 2)), "its padding differs", id="uneven-padding"
    ),
    pytest.param(OwnConv(1, 1, 2, precision=Precision(2, 2)), "no integer form of a OwnConv is known", id="subclass"),
]


@pytest.mark.parametrize(("layer", "reason"), STAYS)
def test_what_has_no_integers_stays_float_and_says_why(layer: QuantizedLayer, reason: str | None) -> None:
    (outcome,) = to_integer(layer).report.layers
    assert outcome.on_integers == (reason is None)
    assert reason is None or reason in outcome.reason


def test_full_precision_layers_are_named() -> None:
    report = to_integer(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), conv("w8a8"), conv("w2a2"))).report
    assert (report.on_integers, report.in_float) == (("3",), ("0", "2"))
    assert str(report).splitlines()[0] == "0 (fp): float, its weights and its input have full precision"


def test_weights_off_every_grid_stay_float() -> None:
    layer = conv("w2a2")
    layer.baked_weight = torch.randn_like(layer.weight)
    assert "no integers times one number" in to_integer(layer).report.layers[0].reason


@dataclass(frozen=True)
class Squared(ActivationQuantizer):
    """Levels whose distances grow."""

    def __call__(self, x: Tensor) -> Tensor:
        return super().__call__(x).square()


def test_input_levels_off_every_grid_stay_float() -> None:
    layer = conv("w2a2")
    layer.activation_quantizer = Squared(2)
    assert "no integers of one byte" in to_integer(layer).report.layers[0].reason


def test_a_quantizer_of_unknown_rounding_is_asked_itself() -> None:
    layer = conv("w2a2")
    layer.activation_quantizer = ActivationQuantizer(2, clip=lambda x: x.sigmoid())
    assert input_grid(layer).quantizer is not None
    integer = to_integer(layer)
    assert integer.report.in_float == ()
    assert torch.allclose(integer(inputs(1, 4, 5, 5)), layer(inputs(1, 4, 5, 5)), atol=1e-5)


def test_without_kernels_everything_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    layer = conv()
    integer = to_integer(layer)
    assert "lacks oneDNN's int8 kernels" in integer.report.layers[0].reason
    assert torch.allclose(integer(inputs(1, 4, 5, 5)), layer(inputs(1, 4, 5, 5)), atol=1e-5)


def test_kernels_name_the_devices_they_do_not_run_on() -> None:
    meta = torch.device("meta")
    assert "not on meta" in (OneDNN().unusable(meta) or "")
    assert "does not run on meta" in (IntMM().unusable(meta) or "")


# -- The self-test


@dataclass(frozen=True)
class Altered:
    """A kernel that computes something else."""

    change: Callable[[IntegerOp], IntegerOp] = lambda op: op
    after: Callable[[Tensor], Tensor] = lambda y: y
    name: str = "altered"

    def unusable(self, device: torch.device) -> str | None:
        return None

    def compile(self, op: IntegerOp) -> Program:
        program = IntMM().compile(self.change(op))
        return lambda codes: self.after(program(codes))


def refuse(op: IntegerOp) -> IntegerOp:
    raise RuntimeError("could not create a primitive\nand more")


BROKEN = [
    pytest.param(Altered(lambda op: replace(op, scale=1.001 * op.scale)), "not exact", id="scale"),
    pytest.param(Altered(lambda op: replace(op, weight=op.weight + 1)), "not exact", id="weights"),
    pytest.param(Altered(lambda op: replace(op, bias=op.scale.clone())), "not exact", id="bias"),
    pytest.param(Altered(after=lambda y: y.roll(1, 0)), "not exact", id="images-mixed"),
    pytest.param(Altered(refuse), "refuses it: could not create a primitive", id="refusal"),
]


@pytest.mark.parametrize(("kernel", "reason"), BROKEN)
def test_a_wrong_kernel_is_caught_and_not_used(kernel: Kernel, reason: str) -> None:
    layer = conv()
    integer = to_integer(layer, kernel=kernel)
    assert integer.report.on_integers == ()
    assert reason in integer.report.layers[0].reason
    assert torch.allclose(integer(inputs(1, 4, 5, 5)), layer(inputs(1, 4, 5, 5)), atol=1e-5)


def test_an_altered_kernel_that_alters_nothing_is_used() -> None:
    assert to_integer(conv(), kernel=Altered()).report.on_integers == ("",)


def test_a_broken_scale_is_caught_by_the_comparison_with_the_layer() -> None:
    layer = conv()
    integer = integer_layer(layer, IntMM())
    check_layer(layer, integer)
    with pytest.raises(StaysFloat, match="its outputs differ by"):
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
def test_saturation_is_caught_where_it_can_occur(text: str, exact: bool) -> None:
    layer = linear(text)
    integer = to_integer(layer, kernel=Saturating())
    assert bool(integer.report.on_integers) == exact
    assert exact or "a sum is off by" in integer.report.layers[0].reason
    assert torch.allclose(integer(inputs(9, 12)), layer(inputs(9, 12)), rtol=1e-5, atol=1e-5)


def test_a_single_pair_that_can_saturate_is_found_among_many_filters() -> None:
    layer = QuantLinear(12, 200, bias=False, precision=Precision.parse("w7a8")).eval()
    weight = torch.full((200, 12), 1 / 127)
    weight[0, 0] = weight[171, 4] = weight[171, 5] = 1.0
    layer.baked_weight = weight.clone()
    assert "a sum is off by" in to_integer(layer, kernel=Saturating()).report.layers[0].reason
    weight[171, 5] = 1 / 127  # 255 * (127 + 1) still fits
    layer.baked_weight = weight
    assert to_integer(layer, kernel=Saturating()).report.on_integers == ("",)


@each_kernel
@pytest.mark.parametrize("text", ["w7a8", "w6a8", "w4a8"])
def test_real_kernels_are_exact_or_not_used(text: str, kernel: Kernel) -> None:
    layer = conv(text)
    integer = to_integer(layer, kernel=kernel)
    x = torch.rand(4, 4, 9, 9).round()  # zeros and ones: the largest sums
    with torch.no_grad():
        assert torch.allclose(integer(x), layer(x), rtol=1e-5, atol=1e-5)


# -- Networks


class Block(nn.Module):
    """A residual block: one input to two convolutions, batch normalisation, and an addition in float."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = conv(text, scale="max"), nn.BatchNorm2d(6)
        self.conv2 = QuantConv2d(6, 6, 3, padding=1, precision=Precision.parse(text), scale="max")
        self.bn2 = nn.BatchNorm2d(6)
        self.short, self.bn3 = conv(text, scale="max", seed=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)) + self.bn3(self.short(x)))
        return self.fc(y.mean((2, 3)))


def block(text: str = "w4a4") -> Block:
    torch.manual_seed(3)
    network = Block(text).train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, -1.5, 1.5)  # negative ones turn the order of values around
            nn.init.uniform_(module.bias, 0.0, 0.6)
    network(torch.rand(32, 3, 8, 8))
    return network.eval()


@each_kernel
def test_batch_normalisation_is_folded_and_codes_are_handed_on(kernel: Kernel) -> None:
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
def test_sums_in_place_leave_their_other_term_alone(outputs: int) -> None:
    network, x = Sum(outputs).eval(), inputs(50, 6)
    integer, before = to_integer(network), inputs(50, 6)
    assert any(isinstance(module, AddInto) for module in integer.modules())
    assert agree(network, integer, x).max_logit_difference < 1e-4
    assert torch.equal(x, before)


def test_an_output_needed_elsewhere_is_not_added_to_in_place() -> None:
    class Reused(Sum):
        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            return (y + x) * y

    network = Reused(6).eval()
    integer = to_integer(network)
    assert not any(isinstance(module, AddInto) for module in integer.modules())
    assert agree(network, integer, inputs(50, 6)).max_logit_difference < 1e-4


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
    assert agree(network, integer, torch.rand(50, 1, 8, 8)).max_logit_difference < 1e-4


def test_layers_of_different_grids_get_no_codes_that_fit_only_one() -> None:
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
    assert agree(network, integer, inputs(50, 6)).max_logit_difference < 1e-4


def test_a_layer_used_twice_is_left_as_it_is() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = QuantLinear(5, 5, precision=Precision.parse("w4a4"))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())

    network = Twice().eval()
    integer = to_integer(network)
    assert layers_of(integer)["network.layer"].op.emits is None
    assert agree(network, integer, inputs(50, 5)).max_logit_difference < 1e-4


def test_one_layer_under_two_names_is_one_layer() -> None:
    shared = QuantLinear(5, 5, precision=Precision.parse("w2a2"))
    network = nn.Sequential(shared, nn.ReLU(), shared).eval()
    integer = to_integer(network)
    assert integer.report.in_float == ()
    assert not any(type(module) is QuantLinear for module in integer.modules())
    assert agree(network, integer, inputs(50, 5)).max_logit_difference < 1e-4


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
    assert agree(network, integer, inputs(50, 6)).max_logit_difference < 1e-4


def test_an_ensemble_keeps_its_leader() -> None:
    members = [pooled_flat("w2a2", 0), pooled_flat("w4a4", 1), pooled_flat("fp", 2)]
    ensemble = Ensemble(members).eval()
    integer = to_integer(nn.Sequential(ensemble))
    (inner,) = (module for module in integer.modules() if isinstance(module, Ensemble))
    assert (ensemble.leader, inner.leader) == (2, 2)
    assert integer.report.in_float == ("0.members.2.0", "0.members.2.2")
    assert layers_of(integer)["network.0.members.0.0"].op.emits is not None
    assert agree(ensemble, integer, inputs(200, 8)).differing_decisions == 0


def pooled_flat(text: str, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    precision = Precision.parse(text)
    return nn.Sequential(
        QuantLinear(8, 8, precision=precision), nn.ReLU(), QuantLinear(8, 3, precision=precision)
    ).eval()


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_models_agree_on_bundled_images(name: str) -> None:
    dataset = "mnist" if "mnist" in name else "cifar10"
    model = prepare(empir_plugin.load_model(name, dataset=dataset), CPU)
    integer = to_integer(model)
    convolutions = [f"conv{number}" for number in (1, 2, 3)]
    assert {layer.rpartition(".")[2] for layer in integer.report.on_integers} == set(convolutions)
    agreement = agree(model, integer, load_images(dataset).as_float()[:200])
    assert (agreement.images, agreement.differing_decisions) == (200, 0)
    assert 0 < agreement.max_logit_difference < 1e-4


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("name", ["cifarconv-w2a2", "cifarconv-w4a2", "empir-cifar"])
def test_every_decision_on_the_full_test_set_agrees(name: str, data_dir: Path) -> None:
    model = prepare(empir_plugin.load_model(name, dataset="cifar10"), CPU)
    images = load_images("cifar10", data_dir=data_dir).as_float()
    agreement = agree(model, to_integer(model), images, batch_size=200)
    assert (agreement.images, agreement.differing_decisions) == (10_000, 0)
    assert agreement.max_logit_difference < 1e-4


# -- Hooks of the network itself


def normalised(text: str = "w4a4") -> Block:
    """A network that takes images of [0, 1], and subtracts a mean and divides by a deviation in a hook."""
    network = block(text)
    normalize_images_(network, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    return network


@each_kernel
def test_a_network_normalises_its_images_on_integers_too(kernel: Kernel) -> None:
    network, images = normalised(), torch.rand(8, 3, 8, 8)
    integer = to_integer(network, kernel=kernel)
    with torch.no_grad():
        assert torch.allclose(integer(images), network(images), rtol=0, atol=1e-4)
        assert not torch.allclose(integer(images), block()(images), rtol=0, atol=1e-2)
    assert "codes_of" in str([name for name, _ in integer.named_modules()]), "it was traced"


def test_hooks_behind_a_network_are_kept_as_well_and_inside_of_an_ensemble() -> None:
    network, images = normalised(), torch.rand(8, 3, 8, 8)
    network.register_forward_hook(lambda module, inputs, output: 2 * output)
    for model in (network, Ensemble([network, block("w2a2")])):
        with torch.no_grad():
            assert torch.allclose(to_integer(model)(images), model(images), rtol=0, atol=1e-4)


def test_a_network_without_hooks_keeps_the_names_of_its_layers() -> None:
    assert "network.conv1" in layers_of(to_integer(block()))


# -- The whole network's check


def test_given_images_the_report_holds_the_agreement() -> None:
    network = pooled_flat("w4a4", 0)
    agreement = to_integer(network, like=inputs(20, 8)).report.agreement
    assert agreement is not None
    assert (agreement.images, agreement.differing_decisions) == (20, 0)


def test_a_wrong_graph_is_replaced_by_the_plain_exchange_of_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_module, "fuse", lambda network: (nn.Sequential(network, nn.ReLU()), []))
    network = pooled_flat("w4a4", 0)
    integer = to_integer(network, like=inputs(20, 8))
    assert "logits differ by" in integer.report.notes[0]
    assert integer.report.on_integers == ("0", "2")
    assert agree(network, integer, inputs(20, 8)).max_logit_difference < 1e-5


def test_a_network_that_fails_as_a_whole_stays_float(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_module, "check_layer", lambda layer, integer: None)
    network = pooled_flat("w4a4", 0)
    integer = to_integer(network, like=inputs(20, 8), kernel=Altered(after=lambda y: y * 1.5))
    assert integer.report.on_integers == ()
    assert {layer.reason for layer in integer.report.layers} == {
        "the whole network's logits are not the simulated ones"
    }
    assert torch.allclose(integer(inputs(20, 8)), network(inputs(20, 8)), atol=1e-5)


# -- Contracts


def test_the_model_is_left_as_it_is() -> None:
    network = block().train()
    before = copy.deepcopy(network.state_dict())
    to_integer(network)
    assert network.training
    assert network.conv1.baked_weight is None
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_baked_weights_are_taken_as_they_are() -> None:
    layer = conv("w2a2")
    layer.baked_weight = torch.ones_like(layer.weight)
    assert to_integer(layer)(torch.ones(1, 4, 3, 3))[0, 0, 1, 1].item() == pytest.approx(36)


def test_gradients_are_refused() -> None:
    integer = to_integer(linear())
    for network in (integer, integer.network):
        with pytest.raises(InputError, match="integers have no gradient"):
            network(inputs(2, 12).requires_grad_())
    with torch.no_grad():
        assert integer(inputs(2, 12).requires_grad_()).shape == (2, 5)


def test_a_second_conversion_is_refused() -> None:
    with pytest.raises(InputError, match="runs on integers already"):
        to_integer(to_integer(linear()))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
@pytest.mark.parametrize("name", ["residual", "cifarconv"])
def test_integer_models_can_be_copied(name: str, duplicate: Callable[[nn.Module], nn.Module]) -> None:
    integer = to_integer(block() if name == "residual" else CIFARConv(Precision(2, 2)))
    assert any(isinstance(module, (AddInto, PoolCodes)) for module in integer.modules())
    x = torch.rand(3, 3, 8, 8) if name == "residual" else torch.rand(3, 3, 32, 32)
    assert torch.equal(duplicate(integer)(x), integer(x))


def test_integer_models_can_be_prepared_for_an_evaluation() -> None:
    integer, x = to_integer(block()), torch.rand(3, 3, 8, 8)
    assert torch.allclose(prepare(integer, CPU)(x), integer(x), atol=1e-6)


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
