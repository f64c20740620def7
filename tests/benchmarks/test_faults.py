"""The count of faults: cases add up by kind, a failure counts, and the committed record has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

RECORD = Path(__file__).parents[2] / "benchmarks" / "records" / "faults.json"


@pytest.fixture
def faults(benchmark_module: Callable[[str], ModuleType]) -> ModuleType:
    return benchmark_module("faults")


def report(*properties: object, when: str = "call", outcome: str = "passed") -> SimpleNamespace:
    flags = {name: outcome == name for name in ("passed", "failed", "skipped")}
    named = [("faults", item) for item in properties]
    return SimpleNamespace(nodeid="tests/faults/test_some_files.py::test", when=when, user_properties=named, **flags)


def test_cases_add_up_by_kind(faults: ModuleType) -> None:
    counter = faults.Counter()
    for each in (
        report(when="setup"), report(["a", 3, 3]), report(when="teardown"),
        report(["a", 2, 1], ["b", 1, 1], outcome="failed"),
        report(), report(outcome="failed", when="setup"), report(outcome="skipped", when="setup"),
    ):  # fmt: skip
        counter.pytest_runtest_logreport(each)
    assert counter.table() == {
        "total": {"tried": 8, "survived": 6},
        "skipped_tests": 1,
        "kinds": {
            "a": {"tried": 5, "survived": 4},
            "b": {"tried": 1, "survived": 1},
            "other cases: some files": {"tried": 2, "survived": 1},
        },
    }


def test_the_committed_record_adds_up_and_lost_nothing() -> None:
    if not RECORD.is_file():
        pytest.skip("the source distribution has no records")
    table = json.loads(RECORD.read_text())
    for key in ("tried", "survived"):
        assert sum(count[key] for count in table["kinds"].values()) == table["total"][key]
    assert all(count["survived"] == count["tried"] for count in table["kinds"].values())
    assert table["total"]["tried"] > 1000
