"""What the package offers, and what a wheel of it holds."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import empir_plugin

PUBLIC = {
    "AlexNet", "CIFARConv", "CompatibilityError", "ConversionReport", "DataError", "EmpirError", "Ensemble",
    "EvaluationError", "ImageSet", "InputError", "MNISTConv", "MaxVote", "MeanProbability", "ModelBuilder", "Precision",
    "QuantConv2d", "QuantLinear", "Record", "Threat", "WeightsError", "discretized", "empir", "evaluate", "load_attack",
    "load_images", "load_model", "mu_law_", "quantize_", "quantize_weights_", "register_quantized", "to_integer",
}  # fmt: skip
ROOT = Path(__file__).parents[1]


def test_public_names() -> None:
    found = {name for name in vars(empir_plugin) if not name.startswith("_")}
    submodules = {name for name in found if f"empir_plugin.{name}" in sys.modules} - PUBLIC
    assert found - submodules - {"registry"} == PUBLIC


@pytest.mark.slow
def test_the_wheel_holds_the_package_its_data_and_the_command(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"empir_plugin", "empir_cli", "pytest_empir"}
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "empir_plugin").rglob("*") if path.is_file()}
    assert {name for name in here if "__pycache__" not in name} <= names
