"""Every number in the README's tables is that of a committed run record."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_records() -> None:
    tool = ROOT / "tools" / "readme_tables.py"
    if not tool.is_file():
        pytest.skip("the source distribution has no tools/")
    spec = importlib.util.spec_from_file_location("readme_tables", tool)
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.written(text) == text, "run python tools/readme_tables.py"
    assert tables.written(text.replace(" % |", " ‰ |")) == text, "and a wrong table is seen"
