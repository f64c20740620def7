"""The public names of the package, and the contents of its wheel."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import version
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
    assert {*empir_plugin.__all__} == PUBLIC
    assert len(empir_plugin.__all__) == len(PUBLIC)
    names = {name for name in vars(empir_plugin) if not name.startswith("_")}
    submodules = {name for name in names if f"empir_plugin.{name}" in sys.modules} - PUBLIC
    assert names - submodules - {"registry"} == PUBLIC


def test_the_version_is_that_of_the_distribution() -> None:
    assert empir_plugin.__version__ == version("empir-plugin")


@pytest.mark.slow
def test_the_wheel_contains_the_package_its_data_and_the_entry_points(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"empir_plugin", "empir_cli", "pytest_empir"}
    files = {path.relative_to(ROOT).as_posix() for path in (ROOT / "empir_plugin").rglob("*") if path.is_file()}
    assert {name for name in files if "__pycache__" not in name} <= names
