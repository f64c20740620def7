"""Thresholds on clean and robust accuracy, and a readable explanation of a missed one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from empir_plugin.errors import InputError
from empir_plugin.evaluation.record import Record

_SHOWN = 12
"""Ranges of image numbers shown in a line; the rest is counted."""


@dataclass(frozen=True)
class Thresholds:
    """Least accuracies, in percent of all images; None for no threshold.

    They are compared with the accuracies in a record, which have two decimals.

    Args:
        min_clean: Least accuracy on clean images.
        min_robust: Least robust accuracy: the per-image worst case over all attacks that count.

    Raises:
        InputError: If a threshold is not in [0, 100].

    Example:
        >>> Thresholds(min_robust=30).min_clean is None
        True
    """

    min_clean: float | None = None
    min_robust: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_clean", self.min_clean), ("min_robust", self.min_robust)):
            if least is None:
                continue
            if isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 <= least <= 100:
                raise InputError(f"{name} must be a percentage from 0 to 100, got {least!r}")

    def shortfalls(self, record: Record) -> tuple[str, ...]:
        """One sentence for each threshold that a record misses.

        Without an attack with a finite budget there is no robust accuracy, and any ``min_robust`` is missed.
        """
        return tuple(self._shortfalls(record))

    def _shortfalls(self, record: Record) -> Iterator[str]:
        n = len(record.clean)
        if self.min_clean is not None and record.clean_accuracy < self.min_clean:
            have = f"{record.clean.count('1')} of {n} images are classified correctly, {_needed(self.min_clean, n)}"
            yield _below("clean", record.clean_accuracy, "min_clean", self.min_clean, have)
        if self.min_robust is None:
            return
        if not any(attack.in_worst_case for attack in record.attacks):
            names = ", ".join(attack.name for attack in record.attacks) or "none"
            yield f"min_robust {self.min_robust:g} % needs an attack with a budget, got {names}: add one, such as pgd"
        elif record.worst_case_accuracy < self.min_robust:
            robust = record.worst_case.count("1")
            have = f"{robust} of {n} images are robust to every attack, {_needed(self.min_robust, n)}"
            yield _below("robust", record.worst_case_accuracy, "min_robust", self.min_robust, have)

    def explain(self, record: Record) -> str:
        """The missed thresholds and the images that each attack broke, as lines of text; empty if none was missed."""
        missed = self.shortfalls(record)
        return "\n".join([*_heading(record), *missed, "", *_table(record)]) if missed else ""


def _below(what: str, accuracy: float, name: str, least: float, have: str) -> str:
    return f"{what} accuracy {accuracy:.2f} % is below {name} {least:g} %: {have}"


def _needed(least: float, n: int) -> str:
    exact = math.ceil(least * n / 100)
    rounded = exact - 1 if exact and round(100 * (exact - 1) / n, 2) >= least else exact
    return f"{rounded} are needed"


def _heading(record: Record) -> Iterator[str]:
    data = f"{record.data.get('n'):,} images of {record.data.get('name')} ({record.data.get('source')})"
    yield f"{record.model.get('name')} under {record.threat}, {data}"
    hashes = f"model {str(record.model.get('sha256'))[:16]}, data {str(record.data.get('sha256'))[:16]}"
    yield f"seed {record.run.get('seed')}, {record.run.get('device')}, SHA-256 of {hashes}"
    yield ""


def _table(record: Record) -> Iterator[str]:
    rows = [(attack.name, attack.robust, attack.accuracy) for attack in record.attacks]
    rows.append(("worst case per image", record.worst_case, record.worst_case_accuracy))
    width = max(len(name) for name, *_ in rows)
    wrong = [index for index, correct in enumerate(record.clean) if correct == "0"]
    yield f"  {'clean':{width}}  {record.clean_accuracy:6.2f} %  wrong: {ranges(wrong)}"
    for name, robust, accuracy in rows:
        yield f"  {name:{width}}  {accuracy:6.2f} %  broken: {ranges(_broken(record.clean, robust))}"


def _broken(clean: str, robust: str) -> list[int]:
    return [i for i, (before, after) in enumerate(zip(clean, robust, strict=True)) if before == "1" and after == "0"]


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers, consecutive ones as a range.

    Example:
        >>> ranges([0, 1, 2, 7]), ranges([])
        ('0-2, 7', 'none')
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in runs[:_SHOWN])
    rest = sum(high - low + 1 for low, high in runs[_SHOWN:])
    return f"{shown}, and {rest} more" if rest else shown or "none"
