"""What an entry rests on: which files, by their SHA-256, so that its numbers can be computed again from them.

RobustBench's format has no place for this, and our one key in it, ``overhead``, says what a model costs, and goes to
RobustBench with the entry, where paths into our runs mean nothing. So it lies beside the entries, in a file of its own
for each: ``runs/entries/<dataset>/<norm>/<Stem>.json`` for ``model_info/<dataset>/<norm>/<Stem>.json``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.papers import Facts, facts_of, read_facts

OVERHEAD = JsonKind("an overhead", InputError)
"""Files that say what a model costs."""

_SOURCES = JsonKind("the sources of an entry", InputError)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Source:
    """One file.

    Args:
        path: Below the folder of runs, with ``/`` between its parts.
        sha256: Of its bytes.

    Raises:
        InputError: If the path leads elsewhere, or the hash is none.
    """

    path: str
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts if isinstance(self.path, str) else ()
        if not parts or ".." in parts or PurePosixPath(self.path).is_absolute() or "\\" in self.path:
            raise InputError(f"a source is a path below the folder of runs, got {self.path!r}")
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise InputError(f"the SHA-256 of {self.path} must be 64 hexadecimal digits, got {self.sha256!r}")

    def opened(self, runs: Path) -> Path:
        """Its path, once its bytes are found to be those that were named.

        Raises:
            EvaluationError: If it is missing or altered.
        """
        path = runs / self.path
        try:
            found = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise EvaluationError(f"{self.path} is missing from {runs} ({error.strerror}): restore it") from error
        if found != self.sha256:
            raise EvaluationError(f"{self.path} was altered since the entry was made: restore it or add the entry anew")
        return path


@dataclass(frozen=True)
class Findings:
    """What the files of an entry say."""

    facts: Facts
    records: tuple[Record, ...]
    audit: AuditReport | None = None
    overhead: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Evidence:
    """The files of an entry.

    Args:
        model: Name for ``load_model``.
        records: Run records.
        audit: An audit for gradient masking.
        overhead: What the model costs.
        paper: What is to be said of the model, where this package does not know it.

    Raises:
        InputError: If there is no record.

    Example:
        >>> Evidence("empir-cifar", (Source("aa.json", "0" * 64),)).to_json().splitlines()[1]
        '  "model": "empir-cifar",'
    """

    model: str
    records: tuple[Source, ...]
    audit: Source | None = None
    overhead: Source | None = None
    paper: Source | None = None

    def __post_init__(self) -> None:
        if not self.records:
            raise InputError("an entry needs one run record at least, got none")

    def to_json(self) -> str:
        """The text of its file; what there is none of is left out."""
        return _SOURCES.text({key: item for key, item in asdict(self).items() if item is not None})

    @classmethod
    def read(cls, path: Path) -> Evidence:
        """Read it back.

        Raises:
            InputError: If the file is missing or of another form.
        """
        table = _SOURCES.load(path)
        try:
            single = {key: Source(**table[key]) for key in ("audit", "overhead", "paper") if key in table}
            return cls(**{**table, **single, "records": tuple(Source(**row) for row in table["records"])})
        except (KeyError, TypeError, InputError) as error:
            raise InputError(f"{path} does not name the sources of an entry ({error}): add the entry anew") from error

    def findings(self, runs: Path) -> Findings:
        """What the files say.

        Raises:
            EvaluationError: If one is missing, altered, or no record.
            InputError: If another is of another form.
        """
        return Findings(
            facts=read_facts(self.paper.opened(runs), self.model) if self.paper else facts_of(self.model),
            records=tuple(Record.read(source.opened(runs)) for source in self.records),
            audit=AuditReport.read(self.audit.opened(runs)) if self.audit else None,
            overhead=OVERHEAD.load(self.overhead.opened(runs)) if self.overhead else None,
        )
