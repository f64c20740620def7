"""Every number in the README's tables is that of a committed run record."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_tables_are_those_of_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    tools = ROOT / "tools"
    if not (tools / "readme_tables.py").is_file():
        pytest.skip("the source distribution has no tools/")
    monkeypatch.syspath_prepend(tools)
    tables = importlib.import_module("readme_tables")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.written(text) == text, "run python tools/readme_tables.py"
    assert tables.written(text.replace(" % |", " ‰ |")) == text, "and a wrong table is seen"
