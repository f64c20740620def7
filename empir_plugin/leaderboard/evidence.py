"""Evidence of an entry: the files its numbers follow from, each with its SHA-256.

RobustBench's format has no field for it, and paths into the runs mean nothing at RobustBench. So each entry
``model_info/<dataset>/<norm>/<Stem>.json`` has a second file, ``runs/entries/<dataset>/<norm>/<Stem>.json``.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from empir_plugin._files.names import check_name
from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.papers import Facts, facts_of, read_facts

OVERHEAD = JsonKind("an overhead", InputError)
"""Overhead files, as ``empir overhead --out`` writes them."""

_SOURCES = JsonKind("the sources of an entry", InputError)
_FORBIDDEN = re.compile(r"[\\\x00-\x1f]")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SourceFile:
    """A file that an entry follows from.

    Args:
        path: Below the folder of runs, with ``/`` between its parts.
        sha256: Of its bytes.

    Raises:
        InputError: If the path leads out of the folder, a part of it is no plain name (see
            :func:`~empir_plugin._files.names.check_name`), or the hash is not a SHA-256.
    """

    path: str
    sha256: str

    def __post_init__(self) -> None:
        parts = PurePosixPath(self.path).parts if isinstance(self.path, str) else ()
        if not parts or ".." in parts or PurePosixPath(self.path).is_absolute() or _FORBIDDEN.search(self.path):
            raise InputError(f"a source is a path below the folder of runs, got {self.path!r}")
        for part in parts:
            check_name("a source", part)
        if not isinstance(self.sha256, str) or not _SHA256.fullmatch(self.sha256):
            raise InputError(f"the SHA-256 of {self.path} must be 64 hexadecimal digits, got {self.sha256!r}")

    def verify(self, runs: Path) -> Path:
        """Check the SHA-256 of the file and return its path.

        Args:
            runs: The folder of runs.

        Raises:
            EvaluationError: If the file is missing, or its bytes have changed.
        """
        path = runs / self.path
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise EvaluationError(f"{self.path} is missing from {runs} ({error.strerror}): restore it") from error
        if digest != self.sha256:
            raise EvaluationError(f"{self.path} was altered since the entry was made: restore it or add the entry anew")
        return path


@dataclass(frozen=True)
class Findings:
    """What the files of an entry say.

    Args:
        facts: About the model and its paper.
        records: Run records.
        audit: An audit for gradient masking.
        overhead: What the overhead file holds.
    """

    facts: Facts
    records: tuple[Record, ...]
    audit: AuditReport | None = None
    overhead: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Evidence:
    """The source files of an entry.

    Args:
        model: Name for ``load_model``.
        records: Run records.
        audit: An audit for gradient masking.
        overhead: Overhead of the model.
        paper: Facts about a model that this package does not know.

    Raises:
        InputError: If there is no record.

    Example:
        >>> Evidence("empir-cifar", (SourceFile("aa.json", "0" * 64),)).to_json().splitlines()[1]
        '  "model": "empir-cifar",'
    """

    model: str
    records: tuple[SourceFile, ...]
    audit: SourceFile | None = None
    overhead: SourceFile | None = None
    paper: SourceFile | None = None

    def __post_init__(self) -> None:
        if not (isinstance(self.model, str) and self.model):
            raise InputError(f"model must be the name of a model, got {self.model!r}")
        if not self.records:
            raise InputError("an entry needs one run record at least, got none")

    def to_json(self) -> str:
        """The text of the evidence file; files that an entry does not have are left out."""
        return _SOURCES.text({key: item for key, item in asdict(self).items() if item is not None})

    @classmethod
    def read(cls, path: Path) -> Evidence:
        """Read an evidence file back.

        Raises:
            InputError: If the file is missing or has another form.
        """
        table = _SOURCES.load(path)
        try:
            single = {key: SourceFile(**table[key]) for key in ("audit", "overhead", "paper") if key in table}
            return cls(**{**table, **single, "records": tuple(SourceFile(**row) for row in table["records"])})
        except (KeyError, TypeError, AttributeError, InputError) as error:
            raise InputError(f"{path} does not name the sources of an entry ({error}): add the entry anew") from error

    def findings(self, runs: Path) -> Findings:
        """Verify and read the source files.

        Args:
            runs: The folder of runs.

        Raises:
            EvaluationError: If a file is missing or altered, or a record or the audit cannot be read.
            InputError: If another file cannot be read.
        """
        return Findings(
            facts=read_facts(self.paper.verify(runs), self.model) if self.paper else facts_of(self.model),
            records=tuple(Record.read(source.verify(runs)) for source in self.records),
            audit=AuditReport.read(self.audit.verify(runs)) if self.audit else None,
            overhead=OVERHEAD.load(self.overhead.verify(runs)) if self.overhead else None,
        )
