"""Confusion matrices: a network whose decisions are known."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.reproduce.context import Desk
from empir_plugin.reproduce.parts import Confusion, Matrix
from empir_plugin.reproduce.workspace import Workspace

# eps 0.1 is 25.5 steps: the first withstands; the second falls to class 1; the third, of class 1, withstands; the
# fourth is misclassified as 0, and an attack with its true label pushes it further that way.
DIFFERENCES, LABELS = [30, 20, -30, 10], [0, 0, 1, 1]


def _confusion(toys: ModuleType, log: Path) -> Confusion:
    return Confusion(toys.Toy(), "toy", toys.protocol(toys.Counted(str(log))), "FGSM", toys.TENTH, "toy-confusion")


def test_counts_are_by_true_class_and_decision(workspace: Workspace, toys: ModuleType, tmp_path: Path) -> None:
    desk = Desk(workspace, toys.Fixed(toys.pairs(DIFFERENCES, LABELS)), Settings())
    _confusion(toys, tmp_path / "log").run(desk)
    matrix = Matrix.read(workspace.records / "toy-confusion.json")
    assert matrix.counts == ((1, 1), (1, 1))
    assert (matrix.accuracy, matrix.threat, matrix.data["n"]) == (50.0, "Linf:0.1", 4)
    assert "FGSM: attacks the whole model" in matrix.attack


def test_a_finished_matrix_is_kept_unless_the_images_change(
    workspace: Workspace, toys: ModuleType, tmp_path: Path
) -> None:
    log, part = tmp_path / "log", _confusion(toys, tmp_path / "log")
    for _ in range(2):
        part.run(Desk(workspace, toys.Fixed(toys.pairs(DIFFERENCES, LABELS)), Settings()))
    assert log.read_text() == "called\n"
    part.run(Desk(workspace, toys.Fixed(toys.pairs([30], [0])), Settings()))
    assert log.read_text() == "called\ncalled\n"
    assert Matrix.read(workspace.records / "toy-confusion.json").counts == ((1, 0), (0, 0))


@pytest.mark.parametrize("text", ["", "{}", '{"counts": 3}'])
def test_what_is_no_matrix_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "matrix.json"
    path.write_text(text)
    with pytest.raises(EvaluationError, match=r"is no confusion matrix.*: delete it"):
        Matrix.read(path)


def test_counts_must_be_those_of_the_images() -> None:
    with pytest.raises(EvaluationError, match="square and count 5 images"):
        Matrix({}, {"n": 5}, "", "", ((1, 1), (1, 1)), {})
