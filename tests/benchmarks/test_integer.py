"""The benchmark of integer execution: ratios by hand, complete records, and a peer that may be missing."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner, Result

from empir_plugin.evaluation.processor import processor
from empir_plugin.models.integer.kernels import OneDNN
from empir_plugin.models.integer.layers import integer_layer
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision

TINY = ("--batch-size", "2", "--width", "8", "--threads", "1", "--repeats", "1")


@pytest.fixture
def script(benchmark_module: Callable[[str], ModuleType]) -> Iterator[ModuleType]:
    threads = torch.get_num_threads()
    yield benchmark_module("integer")
    torch.set_num_threads(threads)


def run(script: ModuleType, *arguments: str) -> Result:
    return CliRunner().invoke(script.main, [*TINY, *arguments], catch_exceptions=False)


def test_ratios_are_to_the_faster_layout_and_say_which_target_is_met(script: ModuleType) -> None:
    now = [0.0]

    def taking(seconds: float) -> Callable[[], None]:
        def work() -> None:
            now[0] += seconds

        return work

    runs = {"float32, NCHW": taking(4.0), "float32, channels last": taking(2.0), "low": taking(1.0)}
    targets = script.Target("low", 0.5), script.Target("float32, NCHW", 1.9)
    case = script._measure("a title", runs, targets, repeats=3, clock=lambda: now[0])
    assert case["baseline"] == "float32, channels last"
    assert {name: row["ratio"]["median"] for name, row in case["rows"].items()} == dict(
        zip(runs, (2.0, 1.0, 0.5), strict=True)
    )
    assert case["rows"]["low"]["ms"] == {"median": 1000.0, "p10": 1000.0, "p90": 1000.0}
    assert [target["met"] for target in case["targets"].values()] == [True, False]
    assert "low: target 0.5 met\nfloat32, NCHW: target 1.9 missed" in script.table(case)


@pytest.mark.parametrize("name", ["convs", "network"])
def test_the_script_writes_what_it_prints(script: ModuleType, tmp_path: Path, name: str) -> None:
    target = tmp_path / "integer.json"
    output = run(script, "--case", name, "--out", str(target)).output
    record = json.loads(target.read_text())
    assert list(record) == ["machine", "versions", "settings", "cases", "finished"]
    assert set(record["machine"]) == {"processor", "instructions", "cores", "load_average", "system"}
    assert record["machine"]["instructions"] == processor().instructions
    assert record["settings"]["batch_size"] == 2
    expected = {"convs": ["conv-8", "conv-16", "conv-32", "conv-64"], "network": ["network"]}
    assert list(record["cases"]) == expected[name]
    for case in record["cases"].values():
        assert case["title"] in output
        assert case["rows"][case["baseline"]]["ratio"]["median"] == 1
    agreement = record["cases"].get("network", {}).get("agreement", {})
    assert all(found["differing_decisions"] == 0 for found in agreement.values())


def test_onnxruntime_computes_the_same_codes(script: ModuleType, tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is a peer of the benchmark only")
    output = run(script, "--case", "stack", "--out", str(tmp_path / "integer.json")).output
    (case,) = json.loads((tmp_path / "integer.json").read_text())["cases"].values()
    assert case["codes_unlike_onnxruntime"] < 1e-3
    assert "onnxruntime, the same integers" in case["rows"]
    assert "codes unlike onnxruntime's" in output


@pytest.mark.skipif(OneDNN().unusable(torch.device("cpu")) is not None, reason="no int8 kernels of oneDNN here")
def test_other_weights_are_other_codes(script: ModuleType) -> None:
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    peers = importlib.import_module("integer_peers")
    torch.manual_seed(0)
    layer = QuantConv2d(4, 4, 3, padding=1, bias=False, precision=Precision(4, 8), scale="max").eval()
    integer = integer_layer(layer, OneDNN())
    integer = integer.with_changes(emits=integer.grid)
    codes = torch.randint(0, 256, (2, 4, 6, 6)).to(torch.uint8)
    ours, other = integer(codes).int(), integer.with_changes(weight=-integer.op.weight)
    same, unlike = (peers.onnxruntime_stack([layer], codes, 1).run().int() for layer in (integer, other))
    assert (same - ours).abs().max() <= 1, "rounding may end on either side of an edge"
    assert (same != ours).double().mean() < 0.05
    assert (unlike != ours).double().mean() > 0.5


def test_without_onnxruntime_the_rest_runs_with_a_reason(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.import_module("integer_peers"), "find_spec", lambda name: None)
    output = run(script, "--case", "stack", "--out", str(tmp_path / "integer.json")).output
    (case,) = json.loads((tmp_path / "integer.json").read_text())["cases"].values()
    assert case["left_out"] == {"onnxruntime": "onnx and onnxruntime not installed: pip install onnx onnxruntime"}
    assert "onnxruntime is left out: onnx and onnxruntime not installed" in output
    assert not any("onnxruntime" in row for row in case["rows"])


def test_a_folder_that_is_missing_is_refused_before_anything_runs(script: ModuleType, tmp_path: Path) -> None:
    result = run(script, "--out", str(tmp_path / "nowhere" / "integer.json"))
    assert result.exit_code == 1
    assert "make it first" in result.output
