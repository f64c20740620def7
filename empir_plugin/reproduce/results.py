"""What was measured, read back from the records."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.evaluation.strict_json import JsonKind
from empir_plugin.reproduce.confusion import Matrix
from empir_plugin.reproduce.document import Link
from empir_plugin.reproduce.parts import Part
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
