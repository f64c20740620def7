"""Records that an entry should rest on and does not: a worst case is one over all attacks known."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.boards import Board
from empir_plugin.leaderboard.measured import require_publishable
from empir_plugin.leaderboard.tree import Tree


def left_out(tree: Tree, model: str, board: Board, named: Collection[str]) -> Iterator[str]:
    """Records among the runs that may be part of an entry and are not among its sources.

    Args:
        tree: The leaderboard.
        model: Name for ``load_model``.
        board: The entry stands on.
        named: Its sources, as paths below the folder of runs.
    """
    for path in sorted(tree.runs.rglob("*.json")):
        name = path.relative_to(tree.runs).as_posix()
        if name not in named and not path.is_relative_to(tree.evidence) and _publishable(path, model, board):
            yield name


def _publishable(path: Path, model: str, board: Board) -> bool:
    try:
        require_publishable(model, board, Record.read(path))
    except EvaluationError:  # another experiment, or no record at all
        return False
    return True
