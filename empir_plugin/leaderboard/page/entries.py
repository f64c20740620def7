"""The entries that the page shows, read from a tree with their records, audit and costs, and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
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
class RecordFile:
    """A run record in a tree.

    Args:
        path: Relative to the folder of runs, with ``/`` between its parts.
        sha256: Of the file.
        record: The record.
    """

    path: str
    sha256: str
    record: Record


@dataclass(frozen=True)
class PublishedEntry:
    """One entry with its sources.

    Args:
        place: Of its files.
        entry: The entry in RobustBench's format.
        evidence: Names of the files it is computed from.
        findings: The contents of those files.
        measured: The numbers computed from them.
        others: Other records of the same weights: other radii, other protocols, fewer images.
    """

    place: Place
    entry: Entry
    evidence: Evidence
    findings: Findings
    measured: Numbers
    others: tuple[RecordFile, ...]

    @property
    def under_corruptions(self) -> bool:
        """Whether its board is one of corruptions, where the mean counts and not the worst case."""
        return self.place.board.threat is None

    @property
    def records(self) -> tuple[RecordFile, ...]:
        """The records the entry is computed from."""
        pairs = zip(self.evidence.records, self.findings.records, strict=True)
        return tuple(RecordFile(source.path, source.sha256, record) for source, record in pairs)

    @property
    def lowest(self) -> float:
        """The lowest robust accuracy known, in percent: the number that entries are ranked by."""
        return float(self.entry.lowest_acc)


def published_entries(tree: Tree) -> dict[Board, list[PublishedEntry]]:
    """The tree's own entries on every board, ranked as RobustBench ranks: by the lowest robust accuracy known.

    Raises:
        InputError: If there is no such folder.
        EvaluationError: If ``empir leaderboard check`` would reject the tree: the page shows only numbers from records.
    """
    if problems := check(tree):
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise EvaluationError(
            f"{problems[0]}{more}: the page shows only what `empir leaderboard check` accepts, correct it"
        )
    runs = _record_files(tree)
    boards: dict[Board, list[PublishedEntry]] = {}
    for place in (place for place in tree.places() if place.is_own):
        boards.setdefault(BOARDS[str(place.board)], []).append(_published_entry(tree, place, runs))
    return {board: sorted(rows, key=lambda row: -row.lowest) for board, rows in boards.items()}


def _published_entry(tree: Tree, place: Place, runs: Sequence[RecordFile]) -> PublishedEntry:
    evidence = Evidence.read(place.evidence)
    findings = evidence.findings(tree.runs)
    own = {source.path for source in evidence.records}
    identity = ModelIdentity.of_table(findings.records[0].model)
    others = (
        run
        for run in runs
        if run.path not in own and is_same_model(evidence.model, identity, ModelIdentity.of_table(run.record.model))
    )
    measured = measure(evidence.model, place.board, findings.records, findings.audit)
    return PublishedEntry(place, Entry.read(place.entry), evidence, findings, measured, tuple(others))


def _record_files(tree: Tree) -> list[RecordFile]:
    paths = sorted(path for path in tree.runs.rglob("*.json") if not path.is_relative_to(tree.evidence))
    return [file for path in paths if (file := _record_file(path, path.relative_to(tree.runs).as_posix()))]


def _record_file(path: Path, name: str) -> RecordFile | None:
    try:
        return RecordFile(name, hashlib.sha256(path.read_bytes()).hexdigest(), Record.read(path))
    except EvaluationError:  # an audit, costs, or a training report
        return None


STORAGE = ("storage_ratio",)
"""Keys of the size of the weight file in an overhead, relative to that of the full-precision network."""

TIME = ("eq6", "time", "as_built")
"""Keys of the time by EMPIR's Equation 6; layers that stay in full precision count as such."""


def number_at(table: object, *keys: str) -> float | None:
    """The number under a path of keys in nested tables; None if there is no number.

    Example:
        >>> number_at({"eq6": {"time": {"ideal": 1.25}}}, "eq6", "time", "ideal"), number_at({"eq6": 1}, "eq6", "time")
        (1.25, None)
    """
    for key in keys:
        if not isinstance(table, Mapping):
            return None
        table = table.get(key)
    return float(table) if isinstance(table, (int, float)) and not isinstance(table, bool) else None
