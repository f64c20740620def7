"""What several test folders share: where the full data sets may lie, and tiny stand-ins for them."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from empir_plugin.data.corruptions import CORRUPTIONS
from empir_plugin.data.image_set import ImageSet, load_images

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


@pytest.fixture(scope="module")
def toys(request: pytest.FixtureRequest) -> ModuleType:
    """The nearest ``toys.py``, in the folder of the tests or above; loaded by its path, as ``tests`` is no package."""
    root = Path(__file__).parent
    path = next(found for folder in request.path.parents if (found := folder / "toys.py").is_file())
    name = "_".join(("empir", *path.relative_to(root).with_suffix("").parts))
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


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


@pytest.fixture
def corrupted_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a CIFAR-10-C of 12 images: at each severity s, the first s are black, and the others are clean."""
    monkeypatch.setattr("empir_plugin.data.corruptions._N", 12)
    clean, folder = load_images("cifar10", n_examples=12), tmp_path / "CIFAR-10-C"
    folder.mkdir()
    images = clean.images.permute(0, 2, 3, 1).repeat(5, 1, 1, 1).numpy()
    for severity in range(1, 6):
        images[12 * (severity - 1) : 12 * (severity - 1) + severity] = 0
    for name in CORRUPTIONS:
        np.save(folder / f"{name}.npy", images)
    np.save(folder / "labels.npy", clean.labels.repeat(5).numpy())
    return tmp_path
