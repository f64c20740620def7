"""Reading numbers from the records."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from empir_plugin.errors import EvaluationError
from empir_plugin.reproduce.results import Results, attack_accuracy, mean_accuracy
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]


def test_accuracies_of_a_record(workspace: Workspace, write_record: Write) -> None:
    write_record("m", 90, {"CW": 10, "PGD": 20})
    record = Results(workspace.records).record("m")
    assert (attack_accuracy(record, "PGD"), mean_accuracy(record, ("CW", "PGD"))) == (20.0, 15.0)
    with pytest.raises(EvaluationError, match=r"record of m.*'BIM'.*CW, PGD"):
        attack_accuracy(record, "BIM")


def test_a_link_leads_from_the_report_to_the_record(workspace: Workspace, write_record: Write) -> None:
    write_record("m", 90)
    results = Results(workspace.records)
    assert (workspace.report.parent / results.link("m").path) == results.path("m")
    assert len(results.digest("m")) == 64


def test_an_error_names_the_damaged_record(workspace: Workspace) -> None:
    results = Results(workspace.records)
    assert not results.has("m")
    workspace.records.mkdir(parents=True)
    results.path("m").write_text("{")
    with pytest.raises(EvaluationError, match=r"m\.json.*JSON.*: delete it"):
        results.table("m")
