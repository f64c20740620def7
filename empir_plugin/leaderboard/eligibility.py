"""Which results may become an entry of a leaderboard, and which numbers follow from them.

An entry is the worst case over all attacks known. So it rests on all records of its model that are eligible, and on
nothing else: every rule, with the reason for a refusal, is here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.corruptions import CORRUPTIONS, SEVERITIES
from empir_plugin.data.image_set import OFFICIAL, OFFICIAL_FINGERPRINTS
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.corruptions import KIND, THREAT, mean_accuracies
from empir_plugin.evaluation.identity import IDENTITY, ModelIdentity, model_fingerprint
from empir_plugin.evaluation.overhead.report import IMAGE_SHAPES, Overhead
from empir_plugin.evaluation.overhead.report import overhead as count_overhead
from empir_plugin.evaluation.overhead.verify import compare_counts, parse_overhead
from empir_plugin.evaluation.record import AttackRecord, Record, common_worst_case, percent
from empir_plugin.leaderboard.tree import Board, Tree
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards

_STANDARD = "autoattack-standard"
_AGAIN = "with this release of empir-plugin"


_UNSTABLE_SHARE = 0.01
"""Share of clean images whose output may change with the batch, as rounding can make a decision change."""


@dataclass(frozen=True)
class Numbers:
    """The numbers of an entry, and what makes them doubtful.

    Args:
        clean: Percent of the test set that the model classifies correctly.
        autoattack: Robust accuracy under standard AutoAttack, in percent; on a board of corruptions the mean accuracy
            under them.
        external: Robust accuracy over all attacks of the records, worst case per image, in percent, if that is lower;
            else None.
        attacks: Number of different attacks in the worst case.
        flags: AutoAttack's warnings about its own number.
        masked: Names of the checks of an audit that found gradient masking.
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


def measure(model: str, board: Board, records: Sequence[Record], audit: AuditReport | None = None) -> Numbers:
    """The numbers of an entry, from the records of one model on one board.

    Args:
        model: Name for ``load_model``.
        board: Of the entry.
        records: At least one has standard AutoAttack; if several have, the lowest accuracy counts.
        audit: For gradient masking.

    Raises:
        EvaluationError: If a record is not eligible (see :func:`require_eligible`), if the records or the audit are of
            different models, or if no record has standard AutoAttack.
    """
    for record in records:
        require_eligible(model, board, record)
    _require_one_subject(model, records)
    if board.threat is None:
        return _measure_corruptions(records, audit)
    if audit is not None:
        _require_same_audit_subject(model, records[0], board, audit)
    runs = [(record, attack) for record in records for attack in record.attacks if _is_standard(record, attack)]
    if not runs:
        raise EvaluationError(
            f"no record of {model} has standard AutoAttack, alone or first in a cascade, which every entry needs: "
            "run `empir evaluate --protocol standard`"
        )
    record, lowest = min(runs, key=lambda run: run[1].robust.count("1"))
    worst = percent(common_worst_case(records))
    counted = (attack for record in records for attack in record.attacks if attack.in_worst_case)
    return Numbers(
        clean=record.clean_accuracy,
        autoattack=lowest.accuracy,
        external=worst if worst < lowest.accuracy else None,
        attacks=len({(attack.settings, attack.threat) for attack in counted}),
        flags=tuple(dict.fromkeys(flag for _, attack in runs for flag in attack.flags)),
        masked=tuple(finding.name for finding in audit.failed) if audit else (),
    )


def _measure_corruptions(records: Sequence[Record], audit: AuditReport | None) -> Numbers:
    if audit is not None:
        raise EvaluationError("an audit is about attacks, and no corruption is one: leave it out")
    lowest = min(records, key=lambda record: record.headline_accuracy)
    return Numbers(lowest.clean_accuracy, lowest.headline_accuracy, None, len(mean_accuracies(lowest)), (), ())


def _is_standard(record: Record, attack: AttackRecord) -> bool:
    # Later in a cascade it attacks only the images that survived the attacks before it.
    attacks_all = not record.run.get("cascade") or attack is record.attacks[0]
    return attacks_all and attack.in_worst_case and attack.kind == _STANDARD


def require_eligible(model: str, board: Board, record: Record) -> None:
    """Check that a record may be part of an entry.

    Args:
        model: Name for ``load_model``.
        board: Of the entry.
        record: Of an evaluation.

    Raises:
        EvaluationError: If the record is of another model, its weights were not loaded, it does not cover the full
            official test set, queries and verdicts came from different arithmetic, gradients were rounded to bfloat16,
            or its threat is not the board's.
    """
    if record.model.get("name") != model:
        raise EvaluationError(f"the record is of {record.model.get('name')!r}, the entry of {model!r}: use its own")
    if record.model.get("weights_loaded") is not True:
        raise EvaluationError(f"the record of {model} was made without its weights: load them and evaluate again")
    _require_shipped_model(model, record)
    if not covers_test_set(board, record):
        raise EvaluationError(
            f"the record covers {record.data['n']:,} images of {record.data.get('name')} "
            f"({record.data.get('split')}, {record.data.get('source')}), an entry on {board} needs the official "
            f"{board.n:,} test images: evaluate on all of them (--data-dir); other records are kept in the tree's runs"
        )
    backend = record.run.get("backend") or {}
    queries, verdicts = backend.get("queries"), backend.get("verdicts")
    if queries != verdicts:
        raise EvaluationError(
            f"in the record, queries were answered in {queries} and verdicts given in {verdicts}, which an earlier "
            "version did where the two agreed up to rounding only: evaluate again"
        )
    if "bf16" in backend.get("gradients", ""):
        raise EvaluationError(
            f"in the record, gradients were computed in {backend['gradients']}, which may miss adversarial images: "
            "evaluate without --gradients bf16"
        )
    unstable = record.run.get("batch_dependent", 0)
    if unstable > _UNSTABLE_SHARE * record.data["n"]:
        raise EvaluationError(
            f"in the record, the output for {unstable:,} of {record.data['n']:,} clean images depends on the rest of "
            "the batch, so its accuracies are not those of the model: make the model decide image by image"
        )
    _require_threat(board, record)


def covers_test_set(board: Board, record: Record) -> bool:
    """Whether a record is of the full official test set."""
    data = record.data
    official = OFFICIAL_FINGERPRINTS.get((board.dataset, "test"), data.get("sha256"))
    expected = {"name": board.dataset, "split": "test", "n": board.n, "sha256": official, "full_official": True}
    return {key: data.get(key) for key in expected} == expected


def _require_threat(board: Board, record: Record) -> None:
    """Radii are compared as numbers: 0.5 and 127.5/255 are the same."""
    if board.threat is None:
        _require_corruptions(board, record)
        return
    threats = [record.threat, *(attack.threat or record.threat for attack in record.attacks if attack.in_worst_case)]
    for threat in threats:
        if not _is_threat(threat, board.threat):
            raise EvaluationError(
                f"the record has attacks under {threat}, entries on {board} are under {board.threat}: "
                "keep it in the tree's runs, and attack under the board's threat for an entry"
            )


def _require_corruptions(board: Board, record: Record) -> None:
    if record.threat != THREAT:
        raise EvaluationError(
            f"the record is under {record.threat}, entries on {board} are under {THREAT}: "
            f"run `empir evaluate --threat {THREAT}`"
        )
    images = record.data.get("corruptions") or {}
    if images.get("source") != OFFICIAL:
        raise EvaluationError(
            f"the record is on {images.get('name')} ({images.get('source')}), an entry on {board} needs the published "
            "corrupted images: evaluate on them (--data-dir); other records are kept in the tree's runs"
        )
    expected = {f"{name} {severity}" for name in CORRUPTIONS for severity in SEVERITIES}
    if {attack.name for attack in record.attacks if attack.kind == KIND} != expected:
        raise EvaluationError(f"the record does not have each of {len(expected)} corruptions: evaluate on all of them")


def _is_threat(text: str, threat: Threat) -> bool:
    try:
        return Threat.parse(text) == threat
    except InputError:
        return False


@cache
def shipped_fingerprint(model: str, version: int = IDENTITY) -> str:
    """Hash of the model that this package ships under a name; empty if it ships no weights.

    Args:
        model: Name for ``load_model``.
        version: Of the identity: see :func:`empir_plugin.evaluation.identity.model_fingerprint`.

    Raises:
        InputError: If the version is unknown.
    """
    card = cards().get(model)
    return model_fingerprint(build_model(card), version) if card is not None and card.has_weights else ""


def _require_shipped_model(model: str, record: Record) -> None:
    identity = ModelIdentity.of_table(record.model)
    try:
        shipped = shipped_fingerprint(model, identity.version)
    except (InputError, TypeError) as error:
        raise EvaluationError(f"the record of {model} has an unknown identity ({error}): evaluate {_AGAIN}") from error
    if shipped and identity.sha256 != shipped:
        raise EvaluationError(f"the record is of another network than the {model} of this release: evaluate it again")


def _require_one_subject(model: str, records: Sequence[Record]) -> None:
    first = records[0]
    for record in records:
        if not is_same_model(model, _identity(first), _identity(record)):
            raise EvaluationError(
                f"the records are of different weights, or state them in different ways, but an entry of {model} is "
                f"about one model: evaluate it {_AGAIN}"
            )
        if record.data.get("sha256") != first.data.get("sha256"):
            raise EvaluationError("the records are of different images, but an entry is about one test set: drop some")


def _identity(result: Record | AuditReport) -> ModelIdentity:
    return ModelIdentity.of_table(result.model)


def is_same_model(model: str, one: ModelIdentity, other: ModelIdentity) -> bool:
    """Whether two results are of the same model.

    Hashes of different versions say so only if each is the shipped model's hash of its own version.

    Args:
        model: Name for ``load_model``.
        one: Identity in a result.
        other: Identity in another result.
    """
    try:
        return one.is_same(other, partial(shipped_fingerprint, model))
    except (InputError, TypeError):  # A version of a later release, or no number at all.
        return False


def _require_same_audit_subject(model: str, record: Record, board: Board, audit: AuditReport) -> None:
    """An audit needs few images, so that only its data set has to agree."""
    if not is_same_model(model, _identity(record), _identity(audit)):
        raise EvaluationError(f"the audit is of other weights than the records: audit {model} {_AGAIN}")
    images = audit.data["name"], audit.data.get("split")
    if images != (board.dataset, "test") or board.threat is None or not _is_threat(audit.threat, board.threat):
        got = f"{' '.join(map(str, images))} under {audit.threat}"
        raise EvaluationError(f"the audit is on {got}, not on {board.dataset} test under {board.threat}: audit there")


def require_same_overhead_subject(overhead: Any, record: Record) -> Mapping[str, Any]:
    """Check that an overhead is a report, that its numbers are right, and that it is of the model of a record.

    Its numbers are computed again from the layers it lists and, for a model that this package ships, from the model.

    Args:
        overhead: What an overhead file holds.
        record: Of the entry.

    Raises:
        EvaluationError: If it is of other weights or images, does not say of which, or has a number that is wrong.
        InputError: If it is not a table, or a key is missing, unknown or of the wrong type.
    """
    if not isinstance(overhead, Mapping) or not overhead:
        raise InputError(f"overhead must be a JSON object with keys, got a {type(overhead).__name__}: measure it first")
    if "model_sha256" not in overhead:
        raise EvaluationError("the overhead does not say of which weights it is (model_sha256): measure it again")
    identity = ModelIdentity(overhead["model_sha256"], overhead.get("model_identity", 1))
    model = str(record.model.get("name"))
    if not is_same_model(model, _identity(record), identity):
        raise EvaluationError(f"the overhead is of other weights than the records: measure {model} {_AGAIN}")
    report = parse_overhead(overhead)
    expected = IMAGE_SHAPES.get(str(record.data.get("name")), report.image_shape)
    if report.image_shape != expected:
        got, size = ("x".join(map(str, shape)) for shape in (report.image_shape, expected))
        raise EvaluationError(
            f"the overhead is of images of {got}, the records are of images of {size}: measure it there"
        )
    if (counted := shipped_overhead(model, report.image_shape)) is not None:
        compare_counts(report, counted)
    return overhead


@cache
def shipped_overhead(model: str, image_shape: tuple[int, ...]) -> Overhead | None:
    """What is counted on the model that this package ships under a name; None if it ships no weights.

    Args:
        model: Name for ``load_model``.
        image_shape: ``(C, H, W)``.
    """
    card = cards().get(model)
    return count_overhead(build_model(card), image_shape) if card is not None and card.has_weights else None


def find_missing_records(tree: Tree, model: str, board: Board, sources: Collection[str]) -> Iterator[str]:
    """Eligible records of a tree that are not among the sources of an entry.

    Args:
        tree: The leaderboard.
        model: Name for ``load_model``.
        board: Of the entry.
        sources: Of the entry, as paths below the folder of runs.

    Returns:
        Paths below the folder of runs.
    """
    for path in sorted(tree.runs.rglob("*.json")):
        name = path.relative_to(tree.runs).as_posix()
        if name not in sources and not path.is_relative_to(tree.evidence) and _is_eligible(path, model, board):
            yield name


def _is_eligible(path: Path, model: str, board: Board) -> bool:
    try:
        require_eligible(model, board, Record.read(path))
    except EvaluationError:  # Another experiment, or not a record at all.
        return False
    return True


def format_percent(accuracy: float) -> str:
    """An accuracy in percent as RobustBench writes it.

    Example:
        >>> format_percent(1.4), format_percent(100.0)
        ('1.40', '100.00')
    """
    return f"{accuracy:.2f}"
