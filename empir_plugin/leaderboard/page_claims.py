"""What papers claim beside what is left: the claim, the worst case on the board, and runs under the claim's threat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.page_published import Filed, Published
from empir_plugin.leaderboard.page_text import counted, threat_text


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
