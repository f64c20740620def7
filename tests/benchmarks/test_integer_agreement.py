"""The benchmark of agreement: gaps by hand, forms that really run as they say, and detection of what differs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from empir_plugin.models.integer.kernels import OneDNN
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.layers import QuantConv2d, quantized_layers
from empir_plugin.models.quantize import Precision

needs_kernels = pytest.mark.skipif(OneDNN().unusable(torch.device("cpu")) is not None, reason="no int8 kernels here")


@pytest.fixture
def script(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("integer_agreement")


@pytest.fixture
def forms(script: ModuleType) -> ModuleType:
    return importlib.import_module("integer_forms")


@pytest.fixture(autouse=True)
def same_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    assert torch.get_num_threads() == before


def low(text: str = "w4a4") -> QuantConv2d:
    return QuantConv2d(6, 6, 3, padding=1, bias=False, precision=Precision.parse(text), scale="max")


def network() -> nn.Sequential:
    """Normalized, so that every rounding before a quantizer may decide on a level."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return _normalized()


def _normalized() -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), low(), nn.BatchNorm2d(6), low(), nn.BatchNorm2d(6)]
    built = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 6 * 6, 10))
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.2, 0.8)
    built(torch.rand(64, 3, 8, 8))
    return built.eval()


def images(count: int = 30) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def usable(script: ModuleType) -> dict[str, Any]:
    return {name: form for name, form, reason in script.usable() if not reason}


def test_a_gap_by_hand(script: ModuleType) -> None:
    one = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [5.0, 5.1]])
    other = torch.tensor([[1.0, 0.0], [torch.nextafter(one[1, 0], one[0, 0]), 1.0], [0.0, 2.5], [5.0, 4.75]])
    found = script.Gap.between(one, other)
    assert (found.images, found.differing_images, found.differing_decisions) == (4, 3, 1)
    assert found.max_logit_difference == pytest.approx(0.5)
    assert str(found) == "logits of 3 of 4 images differ (by at most 0.5), 1 decisions"
    assert script.Gap.between(one, one) == script.Gap(4, 0, 0, 0.0)


# -- Forms


def test_two_threads_and_the_layout_are_what_a_form_says(forms: ModuleType) -> None:
    seen = []

    class Look(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append((torch.get_num_threads(), x.is_contiguous(memory_format=torch.channels_last)))
            return x.flatten(1)

    for name in ("float32, NCHW", "float32, two threads"):
        form = forms.FORMS[name]
        form.logits(form.network(Look().eval()), images())
    assert seen == [(1, False), (2, True)]


def test_bfloat16_math_is_on_in_quantized_layers_only(forms: ModuleType) -> None:
    if forms.no_bf16_math():
        pytest.skip(forms.no_bf16_math())
    switch: Any = torch.backends.mkldnn.conv
    before, seen = switch.fp32_precision, []

    class Look(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(switch.fp32_precision)
            return super().forward(x)

    class LookInside(QuantConv2d):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(switch.fp32_precision)
            return super().forward(x)

    inside = LookInside(4, 4, 1, precision=Precision(2, 2))
    unlike = LookInside(4, 4, 1, precision=Precision(2, 32))
    ready = forms.FORMS["bfloat16 math"].network(nn.Sequential(Look(3, 4, 1), inside, unlike, nn.Flatten()).eval())
    ready(images())
    assert seen == [before, "bf16", before]
    with pytest.raises(RuntimeError):
        ready[1](images())  # three channels
    assert switch.fp32_precision == before


def test_without_the_switch_or_the_instructions_there_is_a_reason(
    forms: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    form = forms.FORMS["bfloat16 math"]
    with monkeypatch.context() as patch:
        patch.setattr(nn.functional, "conv2d", lambda x, weight: torch.zeros(1))
        assert form.unusable() == "the processor multiplies in float32 all the same"
    monkeypatch.setattr(torch.backends.mkldnn, "conv", None, raising=False)
    assert "has no switch" in form.unusable()


@needs_kernels
def test_int8_kernels_run_all_layers_of_the_form(forms: ModuleType) -> None:
    ready = forms.FORMS["int8 kernels"].network(network())
    assert sum(isinstance(module, IntegerLayer) for module in ready.modules()) == 2


# -- Comparisons


@needs_kernels
def test_all_forms_have_the_same_sums_and_logits(script: ModuleType) -> None:
    forms = usable(script)
    found = script.gaps(network(), forms, images(), 7)
    assert len(found) == len(forms) * (len(forms) - 1) // 2 >= 6
    exact = {pair: gap for pair, gap in found.items() if "float32, NCHW" not in pair}
    assert all(gap == script.Gap(30, 0, 0, 0.0) for gap in exact.values())
    layers = script.sums(network(), forms, images(), 7)
    assert [layer["layer"] for layer in layers] == ["2", "4"]
    assert all(layer["sums"] == 30 * 6 * 6 * 6 for layer in layers)
    assert all(set(layer["wrong"]) == set(forms) and not any(layer["wrong"].values()) for layer in layers)


@needs_kernels
def test_wrong_sums_and_logits_are_seen(script: ModuleType, forms: ModuleType) -> None:
    class Off(forms.Form):  # type: ignore[name-defined]
        def logits(self, network: nn.Module, images: Tensor) -> Tensor:
            return super().logits(network, images) + torch.eye(len(images), 10)

        def sums(self, layer: Any, x: Tensor) -> Tensor:
            found = super().sums(layer, x).clone()
            found[:, 0, 0, 0] += 1
            return found

    both = {"plain": forms.Form(), "off": Off()}
    (gap,) = script.gaps(network(), both, images(), 7).values()
    assert gap.differing_images == 30
    assert gap.max_logit_difference == pytest.approx(1)
    layers = script.sums(network(), both, images(), 7)
    assert [layer["wrong"] for layer in layers] == [{"plain": 0, "off": 30}] * 2


def test_a_layer_without_integers_has_no_sums(script: ModuleType) -> None:
    (layer,) = script.sums(nn.Sequential(nn.Conv2d(3, 6, 1), low("w32a4")).eval(), usable(script), images(4), 4)
    assert layer == {"layer": "1", "sums": 0, "wrong": {}}


def test_an_operation_that_depends_on_the_layout_is_named(script: ModuleType) -> None:
    class ByLayout(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return _by_layout(x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.odd, self.low = nn.Conv2d(3, 6, 3), ByLayout(), low()

        def forward(self, x: Tensor) -> Tensor:
            return self.low(self.odd(self.stem(x)).relu()).flatten(1)

    found = script.differing_operations(Net().eval(), usable(script), images())
    assert found["float32, NCHW"] == ["_by_layout"]
    assert found["float32, two threads"] == []
    assert "int8 kernels" not in found


@torch.fx.wrap
def _by_layout(x: Tensor) -> Tensor:
    return x + 1e-3 if x.is_contiguous() else x


# -- The script


@needs_kernels
def test_the_script_writes_what_it_prints(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        script.empir_plugin, "load_model", lambda name, dataset: nn.Sequential(nn.ZeroPad2d(-12), network())
    )
    target = tmp_path / "agreement.json"
    arguments = ["--model", "toy", "--n-examples", "9", "--batch-size", "4", "--out", str(target)]
    output = CliRunner().invoke(script.main, arguments, catch_exceptions=False).output
    record = json.loads(target.read_text())
    assert list(record) == ["machine", "versions", "settings", "left_out", "models", "finished"]
    assert record["settings"] == {"images": 9, "batch_size": 4}
    (model,) = record["models"].values()
    forms = usable(script)
    assert {*forms, *record["left_out"]} == set(script.FORMS)
    assert len(model["logits"]) == len(forms) * (len(forms) - 1) // 2
    assert {row["images"] for row in model["logits"]} == {9}
    assert output.count("of 9 images differ") == len(model["logits"])
    assert sum(layer["sums"] for layer in model["sums"]) == 2 * 9 * 6 * 6 * 6
    assert "3,888 sums" in output


def test_a_folder_that_is_missing_is_refused_before_anything_runs(script: ModuleType, tmp_path: Path) -> None:
    result = CliRunner().invoke(script.main, ["--out", str(tmp_path / "nowhere" / "agreement.json")])
    assert result.exit_code == 1
    assert "make it first" in result.output


def test_a_folder_without_images_is_refused(script: ModuleType, tmp_path: Path) -> None:
    result = CliRunner().invoke(script.main, ["--data-dir", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert str(tmp_path) in result.output


@needs_kernels
@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifarconv-w4a2", "wrn-10-1-w4a4", "wrn-10-1-w2a2"])
def test_shipped_networks_agree_in_every_form(script: ModuleType, name: str) -> None:
    model = script.empir_plugin.load_model(name, dataset="cifar10")
    assert any(True for _ in quantized_layers(model))
    x = script.empir_plugin.load_images("cifar10").as_float()[:200]
    found = script.gaps(model, usable(script), x, 50)
    assert {gap.differing_images for gap in found.values()} == {0}
    layers = script.sums(model, usable(script), x, 50)
    assert all(layer["sums"] and not any(layer["wrong"].values()) for layer in layers)
