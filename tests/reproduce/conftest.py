"""Toys shared by the tests of the reproductions; ``tests`` is no package, so the module is loaded by its path."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.reproduce.workspace import Workspace

TOYS = Path(__file__).with_name("toys.py")

Write = Callable[..., None]


@pytest.fixture(scope="session")
def toys() -> ModuleType:
    name = "empir_reproduce_toys"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, TOYS)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "out")


@pytest.fixture
def write_record(workspace: Workspace) -> Write:
    """Writes a record of 100 images, of which so many are classified correctly without and under each attack."""

    def write(slug: str, clean: int = 100, left: dict[str, int] | None = None, worst: int | None = None) -> None:
        attacks = tuple(
            AttackRecord(name, "", _bits(count), float(count), 1.0, in_worst_case=False)
            for name, count in (left or {}).items()
        )
        if worst is not None:
            attacks = (*attacks, AttackRecord("all", "", _bits(worst), float(worst), 1.0))
        least = _bits(clean if worst is None else min(worst, clean))
        Record(
            {"name": slug, "sha256": "0" * 64}, {"name": "toy", "n": 100, "sha256": "1" * 64},
            str(Threat.parse("Linf:0.1")), _bits(clean), float(clean), attacks, least, float(least.count("1")),
            {"code_sha256": "2" * 64},
        ).write(workspace.records / f"{slug}.json")  # fmt: skip

    return write


def _bits(count: int) -> str:
    return "1" * count + "0" * (100 - count)
