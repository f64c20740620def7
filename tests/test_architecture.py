"""The architecture: every room imports only from the rooms above it, and the drawing shows the imports."""

from __future__ import annotations

import importlib
import operator
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.skipif(not (ROOT / "tools").is_dir(), reason="the source distribution has no tools/")


@pytest.fixture
def architecture(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("architecture")


def test_the_drawing_shows_every_room_and_is_up_to_date(architecture: ModuleType) -> None:
    drawing = (ROOT / "docs" / "architecture.svg").read_text(encoding="utf-8")
    assert drawing == architecture.drawing(), "run python tools/docs_tables.py"
    assert all(f">{room.name}</text>" in drawing for room in architecture.ROOMS)


def test_every_package_belongs_to_a_room(architecture: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    assert architecture.unlisted() == [], "add it to ROOMS or GROUND_PARTS in tools/architecture.py"
    monkeypatch.setattr(architecture, "GROUND_PARTS", ("_files", "data", "errors"))
    assert architecture.unlisted() == ["empir_plugin/_entry_points"]


def test_every_room_imports_only_from_rooms_above_it(architecture: ModuleType) -> None:
    found = architecture.imports()
    assert {room.name for room in architecture.ROOMS} == found.keys()
    assert "models" in found["attacks"]
    assert "ground" in found["models"]
    assert architecture.violations(found) == []


def test_a_forbidden_import_is_found(architecture: ModuleType) -> None:
    source = "def f():\n    from empir_plugin.leaderboard import add\n    import click\n    import torch"
    names = frozenset(filter(None, map(architecture.room_of, architecture.imported_modules(source))))
    assert names == {"leaderboard", "click", "torch"}
    assert architecture.violations({"attacks": names}) == [
        "attacks imports from leaderboard, which comes after it",
        "attacks imports click, which is for empir_cli",
    ]
    assert architecture.violations({"empir_cli": names}) == []


STEPS = {
    "empir_plugin/evaluation/run.py": ("evaluate",),
    "empir_plugin/evaluation/shards.py": ("ShardedRun.run", "ShardedRun._attack"),
    "empir_plugin/evaluation/cache/store.py": ("Cache",),
    "empir_plugin/evaluation/evaluator.py": ("Evaluator.attack", "Evaluator._attack_batch"),
    "empir_plugin/evaluation/judge.py": ("check_attack_result", "decisions"),
}


@pytest.mark.parametrize("path", STEPS)
def test_the_steps_from_command_to_verdict_exist(path: str) -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert f"`{path.removeprefix('empir_plugin/')}`" in page
    module = importlib.import_module(path.removesuffix(".py").replace("/", "."))
    for name in STEPS[path]:
        assert f"{name.rpartition('.')[2]}`" in page
        operator.attrgetter(name)(module)


def test_every_file_named_on_the_page_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = re.findall(r"`([\w/]+/\w+\.py)`", page)
    assert len(paths) >= 7
    assert [path for path in paths if not ((ROOT / path).is_file() or (ROOT / "empir_plugin" / path).is_file())] == []
