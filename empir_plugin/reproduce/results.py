"""Measured numbers, read from the records, and :class:`Target`, a table or figure that shows them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.reproduce.document import Block, Link
from empir_plugin.reproduce.parts import ConfusionMatrix, Part
from empir_plugin.reproduce.subjects import Training, trainings_of
from empir_plugin.reproduce.workspace import ATTACHMENTS

_RECORD_FILE = JsonKind("a record", EvaluationError, cure="delete it")


@dataclass(frozen=True)
class Results:
    """The records in a folder, by name.

    Args:
        folder: The folder.
    """

    folder: Path

    def path(self, slug: str) -> Path:
        """Path of a record."""
        return self.folder / f"{slug}.json"

    def has(self, slug: str) -> bool:
        """Whether a record exists."""
        return self.path(slug).is_file()

    def record(self, slug: str) -> Record:
        """Read the record of an evaluation.

        Raises:
            EvaluationError: If it is missing or damaged.
        """
        return Record.read(self.path(slug))

    def matrix(self, slug: str) -> ConfusionMatrix:
        """Read a confusion matrix.

        Raises:
            EvaluationError: If it is missing or damaged.
        """
        return ConfusionMatrix.read(self.path(slug))

    def table(self, slug: str) -> dict[str, Any]:
        """Read a record of any kind as a mapping.

        Raises:
            EvaluationError: If it is missing or not a JSON object.
        """
        return _RECORD_FILE.read(self.path(slug), dict)

    def link(self, slug: str) -> Link:
        """A link from the report to a record."""
        return Link(slug, f"{ATTACHMENTS}/{self.folder.name}/{slug}.json")

    def digest(self, slug: str) -> str:
        """SHA-256 of a record's file, as hexadecimal text."""
        return hashlib.sha256(self.path(slug).read_bytes()).hexdigest()


def incomplete_reason(results: Results, parts: Sequence[Part]) -> str:
    """Explain why the records of some parts cannot be shown together; empty if they can.

    They can if none is missing and all records of a data set were measured on the same images.
    """
    missing = [part.slug for part in parts if not results.has(part.slug)]
    if missing:
        return f"{len(missing)} of {len(parts)} records are missing, the first is {missing[0]}"
    images: dict[str, str] = {}
    for part in parts:
        data = results.table(part.slug).get("data")
        if data is not None and images.setdefault(part.images, data["sha256"]) != data["sha256"]:
            return f"{part.slug} was measured on other images than the records before it"
    return ""


def attack_of(record: Record, attack: str) -> AttackRecord:
    """The results of one attack in a record.

    Raises:
        EvaluationError: If the record has no such attack.
    """
    for result in record.attacks:
        if result.name == attack:
            return result
    names = ", ".join(result.name for result in record.attacks)
    raise EvaluationError(f"the record of {record.model['name']} has no attack {attack!r}, only {names}")


def attack_accuracy(record: Record, attack: str) -> float:
    """Accuracy under one attack of a record, in percent.

    Raises:
        EvaluationError: If the record has no such attack.
    """
    return attack_of(record, attack).accuracy


def mean_accuracy(record: Record, attacks: Sequence[str]) -> float:
    """Mean accuracy under some attacks of a record, in percent to two decimals."""
    return round(sum(attack_accuracy(record, name) for name in attacks) / len(attacks), 2)


Show = Callable[[Results, Path], tuple[Block, ...]]
"""Draws a target's figures into a folder and returns its part of the report."""


@dataclass(frozen=True)
class Target:
    """A table or figure of a paper.

    Args:
        name: Name on the command line.
        title: Heading in the report.
        parts: Measurements it needs.
        show: Shows them, once all are complete.
        extras: Measurements that need images or weights from the user; without these, the report says "not run".
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    show: Show
    extras: tuple[Part, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Trainings its networks depend on."""
        return trainings_of([subject for part in self.parts for subject in part.subjects])

    @property
    def datasets(self) -> tuple[str, ...]:
        """Data sets its measurements need."""
        return tuple(dict.fromkeys(part.dataset for part in self.parts))
