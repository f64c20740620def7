"""Tables of Panda et al.: three attacks beside the published numbers."""

from __future__ import annotations

from collections.abc import Callable

from empir_plugin.reproduce.document import Table
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]
Fill = Callable[[Target], None]


def test_three_attacks_are_shown_beside_the_published_numbers(
    workspace: Workspace, fill: Fill, write_record: Write
) -> None:
    target = TARGETS["discretization"]
    fill(target)
    for eps, accuracy in ((0.1, 90), (0.2, 40), (0.3, 39)):
        write_record(f"fcn2-full-2bit-inside-{eps}", 97, {"FGSM": accuracy})
        write_record(f"fcn2-full-2bit-strong-{eps}", 97, worst=accuracy // 10)
    blocks = target.show(Results(workspace.records), workspace.figures)
    table = next(block for block in blocks if isinstance(block, Table))
    assert table.rows[0][2:] == ("paper, Table 5 (FCN1)", "97.80", "97.40", "35.40", "35.30")
    assert table.rows[1][2:] == ("ours, FGSM on the discretized image", "97.00", "90.00", "40.00", "39.00")
    assert table.rows[3][2:] == ("ours, strong attacks, raw image", "97.00", "9.00", "4.00", "3.00")
