"""Figure 3(b): accuracies read off the confusion matrices."""

from __future__ import annotations

import json
from collections.abc import Callable

from empir_plugin.reproduce.document import Table
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.reproduce.workspace import Workspace

Fill = Callable[[Target], None]


def test_the_accuracy_of_the_worst_digit_is_shown(workspace: Workspace, fill: Fill) -> None:
    target = TARGETS["fig3b"]
    fill(target)
    path = workspace.records / f"{target.parts[0].slug}.json"
    table = json.loads(path.read_text())
    table["counts"][4] = [5, 0, 0, 0, 5, 0, 0, 0, 0, 0]
    path.write_text(json.dumps(table))
    blocks = target.show(Results(workspace.records), workspace.figures)
    (shown,) = [block for block in blocks if isinstance(block, Table)]
    assert shown.rows[0][2:] == ("95.00", "50.00", "100")
