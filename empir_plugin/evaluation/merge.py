"""Records of one model under one threat, put together image by image."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.record import AttackRecord, Record, percent
from empir_plugin.evaluation.summary import worst_case

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
