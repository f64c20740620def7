"""Run records: one evaluation, image by image, with everything needed to repeat it, and how records are merged.

A record is a JSON object in UTF-8 with the fields of :class:`Record`. Verdicts are texts with one character per image,
``1`` or ``0``, in the order of the data set. Accuracies are computed from the verdicts, in percent to two decimals; a
record whose numbers do not follow from its verdicts is refused. Numbers are finite, and no key occurs twice. The keys
of a file, with their types and ranges, are in ``record.schema.json``. ``schema`` is raised when the format changes;
older schemas are still read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from empir_plugin._files.atomic import write_atomically
from empir_plugin._files.json_schema import JsonSchema
from empir_plugin._files.strict_json import JsonKind
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import OFFICIAL, OFFICIAL_FINGERPRINTS
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.tables import record_csv, record_html, record_rows

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

SCHEMA = 2
CUSTOM = "custom"
"""Kind of an attack that does not state one."""


def bits(verdicts: Tensor) -> str:
    """Verdicts ``(N,)`` as text, one character per image.

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


def intersect(verdicts: Iterable[str]) -> str:
    """Verdicts on the same images, combined: 1 where all of them say 1.

    Raises:
        ValueError: If they cover different numbers of images.

    Example:
        >>> intersect(["1101", "1011"])
        '1001'
    """
    return "".join("1" if set(column) == {"1"} else "0" for column in zip(*verdicts, strict=True))


@dataclass(frozen=True)
class PartRecord:
    """Robust accuracy after one part of a suite of attacks.

    Args:
        name: Of the part; the first, ``"clean"``, is before all attacks.
        robust: One character per image: 1 if it was still classified correctly after this part.
        accuracy: Percent of all images with a 1.
    """

    name: str
    robust: str
    accuracy: float

    def __post_init__(self) -> None:
        _check_verdicts(self.name, self.robust, self.accuracy)


@dataclass(frozen=True)
class AttackRecord:
    """Result of one attack.

    Args:
        name: Of the attack.
        kind: What kind of attack it is, such as ``"autoattack-standard"`` or ``"gradient"``; ``"custom"`` for an attack
            that does not say.
        version: Of the algorithm of that kind, from 1; raised when the algorithm changes.
        settings: All of its settings, as text.
        robust: One character per image: 1 if the model classifies the image the attack returned correctly. An image
            that was not attacked has 0: it was misclassified without an attack or, in a cascade, broken before.
        accuracy: Percent of all images with a 1.
        seconds: Time the attack took, including the check of its results, summed over processes.
        flags: Warnings of AutoAttack about the model or the evaluation.
        rules: A sentence: what it attacks, with which labels, which images and which limits.
        threat: What its results were checked against, as text.
        in_worst_case: Whether the worst case includes it.
        parts: Robust accuracy after each part of a suite; empty for other attacks.

    Raises:
        EvaluationError: If the verdicts and numbers contradict each other, or a field has another form.
    """

    name: str
    kind: str = field(default=CUSTOM, kw_only=True)
    version: int = field(default=1, kw_only=True)
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
        if not (isinstance(self.kind, str) and self.kind):
            raise EvaluationError(f"the kind of {self.name} must be a text, got {self.kind!r}: write {CUSTOM!r}")
        if type(self.version) is not int or self.version < 1:
            raise EvaluationError(f"the version of {self.name} must be a whole number from 1, got {self.version!r}")
        for part in self.parts:
            _check_length(part.name, part.robust, len(self.robust))


@dataclass(frozen=True)
class Record:
    """One evaluation: a model on images under a threat.

    Args:
        model: ``name``, ``sha256`` and ``identity`` (see :func:`empir_plugin.evaluation.identity.model_fingerprint`;
            records without ``identity`` have version 1), whether its ``weights_loaded``, and ``checkpoint_sha256`` of
            the file they were loaded from, if the caller named one.
        data: ``name``, ``split``, ``source``, number of images ``n``, ``sha256``, and whether it is ``full_official``.
        threat: As text, such as ``"Linf:8/255"``.
        clean: One character per image: 1 if the model classifies it correctly.
        clean_accuracy: Percent of the images with a 1.
        attacks: In the order they ran.
        worst_case: One character per image: 1 if it is classified correctly and no attack that counts broke it.
        worst_case_accuracy: Percent of the images with a 1.
        run: ``seed``, ``batch_size``, ``shard_size``, ``cascade``, ``device``, ``backend`` (what computed ``verdicts``,
            answered ``queries`` and computed ``gradients``, and the ``reason`` if int8 kernels were not used; in
            records without ``gradients``, int8 was equal up to rounding only), ``batch_dependent`` (for how many
            clean images the output depends on the rest of the batch), ``threads`` per process (every
            number that occurred), ``processes``, time of day ``finished``, ``versions`` of packages and ``code_sha256``
            of this package.
        protocol: ``name``, ``description``, and ``headline``: which number to quote, ``WORST_CASE`` or ``AVERAGE``.
        flags: Warnings about the model, such as outputs that depend on the rest of the batch.
        schema: Version of this format.

    Raises:
        EvaluationError: If verdicts and numbers contradict each other, or a field has another form.
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
    flags: tuple[str, ...] = ()
    schema: int = field(default=SCHEMA, kw_only=True)

    def __post_init__(self) -> None:
        tables = self.model, self.data, self.run, self.protocol
        if not (isinstance(self.threat, str) and all(isinstance(table, dict) for table in tables)):
            raise EvaluationError("model, data, run and protocol must be tables, and threat a text")
        _check_verdicts("the clean images", self.clean, self.clean_accuracy)
        _check_verdicts("the worst case", self.worst_case, self.worst_case_accuracy)
        for name, verdicts in (("data", self.data.get("n")), ("worst case", len(self.worst_case))):
            if verdicts != len(self.clean):
                raise EvaluationError(f"{len(self.clean)} clean verdicts, but {name} speaks of {verdicts} images")
        for attack in self.attacks:
            _check_length(attack.name, attack.robust, len(self.clean))
        if worst_case(self.clean, self.attacks) != self.worst_case:
            raise EvaluationError("the worst case does not follow from the verdicts")

    @property
    def headline_accuracy(self) -> float:
        """The accuracy its protocol quotes, in percent to two decimals."""
        if self.protocol.get("headline") == "AVERAGE" and self.attacks:
            return round(sum(attack.accuracy for attack in self.attacks) / len(self.attacks), 2)
        return self.worst_case_accuracy

    def to_csv(self, path: Path | None = None) -> str:
        """The accuracies as CSV text, one row for each attack; written to a file, too, if there is a path."""
        text = record_csv(self)
        if path is not None:
            write_atomically(path, text.encode())
        return text

    def to_frame(self) -> pandas.DataFrame:
        """The accuracies as a data frame with the columns of :meth:`to_csv`; needs pandas."""
        import pandas as pd

        return pd.DataFrame(record_rows(self)).set_index("attack")

    def plot(self) -> Figure:
        """A bar for each accuracy with its 95 % interval; needs matplotlib.

        Raises:
            CompatibilityError: If matplotlib is not installed.
        """
        from empir_plugin.evaluation.plots import plot_record  # It imports this module.

        return plot_record(self)

    def _repr_html_(self) -> str:
        """The table that a notebook shows."""
        return record_html(self)

    def to_json(self) -> str:
        """The record as JSON text.

        Raises:
            EvaluationError: If a number is NaN or infinite, or a value has no JSON form.
        """
        return _KIND.text(asdict(self))

    def write(self, path: Path) -> None:
        """Write the record atomically.

        Raises:
            EvaluationError: If it cannot be written.
        """
        _KIND.write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record back, of this schema or an older one.

        Raises:
            EvaluationError: If the file is missing, is not a record, has an unknown schema, or contradicts itself.
        """
        return _KIND.read(path, cls.from_table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Record:
        """The record of a JSON object of the current schema.

        Raises:
            EvaluationError: If a key is missing, unknown or not what the schema says, or the record contradicts itself;
                the message names the keys.
        """
        if wrong := list(_FORMAT.problems(table)):
            more = f" (and {len(wrong) - _SHOWN} more)" if len(wrong) > _SHOWN else ""
            raise EvaluationError("; ".join(wrong[:_SHOWN]) + more)
        attacks, flags = tuple(map(_parse_attack, table["attacks"])), tuple(table.get("flags", ()))
        record = cls(**{**table, "attacks": attacks, "flags": flags})
        for sentence in _contradictions(record):
            raise EvaluationError(sentence)
        return record


_FORMAT = JsonSchema("empir_plugin.evaluation", "record.schema.json")
_SHOWN = 3


def _parse_attack(row: Mapping[str, Any]) -> AttackRecord:
    parts = tuple(PartRecord(**part) for part in row["parts"])
    return AttackRecord(**{**row, "flags": tuple(row["flags"]), "parts": parts})


def _contradictions(record: Record) -> Iterator[str]:
    """What cannot be true in a record that an evaluation wrote, beyond the numbers that every record checks."""
    data, budget = record.data, _budget(record.threat)
    official = OFFICIAL_FINGERPRINTS.get((data["name"], data["split"]))
    if official is None and data["full_official"] and data["source"] != OFFICIAL:
        yield f"data.full_official says that the images are a full official set, data.source {data['source']!r}"
    if official is not None and data["full_official"] is not (data["sha256"] == official):
        is_not = "" if data["full_official"] else "not "
        yield f"data.full_official says that the images are {is_not}the full {data['name']}, data.sha256 the opposite"
    if (unstable := record.run.get("batch_dependent", 0)) > data["n"]:
        yield f"run.batch_dependent counts {unstable} of {data['n']} images"
    names = [attack.name for attack in record.attacks]
    yield from (f"two attacks are named {name}" for name in dict.fromkeys(names) if names.count(name) > 1)
    for attack in record.attacks:
        own = _budget(attack.threat or record.threat)
        counts = own == budget or (own.norm == budget.norm and own.eps <= budget.eps)
        if attack.in_worst_case and not counts:
            yield f"{attack.name} is in the worst case under {record.threat}, and was checked against {attack.threat}"
        yield from _growing_parts(attack)


def _growing_parts(attack: AttackRecord) -> Iterator[str]:
    """Parts run one after the other, each on what the parts before it left."""
    for before, after in pairwise(attack.parts):
        if intersect((before.robust, after.robust)) != after.robust:
            yield f"in {attack.name}, {after.name} finds images robust that {before.name} broke before it"


def _budget(threat: str) -> Threat:
    """A threat as text; corruptions, which have none, as a budget without a bound."""
    try:
        return Threat.parse("L2:inf" if threat == _CORRUPTIONS else threat)
    except InputError as error:
        raise EvaluationError(f"{threat!r} is no threat: {error}") from error


_CORRUPTIONS = "corruptions"


def _check_verdicts(name: str, verdicts: str, accuracy: float) -> None:
    if not verdicts or not set(verdicts) <= {"0", "1"}:
        raise EvaluationError(f"the verdicts of {name} must be a 0 or 1 for each image")
    expected = percent(verdicts)
    if accuracy != expected:
        raise EvaluationError(f"the verdicts of {name} make {expected} %, the record says {accuracy}")


def _check_length(name: str, verdicts: str, n: int) -> None:
    if len(verdicts) != n:
        raise EvaluationError(f"{name} has {len(verdicts)} verdicts for {n} images")


# Schema 1 states no kind of attack: it follows from the text of the settings.
_STANDARD_AUTOATTACK = re.compile(
    r"AutoAttackSuite\(version='standard', attacks=\(\), surrogate=Plain\(\), batch_size=\d+, queries=5000\)"
)
_KINDS_BY_CLASS = {
    "AutoAttackSuite": "autoattack",
    "GradientAttack": "gradient",
    "CarliniWagner": "carlini-wagner",
    "Transfer": "transfer",
    "OnMember": "on-member",
}


def _upgrade_schema_1(table: Mapping[str, Any]) -> dict[str, Any]:
    attacks = [{**row, "kind": _kind_of_settings(row["settings"]), "version": 1} for row in table["attacks"]]
    return {**table, "attacks": attacks, "schema": 2}


def _kind_of_settings(settings: str) -> str:
    if _STANDARD_AUTOATTACK.fullmatch(settings):
        return "autoattack-standard"
    return _KINDS_BY_CLASS.get(settings.partition("(")[0], CUSTOM)


_KIND = JsonKind("a run record", EvaluationError, SCHEMA, upgrades={1: _upgrade_schema_1})


def parse_record(table: Mapping[str, Any]) -> Record:
    """The record of a JSON object of the current schema.

    Raises:
        EvaluationError: If it is not a record, or contradicts itself.
    """
    try:
        return Record.from_table(table)
    except EvaluationError as error:
        raise EvaluationError(f"this is not a run record: {error}") from error


def worst_case(clean: str, attacks: Iterable[AttackRecord]) -> str:
    """One character per image: 1 if it is classified correctly and no attack that counts broke it."""
    return intersect((clean, *(attack.robust for attack in attacks if attack.in_worst_case)))


def common_worst_case(records: Iterable[Record]) -> str:
    """The worst case over several records of one model on the same images.

    Raises:
        ValueError: If the records cover different numbers of images.
    """
    return intersect(record.worst_case for record in records)


_SHARED = ("seed", "batch_size", "shard_size", "cascade", "device", "backend", "versions", "code_sha256")
"""Fields of ``run`` that must be equal in records that are merged."""


def merge_records(records: Sequence[Record]) -> Record:
    """One record with the attacks of all; its worst case is, per image, the worst case over all of them.

    Without a cascade it is the record of one evaluation with all these attacks.

    Args:
        records: At least one. An attack that occurs in several must have the same result in each.

    Raises:
        EvaluationError: If the records are of different models, images, threats or settings, or two attacks have the
            same name and different results.

    Example:
        >>> about = {"model": {"name": "toy"}, "data": {"n": 2}, "threat": "Linf:8/255", "run": {}}
        >>> attacks = [AttackRecord(name, "", robust, 50.0, 1.0) for name, robust in (("FGSM", "10"), ("PGD", "01"))]
        >>> records = [Record(clean="11", clean_accuracy=100.0, attacks=(attack,), worst_case=attack.robust,
        ...     worst_case_accuracy=50.0, **about) for attack in attacks]
        >>> merge_records(records).worst_case
        '00'
    """
    first = records[0]
    for other in records:
        if _subject(first) != _subject(other):
            names = f"{first.model.get('name')} and {other.model.get('name')}"
            fields = "model, images, threat, clean verdicts, protocol or settings"
            raise EvaluationError(f"records of {names} differ in {fields}: they have no common worst case")
    attacks = {attack.name: attack for record in records for attack in record.attacks}
    for attack in (attack for record in records for attack in record.attacks):
        if not _same_result(attack, attacks[attack.name]):
            raise EvaluationError(f"two attacks named {attack.name} differ: give them different names")
    worst = worst_case(first.clean, attacks.values())
    run = {**first.run, **_merge_runs([record.run for record in records])}
    accuracy = percent(worst)
    return replace(first, attacks=tuple(attacks.values()), worst_case=worst, worst_case_accuracy=accuracy, run=run)


def merge_compatible(records: Iterable[Record]) -> tuple[Record, ...]:
    """Merge the records that can be merged; the result keeps the order in which each group begins."""
    groups: list[Record] = []
    for record in records:
        for index, group in enumerate(groups):
            if _subject(group) == _subject(record) and not _conflict(group, record):
                groups[index] = merge_records((group, record))
                break
        else:
            groups.append(record)
    return tuple(groups)


def _subject(record: Record) -> tuple[object, ...]:
    run = tuple(record.run.get(key) for key in _SHARED)
    model = {key: value for key, value in record.model.items() if key != "checkpoint_sha256"}  # of the file only
    return model, record.data, record.threat, record.clean, record.protocol, run


def _conflict(one: Record, other: Record) -> bool:
    by_name = {attack.name: attack for attack in one.attacks}
    return any(each.name in by_name and not _same_result(each, by_name[each.name]) for each in other.attacks)


def _same_result(one: AttackRecord, other: AttackRecord) -> bool:
    return replace(one, seconds=0.0) == replace(other, seconds=0.0)


def _merge_runs(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The fields of ``run`` that may differ between merged records."""
    threads = {number for run in runs for number in run.get("threads", ())}
    finished = [run["finished"] for run in runs if "finished" in run]
    return {"threads": sorted(threads), **({"finished": max(finished)} if finished else {})}
