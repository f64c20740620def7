"""What several test folders share: where the full data sets may lie, and tiny stand-ins for them."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from empir_plugin.data.image_set import ImageSet

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
DIGITS = tuple(str(digit) for digit in range(10))


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of the full MNIST and CIFAR-10; the test is skipped where there is none."""
    root = Path(__file__).parents[1]
    found = Path(os.environ.get("EMPIR_DATA_DIR", root.parent / "shared" / "data"))
    if not found.is_dir():
        pytest.skip(f"no data sets at {found}: set EMPIR_DATA_DIR")
    return found


@pytest.fixture
def benchmark_module(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a script of ``benchmarks/``; the test is skipped where there are none."""
    if not BENCHMARKS.is_dir():
        pytest.skip("the source distribution has no benchmarks/")
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def tiny_mnist() -> ImageSet:
    """48 noise images of MNIST's shape, the class written into one bright row."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 60, (48, 1, 28, 28), generator=generator, dtype=torch.uint8)
    labels = torch.arange(48) % 10
    images[torch.arange(48), 0, 2 * labels + 4] = 255
    return ImageSet("mnist", "train", images, labels, DIGITS)
