"""Verdicts follow from numbers: the same claim holds or falls with the records."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.reproduce.context import Desk
from empir_plugin.reproduce.parts import Cost
from empir_plugin.reproduce.report import Found, Line, ledger, ledger_table
from empir_plugin.reproduce.results import Results
from empir_plugin.reproduce.subjects import Zoo
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]
NAMES = ("CW", "FGSM", "BIM", "PGD")


def _lines(workspace: Workspace, claim: str) -> list[Line]:
    return [line for line in ledger(Results(workspace.records)) if claim in line.claim]


@pytest.mark.parametrize(
    ("relation", "value", "found", "verdict"),
    [
        ("at_least", 10.0, 8.0, "holds"),
        ("at_least", 10.0, 7.9, "does not hold"),
        ("at_least", 10.0, 90.0, "holds"),
        ("at_most", 10.0, 12.0, "holds"),
        ("at_most", 10.0, 12.1, "does not hold"),
        ("less_than", 10.0, 11.9, "holds"),
        ("less_than", 10.0, 12.0, "does not hold"),
        ("about", 10.0, 8.0, "holds"),
        ("about", 10.0, 12.1, "does not hold"),
        ("about", 10.0, None, "not measured"),
    ],
)
def test_relations(relation: str, value: float, found: float | None, verdict: str) -> None:
    line = Line("", "", value, "%", relation, 2.0, Found("", (), found))
    assert line.verdict == verdict


@pytest.mark.parametrize(("empir", "verdict"), [(46, "holds"), (20, "does not hold")])
def test_the_gain_is_the_difference_of_the_averages(
    workspace: Workspace, write_record: Write, empir: int, verdict: str
) -> None:
    write_record("mnist-baseline-released", 99, dict.fromkeys(NAMES, 5))
    write_record("mnist-empir-released", 99, dict(zip(NAMES, (empir, empir + 4, empir - 4, empir), strict=True)))
    line = _lines(workspace, "MNIST by 42.6 points over")[0]
    assert (line.found.value, line.verdict) == (empir - 5, verdict)
    assert line.found.slugs == ("mnist-baseline-released", "mnist-empir-released")


def test_no_gain_follows_from_different_images(workspace: Workspace, write_record: Write) -> None:
    for defence in ("baseline", "empir"):
        write_record(f"mnist-{defence}-released", 99, dict.fromkeys(NAMES, 50))
    path = workspace.records / "mnist-empir-released.json"
    path.write_text(path.read_text().replace(f'"{"1" * 64}"', f'"{"3" * 64}"'))
    assert _lines(workspace, "MNIST by 42.6 points over")[0].verdict == "not measured"


def test_the_gain_under_adaptive_is_that_of_the_worst_cases(workspace: Workspace, write_record: Write) -> None:
    write_record("cifar10-baseline-adaptive", 74, worst=0)
    write_record("cifar10-empir-adaptive", 74, worst=1)
    line = _lines(workspace, "CIFAR-10 by 15.2 points")[2]
    assert (line.found.value, line.verdict) == (1.0, "does not hold")


@pytest.mark.parametrize(("left", "verdicts"), [(2, ("holds", "does not hold")), (80, ("does not hold", "holds"))])
def test_what_is_left_at_eight(workspace: Workspace, write_record: Write, left: int, verdicts: tuple[str, str]) -> None:
    write_record("cifar10-empir-adaptive-8-255", 85, worst=left)
    adaptive, summary = _lines(workspace, "1.5 % are left")[0], _lines(workspace, "78.4 % are left")[0]
    assert (adaptive.verdict, summary.verdict) == verdicts
    assert _lines(workspace, "94.2 % clean")[0].verdict == "does not hold"


def test_overhead_by_equation_6(workspace: Workspace, toys: ModuleType) -> None:
    desk = Desk(workspace, toys.Fixed(toys.pairs([1], [0])), Settings())
    Cost(Zoo("empir-cifar"), "cifar10", "cifar10-empir-cost").run(desk)
    ideal, built = _lines(workspace, "more memory (CIFAR-10)")
    # One full-precision member, one with 4-bit and one with 2-bit weights: 4/32 + 2/32 on top.
    assert (ideal.found.value, ideal.verdict) == (18.75, "holds")
    assert built.found.value == pytest.approx(77, abs=1)
    assert built.verdict == "does not hold"
    bits = _lines(workspace, "FP16 and FP32")[0]
    assert (bits.found.value, bits.verdict) == (2, "does not hold")


def test_nothing_is_concluded_from_nothing(tmp_path: Path) -> None:
    assert {line.verdict for line in ledger(Results(tmp_path))} == {"not measured"}


def test_the_table_links_the_records(workspace: Workspace, write_record: Write) -> None:
    write_record("cifar10-empir-adaptive-8-255", 85, worst=2)
    table = ledger_table(Results(workspace.records))
    row = next(row for row in table.rows if str(row[0]).startswith("1.5 %"))
    assert row[4:] == ("holds", "<= 1.5 %", "2.00", "1")
    links = row[3]
    assert isinstance(links, tuple)
    assert (workspace.root / links[0].path).is_file()
    assert json.loads((workspace.root / links[0].path).read_text())["worst_case_accuracy"] == 2.0
