"""What a tree publishes: its entries with everything they rest on, once all of it is found to agree."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.identity import ModelIdentity
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.check import check
from empir_plugin.leaderboard.eligibility import Numbers, is_same_model, measure
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.evidence import Evidence, Findings
from empir_plugin.leaderboard.tree import BOARDS, Board, Place, Tree


@dataclass(frozen=True)
class Filed:
    """A run record in a tree.

    Args:
        path: Below the folder of runs, with ``/`` between its parts.
        sha256: Of its bytes.
        record: What it says.
    """

    path: str
    sha256: str
    record: Record


@dataclass(frozen=True)
class Published:
    """One entry with everything that is known of it.

    Args:
        place: Of its files.
        entry: As RobustBench has it.
        evidence: Which files it rests on.
        findings: What those say.
        measured: The numbers that follow.
        others: Records of the same weights that it does not rest on: other radii, other protocols, fewer images.
    """

    place: Place
    entry: Entry
    evidence: Evidence
    findings: Findings
    measured: Numbers
    others: tuple[Filed, ...]

    @property
    def records(self) -> tuple[Filed, ...]:
        """The records the entry rests on."""
        pairs = zip(self.evidence.records, self.findings.records, strict=True)
        return tuple(Filed(source.path, source.sha256, record) for source, record in pairs)

    @property
    def lowest(self) -> float:
        """Percent of the test set left by all attacks together: the number entries are ranked by."""
        return float(self.entry.lowest_acc)


def published(tree: Tree) -> dict[Board, list[Published]]:
    """The entries of every board that has some, ranked as RobustBench ranks: by the lowest robust accuracy known.

    Raises:
        InputError: If there is no such folder.
        EvaluationError: If something in it is wrong: a page shows no number that its records do not carry.
    """
    if problems := check(tree):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EvaluationError(f"{problems[0]}{more}: a page shows what `empir leaderboard check` accepts, correct it")
    runs = _runs(tree)
    boards: dict[Board, list[Published]] = {}
    for place in tree.places():
        boards.setdefault(BOARDS[str(place.board)], []).append(_published(tree, place, runs))
    return {board: sorted(rows, key=lambda row: -row.lowest) for board, rows in boards.items()}


def _published(tree: Tree, place: Place, runs: Sequence[Filed]) -> Published:
    evidence = Evidence.read(place.evidence)
    findings = evidence.findings(tree.runs)
    named = {source.path for source in evidence.records}
    identity = ModelIdentity.of_table(findings.records[0].model)
    others = (
        run
        for run in runs
        if run.path not in named and is_same_model(evidence.model, identity, ModelIdentity.of_table(run.record.model))
    )
    measured = measure(evidence.model, place.board, findings.records, findings.audit)
    return Published(place, Entry.read(place.entry), evidence, findings, measured, tuple(others))


def _runs(tree: Tree) -> list[Filed]:
    paths = sorted(path for path in tree.runs.rglob("*.json") if not path.is_relative_to(tree.evidence))
    return [filed for path in paths if (filed := _filed(path, path.relative_to(tree.runs).as_posix()))]


def _filed(path: Path, name: str) -> Filed | None:
    try:
        return Filed(name, hashlib.sha256(path.read_bytes()).hexdigest(), Record.read(path))
    except EvaluationError:  # an audit, an overhead, a diary of training
        return None
