"""Table 2: published and measured numbers, and the gaps between them."""

from __future__ import annotations

from collections.abc import Callable

from empir_plugin.reproduce.document import Table
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]
Fill = Callable[[Target], None]


def test_published_and_measured_numbers_are_shown(workspace: Workspace, fill: Fill, write_record: Write) -> None:
    target = TARGETS["table2"]
    fill(target)
    write_record("cifar10-empir-released", 74, {"CW": 50, "FGSM": 22, "BIM": 16, "PGD": 10})
    write_record("cifar10-empir-adaptive", 74, worst=3)
    blocks = target.show(Results(workspace.records), workspace.figures)
    tables = {
        block.caption.split(",")[0] + str(len(block.header)): block for block in blocks if isinstance(block, Table)
    }
    rows = [row[1:9] for row in tables["CIFARconv11"].rows if row[0] == "EMPIR"]
    assert rows[0] == ("paper", "72.56", "48.51", "20.61", "24.59", "13.34", "26.76", "-")
    assert rows[1] == ("repository", "72.56", "48.51", "20.45", "24.59", "13.55", "26.78", "-")
    assert rows[2] == ("ours, released", "74.00", "50.00", "22.00", "16.00", "10.00", "24.50", "-")
    assert rows[4] == ("ours, adaptive", "74.00", "-", "-", "-", "-", "-", "3.00")
    gaps = [row[1:] for row in tables["CIFARconv9"].rows if row[0] == "EMPIR"]
    assert gaps[0][:-1] == ("released", "+1.44", "+1.49", "+1.55", "-8.59", "-3.55", "-2.28")
    assert gaps[2][:-1] == ("adaptive", "+1.44", "-", "-", "-", "-", "-23.78")
