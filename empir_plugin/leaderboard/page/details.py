"""What is told of one entry: what each attack left, the runs, the audit, the costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.leaderboard.entry import footnote_problem
from empir_plugin.leaderboard.page.published import Filed, Published
from empir_plugin.leaderboard.page.rows import (
    NOT_MEASURED,
    NOT_RECORDED,
    STORAGE,
    TIME,
    TIMES,
    counted,
    number_at,
    recorded,
    threat_text,
    times,
)


@dataclass(frozen=True)
class Compared:
    """One claim beside one measurement.

    Args:
        stem: Of the entry.
        claimed: Percent the paper publishes, as text with two decimals.
        attack: The paper's.
        claim_threat: The threat of the claim.
        measured: Percent left in the worst case on the board, as text with two decimals.
        same_threat: Whether both are under the same threat.
        runs: Sentences: records of the same weights under the claim's threat, where the board's is another.
    """

    stem: str
    claimed: str
    attack: str
    claim_threat: str
    measured: str
    same_threat: bool
    runs: tuple[str, ...]

    @property
    def claimed_percent(self) -> float:
        """The claim as a number."""
        return float(self.claimed)

    @property
    def measured_percent(self) -> float:
        """The measurement as a number."""
        return float(self.measured)


def compared(row: Published) -> Iterator[Compared]:
    """Every claim of a paper about a model."""
    for claim in row.findings.facts.claims:
        same = claim.threat == row.place.board.threat
        runs = () if same else tuple(_sentence(other) for other in row.others if _under(other.record, claim.threat))
        yield Compared(
            row.place.stem,
            claim.accuracy,
            claim.attack,
            threat_text(str(claim.threat)),
            row.entry.lowest_acc,
            same,
            runs,
        )


def headline(record: Record) -> str:
    """The number a record is quoted by, and which number that is.

    Example:
        >>> model = {"name": "m", "sha256": "00"}
        >>> headline(Record(model, {"n": 2}, "Linf:0.1", "11", 100.0, (), "11", 100.0, {}))
        '100.00 %, the worst case over 0 attacks'
    """
    number = f"{record.headline_accuracy:.2f} %"
    if record.protocol.get("headline") == "AVERAGE":
        return f"{number}, the average of {counted(len(record.attacks), 'attack')}"
    return f"{number}, the worst case over {counted(sum(attack.in_worst_case for attack in record.attacks), 'attack')}"


def _sentence(other: Filed) -> str:
    protocol = other.record.protocol.get("name", "unnamed")
    return f"{headline(other.record)} (protocol {protocol}, {counted(len(other.record.clean), 'image')})"


def _under(record: Record, threat: Threat) -> bool:
    try:
        return Threat.parse(record.threat) == threat
    except InputError:
        return False


@dataclass(frozen=True)
class Bar:
    """What is left after something, as a bar.

    Args:
        name: Of what.
        percent: Of all images.
        kind: ``clean``, ``attack``, ``part`` (of a suite), ``apart`` (not in the worst case) or ``worst``.
        note: In words, where the name does not say it all.
        flags: Warnings of AutoAttack.
    """

    name: str
    percent: float
    kind: str
    note: str = ""
    flags: tuple[str, ...] = ()


def bars(row: Published) -> Iterator[Bar]:
    """Clean accuracy, every attack of every record, and the worst case over all of them."""
    yield Bar("No attack", float(row.entry.clean_acc), "clean")
    for filed in row.records:
        for index, attack in enumerate(filed.record.attacks):
            yield from _bars(attack, met_the_rest=index > 0 and bool(filed.record.run.get("cascade")))
    yield Bar(f"Worst case over {counted(row.measured.attacks, 'attack')}", row.lowest, "worst")


def _bars(attack: AttackRecord, *, met_the_rest: bool) -> Iterator[Bar]:
    kind, note = ("attack", "") if attack.in_worst_case else ("apart", f"{threat_text(attack.threat)}; not counted")
    if met_the_rest:
        note = "; ".join(filter(None, (note, "left after all attacks so far")))
    yield Bar(attack.name, attack.accuracy, kind, note, attack.flags)
    yield from (Bar(f"after {part.name}", part.accuracy, "part") for part in attack.parts if part.name != "clean")


@dataclass(frozen=True)
class Fact:
    """A name and what stands beside it.

    Args:
        name: Of what.
        value: As text.
        code: Whether it is for machines: a hash, a file.
    """

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class Run:
    """One run record.

    Args:
        path: Below the folder of runs.
        summary: Its number, in a sentence.
        facts: What is needed to make the same run again.
        attacks: Names and settings of its attacks.
    """

    path: str
    summary: str
    facts: tuple[Fact, ...]
    attacks: tuple[AttackRecord, ...]


def run(filed: Filed) -> Run:
    """A record's key facts."""
    return Run(filed.path, headline(filed.record), tuple(_facts(filed)), filed.record.attacks)


def _facts(filed: Filed) -> Iterator[Fact]:
    record = filed.record
    yield Fact("Model", recorded(record.model, "name"))
    yield Fact("Weights loaded", recorded(record.model, "weights_loaded"))
    yield Fact("SHA-256 of the model", recorded(record.model, "sha256"), code=True)
    yield Fact("Images", _images(record))
    yield Fact("SHA-256 of the images and labels", recorded(record.data, "sha256"), code=True)
    yield Fact("Threat", threat_text(record.threat))
    yield Fact("Protocol", recorded(record.protocol, "name"))
    yield from (Fact(key.replace("_", " ").capitalize(), recorded(record.run, key)) for key in _RUN)
    yield Fact("Flags of AutoAttack", _flags(record))
    yield Fact("Versions", _versions(record.run))
    yield Fact("SHA-256 of empir-plugin's code", recorded(record.run, "code_sha256"), code=True)
    yield Fact("SHA-256 of this record", filed.sha256, code=True)


_RUN = "seed", "device", "threads", "batch_size", "cascade", "finished"


def _images(record: Record) -> str:
    where = " ".join(recorded(record.data, key) for key in ("name", "split"))
    return f"{counted(len(record.clean), 'image')} of {where} ({recorded(record.data, 'source')})"


def _flags(record: Record) -> str:
    return "; ".join(flag for attack in record.attacks for flag in attack.flags) or "none"


def _versions(run: Mapping[str, Any]) -> str:
    versions = run.get("versions")
    if not isinstance(versions, Mapping) or not versions:
        return NOT_RECORDED
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def costs(row: Published) -> tuple[Fact, ...]:
    """What the model costs relative to one full-precision network; each that was not measured says so."""
    overhead = row.entry.overhead
    ratios = (Fact(name, _with_unit(times(number_at(overhead, *keys)))) for name, *keys in _COSTS)
    return (*ratios, Fact("Latency, measured", _latency(overhead)), Fact("Relative to", _text(overhead, "baseline")))


_COSTS = (
    ("Weight file", *STORAGE),
    ("Storage, Equation 6, ideal", "eq6", "storage", "ideal"),
    ("Storage, Equation 6, as built", "eq6", "storage", "as_built"),
    ("Time, Equation 6, ideal", "eq6", "time", "ideal"),
    ("Time, Equation 6, as built", *TIME),
    ("Bit operations, as built", "bops_ratio", "as_built"),
    ("Bit operations with sums, as built", "bops_with_sums_ratio"),
)


def _with_unit(ratio: str) -> str:
    return ratio if ratio == NOT_MEASURED else f"{ratio} {TIMES}"


def _latency(overhead: Mapping[str, Any] | None) -> str:
    measured = overhead.get("measured") if overhead else None
    low, middle, high = (number_at(measured, "ratio", key) for key in ("p10", "median", "p90"))
    if low is None or middle is None or high is None or not isinstance(measured, Mapping):
        return NOT_MEASURED
    where = f"{recorded(measured, 'device')}, batch {recorded(measured, 'batch_size')}, {recorded(measured, 'backend')}"
    return f"{times(middle)} {TIMES} (80 % of rounds {times(low)} to {times(high)}; {where})"


def _text(table: Mapping[str, Any] | None, key: str) -> str:
    return recorded(table, key) if table else NOT_MEASURED


def footnote(row: Published) -> Markup:
    """An entry's footnote: its few tags as markup once they are found to be those allowed, else as plain text."""
    text = row.entry.footnote or ""
    return Markup.escape(text) if footnote_problem(text) else Markup(text)
