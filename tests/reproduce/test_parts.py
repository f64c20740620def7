"""Confusion matrices of a network whose decisions are known, and inputs that only the user has."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.reproduce.context import Context
from empir_plugin.reproduce.parts import Confusion, ConfusionMatrix
from empir_plugin.reproduce.workspace import Workspace

# eps 0.1 is 25.5 steps of 1/255. The first image is robust; the second is broken and becomes class 1; the third, of
# class 1, is robust; the fourth is misclassified as 0, and an attack with its true label only confirms that.
DIFFERENCES, LABELS = [30, 20, -30, 10], [0, 0, 1, 1]


def _confusion(toys: ModuleType, log: Path) -> Confusion:
    return Confusion(
        toys.ToySubject(), "toy", toys.protocol(toys.LoggedFGSM(str(log))), "FGSM", toys.TENTH, "toy-confusion"
    )


def _context(workspace: Workspace, toys: ModuleType, differences: list[int], labels: list[int]) -> Context:
    return Context(workspace, toys.FixedImages(toys.pairs(differences, labels)), Settings())


def test_counts_are_by_true_class_and_decision(workspace: Workspace, toys: ModuleType, tmp_path: Path) -> None:
    _confusion(toys, tmp_path / "log").run(_context(workspace, toys, DIFFERENCES, LABELS))
    matrix = ConfusionMatrix.read(workspace.records / "toy-confusion.json")
    assert matrix.counts == ((1, 1), (1, 1))
    assert (matrix.accuracy, matrix.threat, matrix.data["n"]) == (50.0, "Linf:0.1", 4)
    assert "FGSM: attacks the whole model" in matrix.attack


def test_a_finished_matrix_is_reused_unless_the_images_change(
    workspace: Workspace, toys: ModuleType, tmp_path: Path
) -> None:
    log, part = tmp_path / "log", _confusion(toys, tmp_path / "log")
    for _ in range(2):
        part.run(_context(workspace, toys, DIFFERENCES, LABELS))
    assert log.read_text() == "called\n"
    part.run(_context(workspace, toys, [30], [0]))
    assert log.read_text() == "called\ncalled\n"
    assert ConfusionMatrix.read(workspace.records / "toy-confusion.json").counts == ((1, 0), (0, 0))


def test_progress_is_reported(workspace: Workspace, toys: ModuleType, tmp_path: Path) -> None:
    notes: list[str] = []
    images = toys.FixedImages(toys.pairs(DIFFERENCES, LABELS))
    _confusion(toys, tmp_path / "log").run(Context(workspace, images, Settings(), on_progress=notes.append))
    assert notes == ["FGSM 4/4"]


@pytest.mark.parametrize("text", ["", "{}", '{"counts": 3}'])
def test_a_damaged_matrix_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "matrix.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"matrix\.json.*confusion matrix.*: delete it"):
        ConfusionMatrix.read(path)


def test_counts_must_add_up_to_the_images() -> None:
    with pytest.raises(EvaluationError, match=r"square.* 5 images"):
        ConfusionMatrix({}, {"n": 5}, "", "", ((1, 1), (1, 1)), {})
