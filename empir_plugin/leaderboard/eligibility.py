"""Records that an entry should rest on and does not: a worst case is one over all attacks known."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import OFFICIAL_FINGERPRINTS
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.record import AttackRecord, Record, common_worst_case, percent
from empir_plugin.leaderboard.tree import Board, Tree
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards

# AutoAttack as RobustBench runs it, on the model's own output: other batch sizes are other random numbers, no more.
_STANDARD = re.compile(
    r"AutoAttackSuite\(version='standard', attacks=\(\), surrogate=Plain\(\), batch_size=\d+, queries=5000\)"
)


@dataclass(frozen=True)
class Measured:
    """What experiments say of a model.

    Args:
        clean: Percent of the test set it classifies correctly.
        autoattack: Percent that withstands standard AutoAttack.
        external: Percent that withstands every attack in the records, per image, if that is less; None if not.
        attacks: How many different attacks in the records count.
        flags: AutoAttack's warnings about its own number.
        masked: The checks of an audit that found masked gradients.
    """

    clean: float
    autoattack: float
    external: float | None
    attacks: int
    flags: tuple[str, ...]
    masked: tuple[str, ...]

    @property
    def unreliable(self) -> bool:
        """Whether AutoAttack's number is likely to be too high."""
        return bool(self.flags or self.masked)


def measure(model: str, board: Board, records: Sequence[Record], audit: AuditReport | None = None) -> Measured:
    """The numbers of an entry, from records of one model on one board.

    Args:
        model: Name for ``load_model``.
        board: Where the entry is to stand.
        records: One at least has standard AutoAttack; of several the lowest counts.
        audit: For gradient masking.

    Raises:
        EvaluationError: If a record may not become an entry: its weights were not loaded, or are of another model; it
            covers a part of the test set; its radius is not the board's; no record has standard AutoAttack.
    """
    for record in records:
        require_publishable(model, board, record)
    _require_one_subject(records)
    if audit is not None:
        _require_audit_of(records[0], board, audit)
    runs = [(record, attack) for record in records for attack in record.attacks if _is_standard(record, attack)]
    if not runs:
        raise EvaluationError(
            f"no record of {model} has standard AutoAttack, alone or first in a cascade, which an entry rests on: "
            "run `empir evaluate --protocol standard`"
        )
    record, lowest = min(runs, key=lambda run: run[1].robust.count("1"))
    withstood = common_worst_case(records)
    return Measured(
        clean=record.clean_accuracy,
        autoattack=lowest.accuracy,
        external=percent(withstood) if percent(withstood) < lowest.accuracy else None,
        attacks=len({(attack.settings, attack.threat) for attack in _counting(records)}),
        flags=tuple(dict.fromkeys(flag for _, attack in runs for flag in attack.flags)),
        masked=tuple(finding.name for finding in audit.failed) if audit else (),
    )


def require_publishable(model: str, board: Board, record: Record) -> None:
    """Check that a record may be part of an entry of that model on that board.

    Raises:
        EvaluationError: If it may not; the sentence says why.
    """
    if record.model.get("name") != model:
        raise EvaluationError(f"the record is of {record.model.get('name')!r}, the entry of {model!r}: take its own")
    if record.model.get("weights_loaded") is not True:
        raise EvaluationError(f"the record of {model} was made without its weights: load them and run it again")
    shipped = shipped_fingerprint(model)
    if shipped and record.model.get("sha256") != shipped:
        raise EvaluationError(f"the record is of another network than the {model} of this release: run it again")
    if not covers(board, record):
        raise EvaluationError(
            f"the record covers {record.data['n']:,} images of {record.data.get('name')} "
            f"({record.data.get('split')}, {record.data.get('source')}), an entry on {board} needs the official "
            f"{board.n:,} test images: keep it in leaderboard/runs"
        )
    queries = (record.run.get("backend") or {}).get("queries", "float32")
    if queries != "float32":
        raise EvaluationError(
            f"in the record {queries} answered clean images and queries, and an entry rests on the model itself alone: "
            "evaluate without --int8"
        )
    _require_threat(board, record)


def covers(board: Board, record: Record) -> bool:
    """Whether a record is of the whole official test set."""
    data = record.data
    official = OFFICIAL_FINGERPRINTS.get((board.dataset, "test"), data.get("sha256"))
    expected = {"name": board.dataset, "split": "test", "n": board.n, "sha256": official, "full_official": True}
    return {key: data.get(key) for key in expected} == expected


def _require_threat(board: Board, record: Record) -> None:
    """Radii as numbers: 0.5 and 127.5/255 are the same."""
    texts = [record.threat, *(attack.threat or record.threat for attack in record.attacks if attack.in_worst_case)]
    for text in texts:
        if not _same(text, board.threat):
            raise EvaluationError(
                f"the record has attacks under {text}, entries on {board} are under {board.threat}: "
                "keep it in leaderboard/runs, and attack under the board's radius for an entry"
            )


def _same(text: str, threat: Threat) -> bool:
    try:
        return Threat.parse(text) == threat
    except InputError:
        return False


def _require_one_subject(records: Sequence[Record]) -> None:
    subjects = [(record.model.get("sha256"), record.data.get("sha256")) for record in records]
    for what, hashes in zip(("weights", "images"), zip(*subjects, strict=True), strict=True):
        if len(set(hashes)) > 1:
            raise EvaluationError(f"the records are of different {what}: an entry takes those of one model")


def _require_audit_of(record: Record, board: Board, audit: AuditReport) -> None:
    """Its images are fewer: some two hundred show masking, so that only their data set has to agree."""
    if audit.model["sha256"] != record.model.get("sha256"):
        raise EvaluationError("the audit is of other weights than the records: audit this model")
    images = audit.data["name"], audit.data.get("split")
    if images != (board.dataset, "test") or not _same(audit.threat, board.threat):
        found = f"{' '.join(map(str, images))} under {audit.threat}"
        raise EvaluationError(f"the audit is on {found}, not on {board.dataset} test under {board.threat}: audit there")


def _is_standard(record: Record, attack: AttackRecord) -> bool:
    # Later in a cascade it would have met only what the attacks before it left.
    whole = not record.run.get("cascade") or attack is record.attacks[0]
    return whole and attack.in_worst_case and bool(_STANDARD.fullmatch(attack.settings))


def _counting(records: Sequence[Record]) -> Iterator[AttackRecord]:
    return (attack for record in records for attack in record.attacks if attack.in_worst_case)


@cache
def shipped_fingerprint(model: str) -> str:
    """Fingerprint of the weights that travel with this package under a model's name; empty if none do."""
    card = cards().get(model)
    return model_fingerprint(build_model(card)) if card is not None and card.has_weights else ""


def in_percent(accuracy: float) -> str:
    """An accuracy in percent as RobustBench writes it.

    Example:
        >>> in_percent(1.4), in_percent(100.0)
        ('1.40', '100.00')
    """
    return f"{accuracy:.2f}"


def require_overhead(overhead: Any, model_sha256: str) -> Mapping[str, Any]:
    """Check that what a model costs was measured on the weights an entry is of.

    Raises:
        EvaluationError: If it is of other weights, or does not say of which.
        InputError: If it is no table.
    """
    if not isinstance(overhead, Mapping) or not overhead:
        raise InputError(f"overhead is a JSON object with keys, got a {type(overhead).__name__}: measure it first")
    if "model_sha256" not in overhead:
        raise EvaluationError("the overhead does not say of which weights it is (model_sha256): measure it again")
    if overhead["model_sha256"] != model_sha256:
        raise EvaluationError("the overhead is of other weights than the records: measure this model")
    return overhead


def left_out(tree: Tree, model: str, board: Board, named: Collection[str]) -> Iterator[str]:
    """Records among the runs that may be part of an entry and are not among its sources.

    Args:
        tree: The leaderboard.
        model: Name for ``load_model``.
        board: The entry stands on.
        named: Its sources, as paths below the folder of runs.
    """
    for path in sorted(tree.runs.rglob("*.json")):
        name = path.relative_to(tree.runs).as_posix()
        if name not in named and not path.is_relative_to(tree.evidence) and _publishable(path, model, board):
            yield name


def _publishable(path: Path, model: str, board: Board) -> bool:
    try:
        require_publishable(model, board, Record.read(path))
    except EvaluationError:  # another experiment, or no record at all
        return False
    return True
