"""Toys shared by the tests of the evaluation; ``tests`` is no package, so the module is loaded by its path."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

TOYS = Path(__file__).with_name("toys.py")


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    if "empir_toys" not in sys.modules:
        spec = importlib.util.spec_from_file_location("empir_toys", TOYS)
        assert spec is not None
        assert spec.loader is not None
        sys.modules["empir_toys"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules["empir_toys"]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Equal bits need equal numbers of threads, in a module's own fixtures too; and a forked process has no pool."""
    found = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(found)
