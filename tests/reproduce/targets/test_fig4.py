"""Figure 4: the numbers in the paper's text beside ours."""

from __future__ import annotations

from collections.abc import Callable

from empir_plugin.reproduce.document import Table
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]
Fill = Callable[[Target], None]


def test_published_numbers_are_shown_beside_ours(workspace: Workspace, fill: Fill, write_record: Write) -> None:
    target = TARGETS["fig4"]
    fill(target)
    write_record("mnist-3lp-0fp-released-fgsm", 97, {"FGSM": 40})
    blocks = target.show(Results(workspace.records), workspace.figures)
    comparison = [block for block in blocks if isinstance(block, Table)][-2]
    assert comparison.rows[1] == ("3 low, 0 full", "fgsm", "56.90", "40.00", "-16.90", "W N B")
    assert comparison.rows[2] == ("3 low, 0 full", "time", "0.38", "1.50", "+1.12", "W N B")
