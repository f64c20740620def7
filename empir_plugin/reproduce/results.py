"""What was measured, read back from the records."""

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
from empir_plugin.reproduce.parts import Matrix, Part
from empir_plugin.reproduce.subjects import Training, trainings_of
from empir_plugin.reproduce.workspace import SHOWN

_ANY = JsonKind("a record", EvaluationError, cure="delete it")


@dataclass(frozen=True)
class Results:
    """A folder of records.

    Args:
        folder: Where they lie.
    """

    folder: Path

    def path(self, slug: str) -> Path:
        """The file of a record."""
        return self.folder / f"{slug}.json"

    def has(self, slug: str) -> bool:
        """Whether a record is there."""
        return self.path(slug).is_file()

    def record(self, slug: str) -> Record:
        """An evaluation.

        Raises:
            EvaluationError: If it is missing or damaged.
        """
        return Record.read(self.path(slug))

    def matrix(self, slug: str) -> Matrix:
        """A confusion matrix.

        Raises:
            EvaluationError: If it is missing or damaged.
        """
        return Matrix.read(self.path(slug))

    def table(self, slug: str) -> dict[str, Any]:
        """Any record as it is.

        Raises:
            EvaluationError: If it is missing or no JSON object.
        """
        return _ANY.read(self.path(slug), dict)

    def link(self, slug: str) -> Link:
        """The way from a report to a record."""
        return Link(slug, f"{SHOWN}/{self.folder.name}/{slug}.json")

    def digest(self, slug: str) -> str:
        """SHA-256 of a record's bytes, as hexadecimal text."""
        return hashlib.sha256(self.path(slug).read_bytes()).hexdigest()


def gap(results: Results, parts: Sequence[Part]) -> str:
    """Why the records of some parts make no table together; empty if they do.

    They do if none is missing and all of one data set are about the same images.
    """
    missing = [part.slug for part in parts if not results.has(part.slug)]
    if missing:
        return f"{len(missing)} of {len(parts)} records are missing, the first is {missing[0]}"
    images: dict[str, str] = {}
    for part in parts:
        data = results.table(part.slug).get("data")
        if data is not None and images.setdefault(part.images, data["sha256"]) != data["sha256"]:
            return f"{part.slug} is about other images than the records before it"
    return ""


def attack_of(record: Record, attack: str) -> AttackRecord:
    """What one attack of a record left.

    Raises:
        EvaluationError: If the record has no such attack.
    """
    for found in record.attacks:
        if found.name == attack:
            return found
    names = ", ".join(each.name for each in record.attacks)
    raise EvaluationError(f"the record of {record.model['name']} has no attack {attack!r}, only {names}")


def attack_accuracy(record: Record, attack: str) -> float:
    """Percent that one attack of a record left.

    Raises:
        EvaluationError: If the record has no such attack.
    """
    return attack_of(record, attack).accuracy


def mean_accuracy(record: Record, attacks: Sequence[str]) -> float:
    """Mean of what some attacks left, in percent to two decimals."""
    return round(sum(attack_accuracy(record, name) for name in attacks) / len(attacks), 2)


Show = Callable[[Results, Path], tuple[Block, ...]]
"""Draws a target's figures into a folder, and gives what the report shows of it."""


@dataclass(frozen=True)
class Target:
    """A table or figure of a paper.

    Args:
        name: What the command calls it.
        title: Heading in the report.
        parts: What is measured for it.
        show: How that is shown, once all of it is there.
        extras: Measured too where the user has what they need; shown as not run otherwise.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    show: Show
    extras: tuple[Part, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Trainings of the networks it needs."""
        return trainings_of([subject for part in self.parts for subject in part.subjects])

    @property
    def datasets(self) -> tuple[str, ...]:
        """Data sets its parts run on."""
        return tuple(dict.fromkeys(part.dataset for part in self.parts))
