"""Tables of Song et al.: the worst case over two records."""

from __future__ import annotations

from collections.abc import Callable

from empir_plugin.reproduce.attacks import BLACK, NOISE, WHITE
from empir_plugin.reproduce.document import Table
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.run import TARGETS
from empir_plugin.reproduce.workspace import Workspace

Write = Callable[..., None]
Fill = Callable[[Target], None]


def test_the_worst_case_of_two_records_is_image_by_image(workspace: Workspace, fill: Fill, write_record: Write) -> None:
    target = TARGETS["weight-quantized"]
    fill(target)
    write_record("mnist-orig-attacks", 95, dict.fromkeys((*WHITE, *BLACK, *NOISE), 50), worst=30)
    write_record("mnist-orig-strong", 95, worst=8)
    blocks = target.show(Results(workspace.records), workspace.figures)
    white = next(block for block in blocks if isinstance(block, Table))
    assert white.rows[0] == ("Orig.", "paper", "99.17", "39.40", "73.53", "7.67", "4.38", "5.68", "6.77", "-")
    assert white.rows[1] == ("Orig.", "ours", "95.00", *("50.00",) * 6, "8.00")
