"""The baseline that a pytest session is compared with: records of an earlier run, in a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.comparison import RecordComparison, compare
from empir_plugin.evaluation.record import Record, parse_record

_KIND = JsonKind("a run record or a session's report", EvaluationError, cure="--rb-save writes one")


def read_records(path: Path) -> tuple[Record, ...]:
    """The records in a file: the one that ``empir evaluate`` writes, or those of ``--rb-save`` or ``--rb-json``.

    Raises:
        EvaluationError: If the file is missing, or holds neither.
    """
    table = _KIND.load(path)
    if isinstance(table, dict) and isinstance(table.get("records"), list):
        return _KIND.read(path, lambda content: tuple(map(parse_record, content["records"])))
    return (Record.read(path),)


@dataclass(frozen=True)
class BaselineRecords:
    """Records to compare with.

    Args:
        path: Of their file, for messages.
        records: One for each model, images and threat.
        largest_drop: By how many points clean and robust accuracy may fall; None if any drop passes.
    """

    path: Path
    records: tuple[Record, ...]
    largest_drop: float | None = None

    def of(self, record: Record) -> Record | None:
        """The record of the same model, by its name, on the same images under the same threat; None without one."""
        wanted = _subject(record)
        return next((each for each in self.records if _subject(each) == wanted), None)

    def compare(self, record: Record) -> RecordComparison | None:
        """The comparison with the baseline's record; None if it has none with an attack in common."""
        found = self.of(record)
        names = set() if found is None else {attack.name for attack in found.attacks}
        if found is None or not any(attack.name in names for attack in record.attacks):
            return None
        return compare(found, record)

    def shortfalls(self, record: Record, comparison: RecordComparison | None) -> tuple[str, ...]:
        """One sentence for each accuracy that fell too far, or that the baseline has no number for."""
        return () if self.largest_drop is None else tuple(self._shortfalls(record, comparison, self.largest_drop))

    def _shortfalls(self, record: Record, comparison: RecordComparison | None, points: float) -> Iterator[str]:
        known = () if comparison is None else comparison.baseline.attacks
        missing = [attack.name for attack in record.attacks if attack.name not in {each.name for each in known}]
        if missing:
            about = f"{record.model.get('name')} under {record.threat} on these {record.data.get('n')} images"
            yield f"{self.path} has no result of {', '.join(missing)} for {about}: write it again with --rb-save"
        if comparison is not None:
            yield from comparison.drops(points)


def _subject(record: Record) -> tuple[Any, ...]:
    return record.model.get("name"), record.data.get("sha256"), record.data.get("n"), record.threat


def pair_records(baseline: Sequence[Record], candidates: Sequence[Record]) -> list[tuple[Record, Record]]:
    """The records to compare: two single ones whatever their models, else those of one model, images and threat.

    Raises:
        EvaluationError: If no two of them belong together.
    """
    if len(baseline) == len(candidates) == 1:
        return [(baseline[0], candidates[0])]
    first = BaselineRecords(Path(), tuple(baseline))
    pairs = [(found, each) for each in candidates if (found := first.of(each)) is not None]
    if not pairs:
        raise EvaluationError("the files share no model on the same images under the same threat: nothing to compare")
    return pairs
