"""The details of one entry: the paper's claims beside the measurements, run records, costs and footnote."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.record import AttackRecord, Record
from empir_plugin.leaderboard.entry import footnote_problem
from empir_plugin.leaderboard.page.entries import STORAGE, TIME, PublishedEntry, RecordFile, number_at
from empir_plugin.leaderboard.page.text import (
    NOT_MEASURED,
    NOT_RECORDED,
    TIMES,
    count_text,
    ratio_text,
    record_text,
    threat_text,
)


@dataclass(frozen=True)
class ClaimComparison:
    """A paper's claim beside the measured worst case.

    Args:
        stem: Of the entry.
        claimed: Robust accuracy in the paper, in percent, as text with two decimals.
        attack: The paper's attack.
        claim_threat: The paper's threat.
        measured: Worst case on the board, in percent, as text with two decimals.
        same_threat: Whether the paper's threat is the board's.
        runs: If it is not: one sentence for each record of the same weights under the paper's threat.
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
        """The claim, in percent."""
        return float(self.claimed)

    @property
    def measured_percent(self) -> float:
        """The measured worst case, in percent."""
        return float(self.measured)


def compare_claims(row: PublishedEntry) -> Iterator[ClaimComparison]:
    """Compare every claim that the paper makes about the model."""
    for claim in row.findings.facts.claims:
        same = claim.threat == row.place.board.threat
        others = () if same else (other for other in row.others if _under(other.record, claim.threat))
        yield ClaimComparison(
            row.place.stem,
            claim.accuracy,
            claim.attack,
            threat_text(str(claim.threat)),
            row.entry.lowest_acc,
            same,
            tuple(map(_result_sentence, others)),
        )


def headline(record: Record) -> str:
    """The headline accuracy of a record, and what it is.

    Example:
        >>> model = {"name": "m", "sha256": "00"}
        >>> headline(Record(model, {"n": 2}, "Linf:0.1", "11", 100.0, (), "11", 100.0, {}))
        '100.00 %, the worst case over 0 attacks'
    """
    number = f"{record.headline_accuracy:.2f} %"
    if record.protocol.get("headline") == "AVERAGE":
        return f"{number}, the average of {count_text(len(record.attacks), 'attack')}"
    counted = sum(attack.in_worst_case for attack in record.attacks)
    return f"{number}, the worst case over {count_text(counted, 'attack')}"


def _result_sentence(other: RecordFile) -> str:
    protocol = other.record.protocol.get("name", "unnamed")
    return f"{headline(other.record)} (protocol {protocol}, {count_text(len(other.record.clean), 'image')})"


def _under(record: Record, threat: Threat) -> bool:
    try:
        return Threat.parse(record.threat) == threat
    except InputError:
        return False


@dataclass(frozen=True)
class Fact:
    """A name and a value.

    Args:
        name: What the value is.
        value: The value as text.
        code: Whether to set it in a monospaced font, as a hash.
    """

    name: str
    value: str
    code: bool = False


@dataclass(frozen=True)
class RunSummary:
    """A run record in short.

    Args:
        path: Relative to the folder of runs.
        summary: Its headline accuracy, in a sentence.
        facts: What is needed to repeat the run.
        attacks: Its attacks, with their settings.
    """

    path: str
    summary: str
    facts: tuple[Fact, ...]
    attacks: tuple[AttackRecord, ...]


def summarize_run(file: RecordFile) -> RunSummary:
    """A record's headline accuracy, key facts and attacks."""
    return RunSummary(file.path, headline(file.record), tuple(_run_facts(file)), file.record.attacks)


def _run_facts(file: RecordFile) -> Iterator[Fact]:
    record = file.record
    yield Fact("Model", record_text(record.model, "name"))
    yield Fact("Weights loaded", record_text(record.model, "weights_loaded"))
    yield Fact("SHA-256 of the model", record_text(record.model, "sha256"), code=True)
    yield Fact("Images", _images(record))
    yield Fact("SHA-256 of the images and labels", record_text(record.data, "sha256"), code=True)
    yield Fact("Threat", threat_text(record.threat))
    yield Fact("Protocol", record_text(record.protocol, "name"))
    yield from (Fact(key.replace("_", " ").capitalize(), record_text(record.run, key)) for key in _RUN)
    yield Fact("Flags of AutoAttack", _flags(record))
    yield Fact("Versions", _versions(record.run))
    yield Fact("SHA-256 of empir-plugin's code", record_text(record.run, "code_sha256"), code=True)
    yield Fact("SHA-256 of this record", file.sha256, code=True)


_RUN = "seed", "device", "threads", "batch_size", "cascade", "finished"


def _images(record: Record) -> str:
    where = " ".join(record_text(record.data, key) for key in ("name", "split"))
    return f"{count_text(len(record.clean), 'image')} of {where} ({record_text(record.data, 'source')})"


def _flags(record: Record) -> str:
    return "; ".join(flag for attack in record.attacks for flag in attack.flags) or "none"


def _versions(run: Mapping[str, Any]) -> str:
    versions = run.get("versions")
    if not isinstance(versions, Mapping) or not versions:
        return NOT_RECORDED
    return ", ".join(f"{package} {version}" for package, version in versions.items())


def costs(row: PublishedEntry) -> tuple[Fact, ...]:
    """The model's costs relative to one full-precision network; "not measured" for those that are missing."""
    overhead = row.entry.overhead
    ratios = (Fact(name, _with_unit(ratio_text(number_at(overhead, *keys)))) for name, *keys in _COSTS)
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
    device, batch, backend = (record_text(measured, key) for key in ("device", "batch_size", "backend"))
    rounds = f"80 % of rounds {ratio_text(low)} to {ratio_text(high)}"
    return f"{ratio_text(middle)} {TIMES} ({rounds}; {device}, batch {batch}, {backend})"


def _text(table: Mapping[str, Any] | None, key: str) -> str:
    return record_text(table, key) if table else NOT_MEASURED


def footnote(row: PublishedEntry) -> Markup:
    """An entry's footnote: as markup if all its tags are allowed ones, else as plain text."""
    text = row.entry.footnote or ""
    return Markup.escape(text) if footnote_problem(text) else Markup(text)
