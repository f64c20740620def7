"""The report: verdicts on claims follow from the records, and the published page follows from its records."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.reproduce.context import Context
from empir_plugin.reproduce.document import markdown
from empir_plugin.reproduce.parts import Cost
from empir_plugin.reproduce.report import ClaimCheck, Measurement, build_report, check_claims, claims_table
from empir_plugin.reproduce.results import Results
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.reproduce.subjects import ZooSubject
from empir_plugin.reproduce.workspace import Workspace

DOCS = Path(__file__).parents[2] / "docs"

Write = Callable[..., None]
NAMES = ("CW", "FGSM", "BIM", "PGD")


def _checks(workspace: Workspace, claim: str) -> list[ClaimCheck]:
    return [check for check in check_claims(Results(workspace.records)) if claim in check.claim]


@pytest.mark.parametrize(
    ("relation", "claimed", "measured", "verdict"),
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
def test_relations(relation: str, claimed: float, measured: float | None, verdict: str) -> None:
    check = ClaimCheck("", "", claimed, "%", relation, 2.0, Measurement("", (), measured))
    assert check.verdict == verdict


@pytest.mark.parametrize(("empir", "verdict"), [(46, "holds"), (20, "does not hold")])
def test_the_gain_is_the_difference_of_the_averages(
    workspace: Workspace, write_record: Write, empir: int, verdict: str
) -> None:
    write_record("mnist-baseline-released", 99, dict.fromkeys(NAMES, 5))
    write_record("mnist-empir-released", 99, dict(zip(NAMES, (empir, empir + 4, empir - 4, empir), strict=True)))
    check = _checks(workspace, "MNIST by 42.6 points over")[0]
    assert (check.measurement.value, check.verdict) == (empir - 5, verdict)
    assert check.measurement.slugs == ("mnist-baseline-released", "mnist-empir-released")


def test_no_gain_follows_from_different_images(workspace: Workspace, write_record: Write) -> None:
    for defence in ("baseline", "empir"):
        write_record(f"mnist-{defence}-released", 99, dict.fromkeys(NAMES, 50))
    path = workspace.records / "mnist-empir-released.json"
    path.write_text(path.read_text().replace(f'"{"1" * 64}"', f'"{"3" * 64}"'))
    assert _checks(workspace, "MNIST by 42.6 points over")[0].verdict == "not measured"


def test_the_gain_under_adaptive_is_that_of_the_worst_cases(workspace: Workspace, write_record: Write) -> None:
    write_record("cifar10-baseline-adaptive", 74, worst=0)
    write_record("cifar10-empir-adaptive", 74, worst=1)
    check = _checks(workspace, "CIFAR-10 by 15.2 points")[2]
    assert (check.measurement.value, check.verdict) == (1.0, "does not hold")


@pytest.mark.parametrize(("accuracy", "verdicts"), [(2, ("holds", "does not hold")), (80, ("does not hold", "holds"))])
def test_accuracies_at_the_eps_of_robustbench(
    workspace: Workspace, write_record: Write, accuracy: int, verdicts: tuple[str, str]
) -> None:
    write_record("cifar10-empir-adaptive-8-255", 85, worst=accuracy)
    adaptive, summary = _checks(workspace, "1.5 % accuracy")[0], _checks(workspace, "78.4 % accuracy")[0]
    assert (adaptive.verdict, summary.verdict) == verdicts
    assert _checks(workspace, "94.2 % clean")[0].verdict == "does not hold"


def test_overhead_by_equation_6(workspace: Workspace, toys: ModuleType) -> None:
    context = Context(workspace, toys.FixedImages(toys.pairs([1], [0])), Settings())
    Cost(ZooSubject("empir-cifar"), "cifar10", "cifar10-empir-cost").run(context)
    ideal, built = _checks(workspace, "more memory (CIFAR-10)")
    # One full-precision member, one with 4-bit and one with 2-bit weights: 4/32 + 2/32 on top.
    assert (ideal.measurement.value, ideal.verdict) == (18.75, "holds")
    assert built.measurement.value == pytest.approx(77, abs=1)
    assert built.verdict == "does not hold"
    bits = _checks(workspace, "FP16 and FP32")[0]
    assert (bits.measurement.value, bits.verdict) == (2, "does not hold")


def test_without_records_every_claim_is_not_measured(tmp_path: Path) -> None:
    assert {check.verdict for check in check_claims(Results(tmp_path))} == {"not measured"}


def test_the_table_links_the_records(workspace: Workspace, write_record: Write) -> None:
    write_record("cifar10-empir-adaptive-8-255", 85, worst=2)
    table = claims_table(Results(workspace.records))
    row = next(row for row in table.rows if str(row[0]).startswith("1.5 %"))
    assert row[4:] == ("holds", "<= 1.5 %", "2.00", "1")
    links = row[3]
    assert isinstance(links, tuple)
    assert (workspace.root / links[0].path).is_file()
    assert json.loads((workspace.root / links[0].path).read_text())["worst_case_accuracy"] == 2.0


def test_the_published_page_follows_from_its_records(monkeypatch: pytest.MonkeyPatch) -> None:
    for target in TARGETS.values():
        monkeypatch.setattr(sys.modules[target.show.__module__], "save_figure", lambda *arguments: None)
    document = build_report(Workspace(DOCS), tuple(TARGETS.values()))
    page = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    assert markdown(document, "reproduction/figures") == page, "run python tools/reproduction_report.py"
