"""The command ``empir export``."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from empir_cli import main
from empir_plugin.export import EXPORT_EXTRA

needs_onnx = pytest.mark.skipif(not all(map(find_spec, ("onnx", "onnxruntime"))), reason="needs onnx, onnxruntime")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ("export", *arguments))


@needs_onnx
def test_an_ensemble_is_written_and_compared(tmp_path: Path) -> None:
    out = tmp_path / "empir.onnx"
    result = run("empir-cifar", "--out", str(out), "--images", "20")
    assert result.exit_code == 0, result.output
    assert f"{out.stat().st_size:,} bytes" in result.output
    assert "20 of 20 images" in result.output


@pytest.mark.skipif(bool(find_spec("onnx")), reason="onnx is installed")
def test_without_onnx_the_extra_is_named(tmp_path: Path) -> None:
    result = run("cifarconv-w4a2", "--out", str(tmp_path / "a.onnx"), "--images", "2")
    assert result.exit_code == 2
    assert EXPORT_EXTRA in result.output
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    result = run("cifarconv-w4a2", "--out", str(tmp_path))
    assert result.exit_code == 2
    assert "--out" in result.output
    assert str(tmp_path) in result.output.replace("\n", "")
