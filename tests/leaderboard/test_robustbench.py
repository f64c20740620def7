"""RobustBench's own leaderboard renders a tree of this package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.tree import Place, Tree

RENDER = """
import sys
import empir_plugin
from robustbench.leaderboard.template import generate_leaderboard
generate_leaderboard("cifar10", "Linf", models_folder=sys.argv[1])
"""

LOAD = """
import empir_plugin
from robustbench.utils import load_model
load_model("empir-mnist", dataset="mnist")
"""


def test_robustbench_refuses_models_of_boards_it_does_not_have() -> None:
    """This is why a submission to such a board has no row for the model zoo; if this test fails, it should have one."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", LOAD], capture_output=True, text=True, check=False)
    assert "'mnist' is not a valid BenchmarkDataset" in done.stderr


def test_robustbench_renders_the_tree(place: Place, tree: Tree, tmp_path: Path, make: Any) -> None:
    make.record(make.autoattack(0, 95, flags=("a",)), model="cifarconv-w2a2").write(tmp_path / "w2a2.json")
    add(tree, "cifarconv-w2a2", Files((tmp_path / "w2a2.json",)))
    command = [sys.executable, "-W", "error", "-c", RENDER, str(tree.model_info)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.split("<tbody>")[1].split("</tr>")[:2]
    assert [text in first for text in ("0.95%", "2-bit weights and activations", "&#9745;")] == [True] * 3
    assert [text in second for text in ("75.23%", "1.40%", "0.90%", "ICLR 2020", "&#215;")] == [True] * 5
    assert "another eps (13.55% under PGD at Linf eps = 0.1)" in second
    assert "Unknown" not in done.stdout
