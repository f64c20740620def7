"""The example package, installed offline: every way to load a model or an attack by name finds it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import pytest

from empir_plugin import InputError, Record, load_attack
from empir_plugin.zoo.registry import builders

EXAMPLE = Path(__file__).parents[1] / "examples" / "blurred"

DRIVER = """
import json, sys
from pathlib import Path
import pytest
from click.testing import CliRunner
from empir_cli import main

def empir(*arguments):
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    return {"code": result.exit_code, "output": result.output}

class Passed:
    count = 0
    def pytest_runtest_logreport(self, report):
        self.count += report.when == "call" and report.passed

out, example = map(Path, sys.argv[1:])
results = {
    "list": empir("list"),
    "evaluate": empir("evaluate", "blurred-cifarconv", "--n-examples", "4", "--out", str(out / "record.json")),
}
from empir_plugin import load_attack
from robustbench.utils import load_model

results["attack"] = repr(load_attack("Corners", tries=2))
results["model"] = type(load_model("blurred-cifarconv", dataset="cifar10", threat_model="Linf")).__module__
passed = Passed()
own_tests = ["-q", "-p", "no:cacheprovider", f"--rootdir={example}", str(example)]
results["own tests"] = int(pytest.main(own_tests, [passed]))
results["passed"] = passed.count
(out / "results.json").write_text(json.dumps(results))
"""


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of a process in which the example package is installed."""
    if not EXAMPLE.is_dir():
        pytest.skip("the source distribution has no examples/")
    for needed in ("hatchling", "pip"):
        # Not find_spec: setuptools hooks into it up to Python 3.11, and on the name of pip unloads distutils and warns.
        if PathFinder.find_spec(needed) is None:
            pytest.skip(f"the example package cannot be installed: no {needed}")
    site, out = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("outcome")
    offline = "--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"
    _run("-m", "pip", "install", *offline, "--target", str(site), str(EXAMPLE))
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    _run("-c", DRIVER, str(out), str(EXAMPLE), cwd=out, PYTHONPATH=os.pathsep.join(paths), PYTHONDONTWRITEBYTECODE="1")
    return out


def _run(*arguments: str, cwd: Path | None = None, **environment: str) -> None:
    settings = {**os.environ, "COLUMNS": "120", **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=settings, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def results(outcome: Path) -> dict[str, Any]:
    return json.loads((outcome / "results.json").read_text())


def test_empir_list_shows_the_model(results: dict[str, Any]) -> None:
    assert results["list"]["code"] == 0
    (row,) = (line for line in results["list"]["output"].splitlines() if "blurred-cifarconv" in line)
    assert "cifar10" in row
    assert "of empir-example-blurred" in row
    assert "empir-cifar" in results["list"]["output"]


def test_load_model_and_load_attack_find_both(results: dict[str, Any]) -> None:
    assert results["model"] == "blurred.models"
    assert results["attack"] == "Corners(tries=2)"


def test_empir_evaluate_attacks_it(outcome: Path, results: dict[str, Any]) -> None:
    assert results["evaluate"]["code"] == 0, results["evaluate"]["output"]
    record = Record.read(outcome / "record.json")
    assert record.model["name"] == "blurred-cifarconv"
    assert record.data["n"] == len(record.worst_case) == 4
    assert [attack.name for attack in record.attacks] == ["FGSM", "PGD-100", "AutoAttack"]
    assert record.worst_case_accuracy < record.clean_accuracy, "a blur is no defence"


def test_its_own_tests_pass(results: dict[str, Any]) -> None:
    assert results["own tests"] == 0
    assert results["passed"] == (EXAMPLE / "tests" / "test_blurred.py").read_text().count("\ndef test_") + 1


def test_without_the_package_the_names_are_unknown() -> None:
    assert "blurred-cifarconv" not in builders()
    with pytest.raises(InputError, match="no attack 'corners' here"):
        load_attack("corners")
