"""The promise: RobustBench as published, unmodified, loads and benchmarks our models."""

from __future__ import annotations

import subprocess
import sys
from ast import literal_eval
from pathlib import Path

import pytest

SNIPPET = """
import empir_plugin
from robustbench.utils import load_model
print(load_model('empir-cifar')(__import__('torch').rand(2, 3, 32, 32)).shape)
"""
NO_SETUPTOOLS = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("setuptools", "pkg_resources", "distutils"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
"""
MIRRORED = """
import empir_plugin
from robustbench.model_zoo.models import model_dicts
print({name for by_threat in model_dicts.values() for models in by_threat.values() for name in models})
"""
BENCHMARK = """
import sys
import empir_plugin
from robustbench.eval import benchmark
from robustbench.utils import load_model
print(benchmark(load_model('empir-cifar'), n_examples=16, dataset='cifar10', threat_model='Linf', eps=8/255,
                data_dir=sys.argv[1]))
"""


def _python(code: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_readme_s_line_works_without_setuptools() -> None:
    assert _python(NO_SETUPTOOLS + SNIPPET).strip() == "torch.Size([2, 10])"


@pytest.mark.slow
def test_the_readme_s_line_works_with_setuptools() -> None:
    pytest.importorskip("setuptools")
    assert _python(SNIPPET).strip() == "torch.Size([2, 10])"


@pytest.mark.slow
def test_our_models_are_in_robustbench_s_tables() -> None:
    assert {"empir-cifar", "cifarconv-fp"} <= literal_eval(_python(MIRRORED))


@pytest.mark.slow
@pytest.mark.data
def test_benchmark_returns_two_accuracies(data_dir: Path) -> None:
    clean, robust = literal_eval(_python(BENCHMARK, str(data_dir)).splitlines()[-1])
    assert 0.5 < clean <= 1
    assert robust < 0.3, "RobustBench's own attack breaks a standard-trained ensemble"
