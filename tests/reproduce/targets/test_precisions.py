"""Figures 1 and 3(a): each number comes from the record of its network."""

from __future__ import annotations

from collections.abc import Callable

from empir_plugin.reproduce.document import Table
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]
Fill = Callable[[Target], None]


def _tables(target: Target, workspace: Workspace) -> list[Table]:
    blocks = target.show(Results(workspace.records), workspace.figures)
    return [block for block in blocks if isinstance(block, Table)]


def test_figure_1_shows_clean_fgsm_and_worst_case(workspace: Workspace, fill: Fill, write_record: Write) -> None:
    target = TARGETS["fig1"]
    fill(target)
    write_record("mnist-w1a1-released-fgsm", 91, {"FGSM": 40})
    write_record("mnist-w1a1-paper-fgsm", 91, {"FGSM": 30})
    write_record("mnist-w1a1-strong", 91, worst=12)
    (table,) = _tables(target, workspace)
    assert table.header == ("Precision", "clean", "FGSM, released", "FGSM, paper", "worst case, strong attacks")
    assert table.rows[0] == ("w1a1", "91.00", "40.00", "30.00", "12.00")


def test_figure_3a_shows_single_networks_and_the_ensemble(
    workspace: Workspace, fill: Fill, write_record: Write
) -> None:
    target = TARGETS["fig3a"]
    fill(target)
    write_record("empir-cifar-cw", 74, {"CW": 50})
    write_record("empir-cifar-strong", 74, worst=1)
    mnist, cifar = _tables(target, workspace)
    assert [row[0] for row in mnist.rows] == ["w1a1", "w2a2", "w2a4", "w4a4", "w8a8", "fp", "EMPIR"]
    assert cifar.rows[-1] == ("EMPIR", "74.00", "50.00", "1.00", "100")
