"""``empir overhead``: its tables, JSON and error messages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

from empir_cli.commands.overhead import overhead
from empir_cli.group import CommandGroup
from empir_plugin.evaluation.processor import processor
from empir_plugin.models.architectures import CIFARConv
from empir_plugin.models.integer import convert as integer
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.models.quantize import Precision

MAIN = CommandGroup("empir", commands={"overhead": overhead})
FAST = ("--batch-size", "2", "--repeats", "2")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(MAIN, ("overhead", *arguments), catch_exceptions=False)


def _row(result: Result, start: str) -> list[str]:
    (line,) = (line for line in result.output.splitlines() if line.startswith(f" {start} "))
    return line.split()


def test_tables_of_an_ensemble() -> None:
    result = _run("empir-cifar", *FAST)
    assert result.exit_code == 0, result.output
    assert result.output.startswith("empir-cifar compared with member 2 of the ensemble, its full-precision one")
    assert _row(result, "storage, Equation 6")[-2:] == ["1.770", "1.188"]
    assert _row(result, "time, Equation 6")[-2:] == ["1.194", "1.188"]
    assert _row(result, "parameters")[1:] == ["350,112", "116,704", "3.000"]
    assert len(_row(result, "measured, ms")) == 5
    assert "batch 2, 2 rounds" in " ".join(result.output.split())
    assert "NVIDIA H200" in result.output
    assert "…" not in result.output, "nothing is cut at 80 columns"


def test_every_backend_has_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "kernel_for", lambda device: IntMM())
    result = _run("cifarconv-w2a2", *FAST)
    for start in ("full precision: float32, contiguous", "full precision: float32, channels_last"):
        assert len(_row(result, start)) == 4 + 4
    assert len(_row(result, "model: float32, quantization simulated")) == 4 + 4
    assert len(_row(result, "model: int8 (int_mm)")) == 3 + 4
    assert "not available" not in result.output


def test_an_unavailable_backend_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    result = _run("cifarconv-w2a2", *FAST)
    assert _row(result, "model: int8") == ["model:", "int8", "n/a"]
    assert "int8 is not available: this build of PyTorch lacks oneDNN's int8 kernels" in " ".join(result.output.split())


def test_equation_6_stands_beside_the_measured_ratio_at_every_batch_size(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(integer, "kernel_for", lambda device: IntMM())
    target = tmp_path / "overhead.json"
    sizes = ("--batch-size", "3", "--batch-size", "1")
    result = _run("empir-cifar", "--repeats", "1", *sizes, "--out", str(target))
    table = json.loads(target.read_text())
    found, eq6 = table["measured_by_batch_size"], table["eq6"]["time"]
    assert list(found) == ["1", "3"]
    assert table["measured"] == found["3"], "the nearest to 32"
    for size, latency in found.items():
        (int8,) = (row["ratio"] for row in latency["backends"] if row["backend"] == "int8 (int_mm)")
        ratios = eq6["as_built"], eq6["ideal"], latency["ratio"]["median"], int8["median"]
        expected = [size, *(f"{ratio:.3f}" for ratio in ratios)]
        assert expected in [line.split()[:5] for line in result.output.splitlines()]
    assert found["1"]["processor"] == vars(processor())
    words = " ".join(result.output.split())
    assert f"the instructions its kernels run: {processor()}." in words
    assert "int8 is not available" not in words
    assert "…" not in result.output


def test_batch_sizes_that_take_too_long_are_left_out_with_a_reason(tmp_path: Path) -> None:
    target = tmp_path / "overhead.json"
    limit = ("--batch-size", "1000000", "--seconds", "0.01")
    result = _run("cifarconv-w4a2", *limit, "--out", str(target))
    table = json.loads(target.read_text())
    assert table["measured"] is None
    assert table["measured_by_batch_size"]["1000000"].startswith("a round of it would take about")
    assert _row(result, "1000000")[-2:] == ["n/a", "n/a"]
    assert "Batch size 1000000 is left out: a round of it" in " ".join(result.output.split())


def test_without_latency_nothing_is_measured() -> None:
    assert "easured" not in _run("cifarconv-w4a2", "--no-latency").output


def test_json_holds_every_number(tmp_path: Path) -> None:
    target = tmp_path / "new" / "overhead.json"
    assert _run("cifarconv-w4a2", "--out", str(target), *FAST).exit_code == 0
    report = json.loads(target.read_text())
    assert report["eq6"]["storage"]["ideal"] == 0.125
    assert report["measured"]["repeats"] == 2
    assert report["baseline"] == "the same network in full precision"


def test_layers_of_packed_weights_explain_the_missing_error() -> None:
    result = _run("cifarconv-w4a2", "--no-latency", "--layers")
    assert _row(result, "conv2") == ["conv2", "w4a2", "25,600", "5,760.0"]
    assert "No latent weights" in result.output


def test_layers_of_latent_weights_have_errors(tmp_path: Path) -> None:
    save_file(CIFARConv(Precision.parse("w4a2")).state_dict(), tmp_path / "latent.safetensors")
    checkpoint = ("--checkpoint", str(tmp_path / "latent.safetensors"))
    result = _run("cifarconv-w4a2", "--no-latency", "--layers", *checkpoint)
    assert all(float(norm) > 0 for norm in _row(result, "conv2")[-3:])
    assert _row(result, "ip1")[1:] == ["fp", "36,864", "36.9"]
    assert "No latent weights" not in result.output


BAD = {
    "unknown model": (("empir-cifra",), "did you mean 'empir-cifar'?"),
    "batch": (("empir-cifar", "--batch-size", "0"), "batch_sizes must be 1 or more, got 0"),
    "seconds": (("empir-cifar", "--seconds", "0"), "seconds must be above 0"),
    "repeats": (("empir-cifar", "--repeats", "0"), "repeats must be 1 or more"),
    "device": (("empir-cifar", "--device", "cuda:99"), "use --device cpu"),
    "image": (("empir-cifar", "--image-shape", "32"), "is written 3x32x32"),
    "other image": (("mnistconv-w2a4", "--image-shape", "3x32x32"), "the model fails on an image of 3x32x32"),
    "checkpoint": (("empir-cifar", "--checkpoint", "nowhere.safetensors"), "no weight file at nowhere"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_prints_one_sentence_and_exits_with_2(arguments: tuple[str, ...], sentence: str) -> None:
    result = _run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_an_output_path_that_is_a_folder_is_rejected(tmp_path: Path) -> None:
    result = _run("cifarconv-w4a2", "--no-latency", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert f"--out must be a file, got the folder {tmp_path}: name a file" in result.output


@pytest.mark.slow
def test_a_model_without_weights_has_an_overhead_and_no_errors() -> None:
    with pytest.warns(UserWarning, match="no weights"):
        result = _run("alexnet-w2a2", "--no-latency", "--layers")
    assert result.exit_code == 0
    assert "No latent weights" in result.output
