"""Compare two run records on the same images, attack by attack and image by image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.mcnemar import McNemarTest
from empir_plugin.evaluation.intervals import wilson_interval
from empir_plugin.evaluation.record import AttackRecord, Record, percent, worst_case

CLEAN, WORST_CASE = "none (clean)", "worst case per image"
"""Names of the first and the last row of a comparison."""
_SHOWN = 12
"""Ranges of image numbers shown in a line; the rest is counted."""
_EQUAL_ATTACK = ("settings", "kind", "version", "threat")
_EQUAL_RUN = ("seed", "cascade")


@dataclass(frozen=True)
class Change:
    """The verdicts of two records on the same images under one attack.

    Args:
        name: Of the attack, :data:`CLEAN` or :data:`WORST_CASE`.
        before: One character per image, of the baseline: 1 if it is classified correctly.
        after: The same of the other record.

    Example:
        >>> change = Change("PGD", "1110", "1001")
        >>> change.difference, change.lost, change.gained, change.p_value
        (-25.0, (1, 2), (3,), 1.0)
    """

    name: str
    before: str
    after: str

    @property
    def difference(self) -> float:
        """By how many points the accuracy rose; negative if it fell."""
        return round(percent(self.after) - percent(self.before), 2)

    @property
    def lost(self) -> tuple[int, ...]:
        """Numbers of the images that only the baseline classifies correctly."""
        return _where(self.before, self.after)

    @property
    def gained(self) -> tuple[int, ...]:
        """Numbers of the images that only the other record's model classifies correctly."""
        return _where(self.after, self.before)

    @property
    def test(self) -> McNemarTest:
        """The exact McNemar test of the images that the two do not share."""
        broken = self.after.count("0"), self.before.count("0")
        return McNemarTest(self.name, "the baseline", *broken, len(self.lost), len(self.gained), len(self.before))

    @property
    def p_value(self) -> float:
        """Two-sided: probability of a difference this large, in either direction, if neither were the better."""
        return self.test.two_sided_p_value

    def to_table(self) -> dict[str, Any]:
        """As a mapping that JSON can hold; accuracies and their 95 % Wilson intervals are in percent."""
        return {
            "name": self.name,
            "before": percent(self.before),
            "before_interval": _interval(self.before),
            "after": percent(self.after),
            "after_interval": _interval(self.after),
            "difference": self.difference,
            "p_value": self.p_value,
            "lost": list(self.lost),
            "gained": list(self.gained),
        }


@dataclass(frozen=True)
class RecordComparison:
    """Two records compared.

    Args:
        baseline: The record to compare with.
        candidate: The other one.
        changes: Clean images, every attack that both ran, and the worst case over those that count.
        notes: What else differs: attacks that only one of them ran, settings, seeds.
    """

    baseline: Record
    candidate: Record
    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def drops(self, points: float) -> tuple[str, ...]:
        """A sentence for each of clean and worst-case accuracy that fell by more than some points.

        Raises:
            InputError: If ``points`` is not a number from 0 to 100.
        """
        if isinstance(points, bool) or not isinstance(points, (int, float)) or not 0 <= points <= 100:
            raise InputError(f"the largest drop is a number of points from 0 to 100, got {points!r}")
        return tuple(
            f"{what} accuracy fell by {-change.difference:.2f} points, from {percent(change.before):.2f} % to "
            f"{percent(change.after):.2f} % (p = {change.p_value:.2g}); at most {points:g} are allowed"
            for what, change in (("clean", self.changes[0]), ("robust", self.changes[-1]))
            if -change.difference > points
        )

    def to_table(self) -> dict[str, Any]:
        """As a mapping that JSON can hold."""
        about = {"baseline": self.baseline, "candidate": self.candidate}
        models = {key: {"model": record.model, "protocol": record.protocol} for key, record in about.items()}
        subject = {"data": self.baseline.data, "threat": self.baseline.threat}
        return {**models, **subject, "changes": [each.to_table() for each in self.changes], "notes": list(self.notes)}


def compare(baseline: Record, candidate: Record) -> RecordComparison:
    """Compare two records of the same images under the same threat; the models may differ.

    Attacks are matched by name. The worst case is that over the attacks that both records have.

    Raises:
        EvaluationError: If images or threats differ, or the records have no attack in common.

    Example:
        >>> about = {"data": {"n": 4, "sha256": "ab"}, "threat": "Linf:8/255", "run": {}}
        >>> def record(robust):
        ...     attack = AttackRecord("PGD", settings="", robust=robust, accuracy=percent(robust), seconds=1.0)
        ...     return Record(model={"name": "toy"}, clean="1111", clean_accuracy=100.0, attacks=(attack,),
        ...         worst_case=robust, worst_case_accuracy=percent(robust), **about)
        >>> comparison = compare(record("1110"), record("1000"))
        >>> [(change.name, change.difference) for change in comparison.changes]
        [('none (clean)', 0.0), ('PGD', -50.0), ('worst case per image', -50.0)]
    """
    _check(baseline, candidate)
    pairs = _common(baseline, candidate)
    if not pairs:
        names = (", ".join(attack.name for attack in record.attacks) or "none" for record in (baseline, candidate))
        raise EvaluationError(f"the records have no attack in common: {' against '.join(names)}: run the same attacks")
    counted = [(one, other) for one, other in pairs if one.in_worst_case and other.in_worst_case]
    before = worst_case(baseline.clean, [one for one, _ in counted])
    after = worst_case(candidate.clean, [other for _, other in counted])
    changes = (
        Change(CLEAN, baseline.clean, candidate.clean),
        *(Change(one.name, one.robust, other.robust) for one, other in pairs),
        Change(WORST_CASE, before, after),
    )
    return RecordComparison(baseline, candidate, changes, tuple(_notes(baseline, candidate, pairs)))


def _check(baseline: Record, candidate: Record) -> None:
    for what, key in (("images", "sha256"), ("images", "n")):
        one, other = baseline.data.get(key), candidate.data.get(key)
        if one != other:
            shown = (f"{record.data.get('n')} of {record.data.get('name')}" for record in (baseline, candidate))
            raise EvaluationError(
                f"the records are of different {what} ({' and '.join(shown)}), so no image of one can be compared with "
                "one of the other: evaluate both on the same images"
            )
    if baseline.threat != candidate.threat:
        raise EvaluationError(
            f"the records are under different threats, {baseline.threat} and {candidate.threat}: "
            "evaluate both under one"
        )


def _common(baseline: Record, candidate: Record) -> list[tuple[AttackRecord, AttackRecord]]:
    others = {attack.name: attack for attack in candidate.attacks}
    return [(attack, others[attack.name]) for attack in baseline.attacks if attack.name in others]


def _notes(baseline: Record, candidate: Record, pairs: Sequence[tuple[AttackRecord, AttackRecord]]) -> Iterator[str]:
    common = {one.name for one, _ in pairs}
    for record, where in ((baseline, "the baseline"), (candidate, "the other record")):
        alone = [attack.name for attack in record.attacks if attack.name not in common]
        if alone:
            yield f"only in {where}, so not in the worst case here: {', '.join(alone)}"
    for one, other in pairs:
        if any(getattr(one, name) != getattr(other, name) for name in _EQUAL_ATTACK):
            yield f"{one.name} has other settings in the two records"
    for key in _EQUAL_RUN:
        if baseline.run.get(key) != candidate.run.get(key):
            yield f"the records differ in {key}: {baseline.run.get(key)} and {candidate.run.get(key)}"


def _where(ones: str, zeros: str) -> tuple[int, ...]:
    pairs = enumerate(zip(ones, zeros, strict=True))
    return tuple(index for index, (one, other) in pairs if one == "1" and other == "0")


def _interval(verdicts: str) -> list[float]:
    return [round(100 * end, 2) for end in wilson_interval(verdicts.count("1"), len(verdicts))]


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
