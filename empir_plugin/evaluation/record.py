"""Run records: every verdict, and everything needed to make the same run again.

A record is a JSON object with the fields of :class:`Record`, in UTF-8. Verdicts are texts with one ``1`` or ``0`` per
image, in the order of the data set; accuracies are what those say, in percent to two decimals, and a record whose
numbers do not follow from its verdicts is refused. Numbers are finite, and no key occurs twice. ``schema`` is raised
when the form changes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EvaluationError

SCHEMA = 1
_KIND = JsonKind("a run record", EvaluationError, SCHEMA)


@dataclass(frozen=True)
class PartRecord:
    """What was left after one part of a suite of attacks.

    Args:
        name: Of the part; the first, ``"clean"``, is before all of them.
        robust: One character per image: 1 if it was still classified correctly after this part.
        accuracy: Percent of all images that is.
    """

    name: str
    robust: str
    accuracy: float

    def __post_init__(self) -> None:
        _check_verdicts(self.name, self.robust, self.accuracy)


@dataclass(frozen=True)
class AttackRecord:
    """What one attack left.

    Args:
        name: Of the attack.
        settings: All of its settings, as text.
        robust: One character per image: 1 if the model's decision on what the attack made of it is the true label. An
            image the attack was not given has 0: without an attack it was wrong, or, in a cascade, had fallen already.
        accuracy: Percent of all images that is.
        seconds: Time the attack took, the check of its results included, summed over processes.
        flags: Warnings of AutoAttack about the model or the evaluation.
        rules: A sentence: whom it attacks, with which labels, which images, under which limits.
        threat: What its results were checked against, as text.
        in_worst_case: Whether the worst case counts it.
        parts: Of a suite, what was left after each.
    """

    name: str
    settings: str
    robust: str
    accuracy: float
    seconds: float
    flags: tuple[str, ...] = ()
    rules: str = ""
    threat: str = ""
    in_worst_case: bool = True
    parts: tuple[PartRecord, ...] = ()

    def __post_init__(self) -> None:
        _check_verdicts(self.name, self.robust, self.accuracy)
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise EvaluationError(f"the seconds of {self.name} must be a number, 0 or more, got {self.seconds}")
        for part in self.parts:
            _check_length(part.name, part.robust, len(self.robust))


@dataclass(frozen=True)
class Record:
    """One evaluation: a model on images under a threat.

    Args:
        model: ``name``, ``sha256`` of text and weights, and whether it had ``weights_loaded``.
        data: ``name``, ``split``, ``source``, number of images ``n``, ``sha256``, and whether it is ``full_official``.
        threat: As text, such as ``"Linf:8/255"``.
        clean: One character per image: 1 if the model classifies it correctly.
        clean_accuracy: Percent of the images it does.
        attacks: In the order they ran.
        worst_case: One character per image: 1 if it is classified correctly and withstood every attack that counts.
        worst_case_accuracy: Percent of the images that did.
        run: ``seed``, ``batch_size``, ``shard_size``, ``cascade``, ``device``, ``backend`` (what gave ``verdicts`` and
            answered ``queries``, and the ``reason`` if int8 was asked for in vain), ``threads`` per process (all that
            occurred), ``processes``, time of day ``finished``, ``versions`` and ``code_sha256`` of this package.
        protocol: ``name``, ``description``, and ``headline``: which number to quote, ``WORST_CASE`` or ``AVERAGE``.
        schema: Version of this format.

    Raises:
        EvaluationError: If verdicts, numbers and each other do not agree.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    threat: str
    clean: str
    clean_accuracy: float
    attacks: tuple[AttackRecord, ...]
    worst_case: str
    worst_case_accuracy: float
    run: dict[str, Any]
    protocol: dict[str, Any] = field(default_factory=dict)
    schema: int = field(default=SCHEMA, kw_only=True)

    def __post_init__(self) -> None:
        tables = self.model, self.data, self.run, self.protocol
        if not (isinstance(self.threat, str) and all(isinstance(table, dict) for table in tables)):
            raise EvaluationError("model, data, run and protocol are tables, and the threat is a text")
        _check_verdicts("the clean images", self.clean, self.clean_accuracy)
        _check_verdicts("the worst case", self.worst_case, self.worst_case_accuracy)
        for name, verdicts in (("data", self.data.get("n")), ("worst case", len(self.worst_case))):
            if verdicts != len(self.clean):
                raise EvaluationError(f"{len(self.clean)} clean verdicts, but {name} speaks of {verdicts} images")
        for attack in self.attacks:
            _check_length(attack.name, attack.robust, len(self.clean))
        counted = [self.clean, *(attack.robust for attack in self.attacks if attack.in_worst_case)]
        if in_all(counted) != self.worst_case:
            raise EvaluationError("the worst case does not follow from the verdicts")

    @property
    def headline_accuracy(self) -> float:
        """The number its protocol is quoted by, in percent to two decimals."""
        if self.protocol.get("headline") == "AVERAGE" and self.attacks:
            return round(sum(attack.accuracy for attack in self.attacks) / len(self.attacks), 2)
        return self.worst_case_accuracy

    def to_json(self) -> str:
        """The record as JSON text.

        Raises:
            EvaluationError: If a number is NaN or infinite, or something is no JSON.
        """
        return _KIND.text(asdict(self))

    def write(self, path: Path) -> None:
        """Write the record; a kill leaves no half of one.

        Raises:
            EvaluationError: If it cannot be written.
        """
        _KIND.write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record back.

        Raises:
            EvaluationError: If the file is missing, no record, of another version of the format, or contradicts itself.
        """
        return _KIND.read(path, cls.from_table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Record:
        """Back from what JSON held.

        Raises:
            EvaluationError: If the record contradicts itself.
            KeyError: If the attacks, or fields of one, are missing.
            TypeError: If other fields are missing, or unknown.
        """
        return cls(**{**table, "attacks": tuple(_attack(row) for row in table["attacks"])})


def _attack(row: Mapping[str, Any]) -> AttackRecord:
    parts = tuple(PartRecord(**part) for part in row.get("parts", ()))
    return AttackRecord(**{**row, "flags": tuple(map(str, row["flags"])), "parts": parts})


def _check_verdicts(name: str, verdicts: str, accuracy: float) -> None:
    if not verdicts or not set(verdicts) <= {"0", "1"}:
        raise EvaluationError(f"the verdicts of {name} must be a 0 or 1 for each image")
    expected = percent(verdicts)
    if accuracy != expected:
        raise EvaluationError(f"the verdicts of {name} make {expected} %, the record says {accuracy}")


def _check_length(name: str, verdicts: str, n: int) -> None:
    if len(verdicts) != n:
        raise EvaluationError(f"{name} has {len(verdicts)} verdicts for {n} images")


def bits(verdicts: Tensor) -> str:
    """Verdicts ``(N,)`` as one character per image.

    Example:
        >>> import torch
        >>> bits(torch.tensor([True, False, True]))
        '101'
    """
    return "".join("1" if verdict else "0" for verdict in verdicts.tolist())


def percent(verdicts: str) -> float:
    """Share of ones in a text of verdicts, in percent to two decimals.

    Example:
        >>> percent("110")
        66.67
    """
    return round(100 * verdicts.count("1") / len(verdicts), 2)


def in_all(verdicts: Iterable[str]) -> str:
    """Texts of verdicts on the same images as one: 1 where all of them say 1.

    Raises:
        ValueError: If they are about different numbers of images.

    Example:
        >>> in_all(["1101", "1011"])
        '1001'
    """
    return "".join("1" if set(column) == {"1"} else "0" for column in zip(*verdicts, strict=True))


def worst_case(clean: str, attacks: Sequence[AttackRecord]) -> str:
    """One character per image: 1 where it is classified correctly and withstood every attack that counts."""
    return in_all((clean, *(attack.robust for attack in attacks if attack.in_worst_case)))


def common_worst_case(records: Sequence[Record]) -> str:
    """Verdicts of all attacks with a budget in several records of one network on the same images: 1 where all are.

    Raises:
        ValueError: If the records are about different numbers of images.
    """
    return in_all(record.worst_case for record in records)


_RUN = ("seed", "batch_size", "shard_size", "cascade", "device", "backend", "versions", "code_sha256")
"""What two runs must share to be parts of one."""


def merged(records: Sequence[Record]) -> Record:
    """One record over the attacks of all: its worst case is, per image, that of all of them.

    Where no attack was spared images that fell under another, this is the record of one evaluation with all attacks.

    Args:
        records: At least one; an attack that several hold must be the same in each.

    Raises:
        EvaluationError: If they are of different models, images, threats or ways to run, or two attacks of one name
            differ.

    Example:
        >>> about = {"model": {"name": "toy"}, "data": {"n": 2}, "threat": "Linf:8/255", "run": {}}
        >>> one, two = (AttackRecord(name, "", left, 50.0, 1.0) for name, left in (("FGSM", "10"), ("PGD", "01")))
        >>> parts = [Record(clean="11", clean_accuracy=100.0, attacks=(a,), worst_case=a.robust,
        ...     worst_case_accuracy=50.0, **about) for a in (one, two)]
        >>> merged(parts).worst_case
        '00'
    """
    first = records[0]
    for other in records:
        if not _same_subject(first, other):
            names = f"{first.model.get('name')} and {other.model.get('name')}"
            differ = "model, images, threat, clean verdicts, protocol or settings"
            raise EvaluationError(f"records of {names} differ in {differ}: they have no common worst case")
    attacks = {attack.name: attack for record in records for attack in record.attacks}
    for attack in (attack for record in records for attack in record.attacks):
        if not _same_result(attack, attacks[attack.name]):
            raise EvaluationError(f"two attacks named {attack.name} differ: give them different names")
    worst = worst_case(first.clean, tuple(attacks.values()))
    run = {**first.run, **_spread([record.run for record in records])}
    accuracy = percent(worst)
    return replace(first, attacks=tuple(attacks.values()), worst_case=worst, worst_case_accuracy=accuracy, run=run)


def gathered(records: Iterable[Record]) -> tuple[Record, ...]:
    """As few records as these can be merged into, in order of the first of each."""
    groups: list[Record] = []
    for record in records:
        for index, group in enumerate(groups):
            if _same_subject(group, record) and not _conflict(group, record):
                groups[index] = merged((group, record))
                break
        else:
            groups.append(record)
    return tuple(groups)


def record_of(table: Mapping[str, Any]) -> Record:
    """A record from what its JSON text holds.

    Raises:
        EvaluationError: If it is none, or contradicts itself.
    """
    try:
        return Record.from_table(table)
    except (KeyError, TypeError) as error:
        raise EvaluationError(f"this is no run record ({type(error).__name__}: {error})") from error


def _same_subject(one: Record, other: Record) -> bool:
    return _subject(one) == _subject(other)


def _subject(record: Record) -> tuple[object, ...]:
    run = tuple(record.run.get(key) for key in _RUN)
    return record.model, record.data, record.threat, record.clean, record.protocol, run


def _conflict(one: Record, other: Record) -> bool:
    named = {attack.name: attack for attack in one.attacks}
    return any(a.name in named and not _same_result(a, named[a.name]) for a in other.attacks)


def _same_result(one: AttackRecord, other: AttackRecord) -> bool:
    return replace(one, seconds=0.0) == replace(other, seconds=0.0)


def _spread(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What may differ between runs that are parts of one."""
    threads = {number for run in runs for number in run.get("threads", ())}
    finished = [run["finished"] for run in runs if "finished" in run]
    return {"threads": sorted(threads), **({"finished": max(finished)} if finished else {})}
