"""The benchmark of agreement: gaps by hand, forms of a network, and detection of a wrong one."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

from empir_plugin.models.integer.kernels import OneDNN
from empir_plugin.models.integer.layers import IntegerLayer
from empir_plugin.models.layers import QuantConv2d, bake_, quantized_layers
from empir_plugin.models.quantize import Precision

needs_kernels = pytest.mark.skipif(OneDNN().unusable(torch.device("cpu")) is not None, reason="no int8 kernels here")


@pytest.fixture
def script(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("integer_agreement")


@pytest.fixture
def forms(script: ModuleType) -> ModuleType:
    return importlib.import_module("integer_forms")


def low() -> QuantConv2d:
    return QuantConv2d(6, 6, 3, padding=1, bias=False, precision=Precision.parse("w4a4"), scale="max")


def network() -> nn.Sequential:
    """Normalised, so that every rounding before a quantizer may decide on a level."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        return _normalised()


def _normalised() -> nn.Sequential:
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), low(), nn.BatchNorm2d(6), low(), nn.BatchNorm2d(6)]
    built = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 6 * 6, 10))
    for module in built.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.bias, 0.2, 0.8)
    built(torch.rand(64, 3, 8, 8))
    return built.eval()


def images(count: int = 30) -> Tensor:
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_a_gap_by_hand(script: ModuleType) -> None:
    one = torch.tensor([[1.0, 0.0], [2.0, 1.0], [0.0, 3.0], [5.0, 5.1]])
    other = torch.tensor([[1.0, 0.0], [2.00005, 1.0], [0.0, 2.5], [5.0, 4.8]], dtype=torch.float64)
    found = script.Gap.between(one, other)
    assert (found.images, found.beyond_tolerance, found.differing_decisions) == (4, 2, 1)
    assert found.max_logit_difference == pytest.approx(0.5)
    assert found.median_logit_difference == pytest.approx(5e-5, rel=0.01)  # of 0, 5e-5, 0.3, 0.5: the lower one
    assert found.largest_lead == pytest.approx(0.2)
    assert str(found).startswith("2 of 4 images off by more than 0.0001 (at most 0.5, ")
    assert script.Gap.between(one, one).largest_lead == 0


def test_exact_levels_are_integers_times_one_step(forms: ModuleType) -> None:
    model = network()
    bake_(model)
    exact = dict(quantized_layers(forms.to_exact_levels(model)))
    for (_, layer), ready in zip(quantized_layers(model), exact.values(), strict=True):
        levels, rounded = ready.quantized_weight(), layer.quantized_weight().double()
        codes = 15 * levels / levels.abs().max()
        assert levels.dtype == torch.float64
        assert (codes - codes.round()).abs().max() < 1e-14
        assert torch.allclose(levels, rounded, atol=1e-6)
        assert not torch.equal(levels, rounded), "float32 has rounded its own"


@needs_kernels
def test_integers_in_float64_are_the_network_in_float64(script: ModuleType, forms: ModuleType) -> None:
    model = network()
    built = {name: make(model) for name, make in forms.FORMS.items()}
    kinds = [isinstance(module, IntegerLayer) for module in built["on integers, float64 between"].modules()]
    assert sum(kinds) == 2
    found = script.gaps(built, images(), 7)
    assert list(found) == script.PAIRS
    exact = found[forms.EXACT, "on integers, float64 between"]
    assert (exact.images, exact.beyond_tolerance) == (30, 0)
    assert exact.max_logit_difference < 1e-12
    assert 1e-9 < found[forms.EXACT, forms.SIMULATED].median_logit_difference < 1e-4
    assert all(layer.baked_weight is None for _, layer in quantized_layers(model)), "the model is left as it is"


@needs_kernels
def test_one_weight_on_another_level_is_seen(script: ModuleType, forms: ModuleType) -> None:
    model, other = network(), network()
    (_, last) = list(quantized_layers(other))[-1]
    last.weight.data[0, 0, 1, 1] *= -1
    built = {name: make(model) for name, make in forms.FORMS.items()}
    built["on integers, float64 between"] = forms.to_integers_in_float64(other)
    found = script.gaps(built, images(), 7)
    assert found[forms.EXACT, "on integers, float64 between"].beyond_tolerance == 30


@needs_kernels
def test_the_script_writes_what_it_prints(script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        script.empir_plugin, "load_model", lambda name, dataset: nn.Sequential(nn.ZeroPad2d(-12), network())
    )
    target = tmp_path / "agreement.json"
    arguments = ["--model", "toy", "--n-examples", "9", "--batch-size", "4", "--out", str(target)]
    output = CliRunner().invoke(script.main, arguments, catch_exceptions=False).output
    record = json.loads(target.read_text())
    assert list(record) == ["machine", "versions", "settings", "models", "finished"]
    assert record["settings"] == {"images": 9, "batch_size": 4, "threads": torch.get_num_threads()}
    (rows,) = record["models"].values()
    assert [tuple(row["between"]) for row in rows] == script.PAIRS
    assert {row["images"] for row in rows} == {9}
    assert output.count("of 9 images off by more than 0.0001") == len(rows)


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
@pytest.mark.parametrize("name", ["wrn-10-1-w4a4", "wrn-10-1-w2a2"])
def test_shipped_networks_agree_in_float64(script: ModuleType, forms: ModuleType, name: str) -> None:
    model = script.empir_plugin.load_model(name, dataset="cifar10")
    x = script.empir_plugin.load_images("cifar10").as_float()[:200]
    with torch.no_grad():
        one, other = (torch.cat([form(part) for part in x.split(50)]) for form in _exact_forms(forms, model))
    found = script.Gap.between(one, other)
    assert (found.images, found.differing_decisions) == (200, 0)
    assert found.max_logit_difference < 1e-12


def _exact_forms(forms: ModuleType, model: nn.Module) -> tuple[nn.Module, nn.Module]:
    return forms.to_exact_levels(model), forms.to_integers_in_float64(model)
