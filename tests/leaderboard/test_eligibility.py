"""Eligibility: known numbers, every reason for a refusal, and records of every schema and identity version."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import Threat, fgsm
from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.protocols import adaptive_plan, standard_plan
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.evaluation.summary import attack_kind
from empir_plugin.leaderboard.eligibility import (
    Numbers,
    format_percent,
    measure,
    require_eligible,
    require_same_overhead_subject,
    shipped_fingerprint,
)
from empir_plugin.leaderboard.tree import Board, board_of
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards

BOARD = board_of("cifar10", "Linf")
RUNS = Path(__file__).parents[2] / "leaderboard" / "runs"
BF16 = "int8 (onednn) forward, bf16 backward"
OLD_INT8 = {"verdicts": "float32", "queries": "int8 (onednn)", "reason": ""}
INT8 = {"verdicts": "int8 (onednn)", "queries": "int8 (onednn)", "gradients": "float32", "reason": ""}


def numbers_of(*records: Record, audit: Any = None) -> Numbers:
    return measure("empir-cifar", BOARD, records, audit)


def test_the_numbers_follow_from_the_record(standard: Record) -> None:
    numbers = numbers_of(standard)
    assert (numbers.clean, numbers.autoattack, numbers.external, numbers.unreliable) == (75.23, 1.40, None, False)


def test_external_is_the_worst_case_per_image(standard: Record, adaptive: Record) -> None:
    assert adaptive.worst_case_accuracy == 1.50
    assert numbers_of(standard, adaptive).external == 0.90
    assert numbers_of(adaptive, standard) == numbers_of(standard, adaptive)


def test_an_attack_in_two_records_counts_once(make: Any) -> None:
    others = (make.attack("FGSM", make.robust(0, 3000), "fgsm()"), make.attack("PGD", make.robust(0, 90)))
    numbers = numbers_of(make.record(make.autoattack()), make.record(make.autoattack(), *others))
    assert (numbers.external, numbers.attacks) == (0.90, 3)


def test_external_needs_an_attack_that_breaks_more_images(make: Any) -> None:
    both = make.record(make.autoattack(), make.attack("FGSM", make.robust(0, 3000)))
    assert numbers_of(both).external is None


def test_the_lower_of_two_runs_of_autoattack_counts(make: Any) -> None:
    runs = [make.record(make.autoattack(0, stop)) for stop in (140, 120)]
    assert numbers_of(*runs).autoattack == numbers_of(*reversed(runs)).autoattack == 1.20
    assert numbers_of(*runs).external is None


def test_autoattack_on_a_surrogate_is_not_standard(make: Any) -> None:
    surrogate = make.autoattack(0, 10, kind="autoattack")
    with pytest.raises(EvaluationError, match=r"empir-cifar.*standard AutoAttack.*--protocol standard"):
        numbers_of(make.record(surrogate))
    assert numbers_of(make.record(make.autoattack(), surrogate)).autoattack == 1.40


def test_the_protocols_of_this_package_have_standard_autoattack(make: Any) -> None:
    model = build_model(cards()["empir-cifar"])
    for plan in (standard_plan, adaptive_plan):
        attacks = (
            make.attack(spec.name, make.robust(0, 5), kind=attack_kind(spec.attack)[0])
            for spec in plan(model, "cifar10")
        )
        assert numbers_of(make.record(*attacks)).autoattack == 0.05


def test_autoattack_after_others_in_a_cascade_does_not_count(make: Any) -> None:
    attacks = make.attack("PGD", make.robust(0, 90)), make.autoattack(0, 90)
    with pytest.raises(EvaluationError, match=r"first in a cascade.*--protocol standard"):
        numbers_of(make.record(*attacks, cascade=True))
    assert numbers_of(make.record(*reversed(attacks), cascade=True)).autoattack == 0.90
    assert numbers_of(make.record(*attacks)).autoattack == 0.90


def test_flags_and_gradient_masking_make_a_number_unreliable(standard: Record, make: Any) -> None:
    flagged = make.record(make.autoattack(flags=("a flag",)))
    assert numbers_of(flagged).unreliable
    assert numbers_of(standard, flagged).flags == ("a flag",)
    assert numbers_of(standard, audit=make.audit(standard, masked=True)).masked == ("zero gradients",)
    assert numbers_of(standard, audit=make.audit(standard, masked=True)).unreliable
    assert not numbers_of(standard, audit=make.audit(standard)).unreliable


def test_int8_kernels_make_an_entry_as_float32_does(make: Any) -> None:
    require_eligible("empir-cifar", BOARD, make.record(make.autoattack(), backend=INT8))


REFUSED: dict[str, tuple[Callable[[Any], Record], str]] = {
    "other model": (lambda make: make.record(make.autoattack(), model="cifarconv-fp"), "'cifarconv-fp'.*'empir-cifar'"),
    "no weights": (lambda make: make.record(make.autoattack(), model_={"weights_loaded": False}), "weights: load"),
    "not said": (lambda make: make.record(make.autoattack(), model_={"weights_loaded": None}), "weights: load"),
    "old weights": (lambda make: make.record(make.autoattack(), model_={"sha256": "ab"}), "another network.*again"),
    "sample": (lambda make: make.record(make.autoattack(), data={"full_official": False}), "10,000.*--data-dir"),
    "other images": (lambda make: make.record(make.autoattack(), data={"sha256": "ab"}), "10,000.*--data-dir"),
    "train images": (lambda make: make.record(make.autoattack(), data={"split": "train"}), "10,000.*--data-dir"),
    "other eps": (lambda make: make.record(make.autoattack(), threat="Linf:0.1"), "Linf:0.1.*Linf:8/255"),
    "other norm": (lambda make: make.record(make.autoattack(), threat="L2:0.5"), "L2:0.5.*Linf:8/255"),
    "int8": (lambda make: make.record(make.autoattack(), backend=OLD_INT8), "evaluate again"),
    "bf16": (
        lambda make: make.record(make.autoattack(), backend=INT8 | {"gradients": BF16}),
        "without --gradients bf16",
    ),
    "no threat": (lambda make: make.record(make.autoattack(), threat="none"), "none.*Linf:8/255"),
    "larger budget": (
        lambda make: make.record(make.autoattack(), make.attack("PGD", make.robust(0, 1), threat="Linf:16/255")),
        "Linf:16/255.*Linf:8/255",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "sentence"), REFUSED.values(), ids=REFUSED)
def test_ineligible_records_are_refused(
    record: Callable[[Any], Record], sentence: str, standard: Record, make: Any
) -> None:
    numbers_of(standard)
    with pytest.raises(EvaluationError, match=sentence):
        numbers_of(standard, record(make))


def test_an_unbounded_attack_does_not_count(make: Any) -> None:
    unbounded = make.attack("CW", make.robust(0, 1), threat="L2:inf", in_worst_case=False)
    assert numbers_of(make.record(make.autoattack(), unbounded)).external is None


def test_radii_are_compared_as_numbers(make: Any) -> None:
    assert numbers_of(make.record(make.autoattack(threat="Linf:16/510"), threat="Linf:16/510")).autoattack == 1.40


def test_records_of_different_weights_are_refused(make: Any) -> None:
    """If the package ships no weights, the records must agree with each other."""
    about = {"model": "alexnet-fp", "model_": {"sha256": "ab"}}
    one = make.record(make.autoattack(), **about)
    other = make.record(make.autoattack(), **{**about, "model_": {"sha256": "cd"}})
    assert measure("alexnet-fp", BOARD, [one, one]).autoattack == 1.40
    with pytest.raises(EvaluationError, match=r"different weights.*alexnet-fp.*this release"):
        measure("alexnet-fp", BOARD, [one, other])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"name": "empir-cifar", "sha256": "ab"}}, "other weights.*audit empir-cifar"),
        ({"data": {"name": "mnist", "split": "test", "n": 200, "sha256": "ab"}}, "mnist test.*audit there"),
        ({"data": {"name": "cifar10", "split": "train", "n": 200, "sha256": "ab"}}, "cifar10 train.*audit there"),
        ({"threat": "Linf:0.1"}, "Linf:0.1.*Linf:8/255: audit there"),
    ],
)
def test_an_audit_of_another_subject_is_refused(
    change: dict[str, Any], sentence: str, standard: Record, make: Any
) -> None:
    with pytest.raises(EvaluationError, match=sentence):
        numbers_of(standard, audit=replace(make.audit(standard), **change))


def test_an_overhead_is_of_the_same_weights(make: Any) -> None:
    record = make.record(model="alexnet-fp", model_={"sha256": "ab"})
    overhead = make.overhead(record, "empir-cifar")
    assert require_same_overhead_subject(overhead, record) == overhead
    for change in ({"model_sha256": "cd"}, {"model_identity": 1}, {"model_identity": "2"}, {"model_identity": [2]}):
        with pytest.raises(EvaluationError, match=r"other weights.*measure alexnet-fp"):
            require_same_overhead_subject({**overhead, **change}, record)
    with pytest.raises(EvaluationError, match=r"model_sha256.*measure it"):
        require_same_overhead_subject({key: overhead[key] for key in overhead if key != "model_sha256"}, record)
    with pytest.raises(InputError, match=r"JSON object.*list: measure it"):
        require_same_overhead_subject([], record)


def of_version(version: int, model: str = "empir-cifar") -> dict[str, Any]:
    return {"sha256": shipped_fingerprint(model, version), "identity": version}


def test_results_with_different_versions_of_the_identity_are_of_the_shipped_model(make: Any) -> None:
    old, new = (make.record(make.autoattack(), model_=of_version(version)) for version in (1, 2))
    assert old.model["sha256"] != new.model["sha256"]
    assert numbers_of(old, new) == numbers_of(new, old)
    assert numbers_of(old, audit=make.audit(new)).masked == numbers_of(new, audit=make.audit(old)).masked == ()
    overhead = make.overhead(old)
    del overhead["model_identity"]
    assert require_same_overhead_subject(overhead, new) == require_same_overhead_subject(overhead, old) == overhead


def test_a_hash_does_not_count_under_another_version(make: Any) -> None:
    record = make.record(make.autoattack(), model_={"identity": 1})
    with pytest.raises(EvaluationError, match=r"another network.*again"):
        numbers_of(record)
    audit = make.audit(make.record(make.autoattack(), model_={"identity": 1}))
    with pytest.raises(EvaluationError, match=r"other weights.*audit empir-cifar"):
        numbers_of(make.record(make.autoattack()), audit=audit)


@pytest.mark.parametrize("version", [3, "2", None, [2]], ids=str)
def test_an_unknown_version_of_the_identity_is_refused(version: object, make: Any) -> None:
    with pytest.raises(EvaluationError, match=r"empir-cifar has an unknown identity.*this release"):
        numbers_of(make.record(make.autoattack(), model_={"identity": version}))


def test_versions_that_differ_cannot_be_compared_without_shipped_weights(make: Any) -> None:
    about = {"model": "alexnet-fp"}
    records = [make.record(make.autoattack(), **about, model_={"sha256": "ab", "identity": v}) for v in (1, 2)]
    with pytest.raises(EvaluationError, match=r"alexnet-fp.*this release"):
        measure("alexnet-fp", BOARD, records)


def test_a_record_of_schema_1_is_eligible_or_refused_for_the_same_reasons() -> None:
    """Committed records are of schema 1, in which the kind of an attack follows from its settings."""
    path = RUNS / "empir-cifar.json"
    assert json.loads(path.read_text())["schema"] == 1
    record = Record.read(path)
    assert [attack.kind for attack in record.attacks if attack.name == "AutoAttack"] == ["autoattack-standard"]
    assert "identity" not in record.model
    assert numbers_of(record).autoattack == next(a.accuracy for a in record.attacks if a.name == "AutoAttack")
    _check_refusals("empir-cifar", BOARD, record)


class Brighter(nn.Module):
    """Decides for the brighter of two pixels, among four classes."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x.flatten(1), (0, 2), value=-1.0)


def test_a_record_of_schema_2_is_eligible_or_refused_for_the_same_reasons(tmp_path: Path) -> None:
    images = torch.tensor([[10, 250], [120, 125], [128, 122], [50, 60]], dtype=torch.uint8).view(4, 1, 1, 2)
    labels = torch.tensor([1, 1, 0, 1])
    data = ImageSet("toy", "test", images, labels, ("left", "right", "third", "fourth"))
    specs = [AttackSpec("AutoAttack", AutoAttackSuite()), AttackSpec("FGSM", fgsm())]
    threat = Threat.parse("Linf:8/255")
    path = tmp_path / "record.json"
    evaluate(Brighter(), data, threat, specs, name="toy", settings=Settings(shard_size=4)).write(path)
    table = json.loads(path.read_text())
    assert table["schema"] == 2
    assert [(attack["kind"], attack["version"]) for attack in table["attacks"]] == [
        ("autoattack-standard", 1),
        ("gradient", 1),
    ]
    assert table["model"]["sha256"] == model_fingerprint(Brighter())
    assert table["model"]["identity"] == 2
    record = Record.read(path)
    record = replace(record, data={**record.data, "full_official": True})
    board = Board("toy", threat, n=4)
    numbers = measure("toy", board, [record])
    assert (numbers.clean, numbers.autoattack, numbers.attacks) == (100.0, 25.0, 2)
    _check_refusals("toy", board, record)


def _check_refusals(model: str, board: Board, record: Record) -> None:
    require_eligible(model, board, record)
    changes: dict[str, dict[str, Any]] = {
        "weights: load": {"model": {**record.model, "weights_loaded": False}},
        "--data-dir": {"data": {**record.data, "full_official": False}},
        "evaluate again": {"run": {**record.run, "backend": OLD_INT8}},
        "Linf:0.1": {"threat": "Linf:0.1", "attacks": tuple(replace(a, threat="") for a in record.attacks)},
    }
    for cure, change in changes.items():
        with pytest.raises(EvaluationError, match=cure):
            measure(model, board, [replace(record, **change)])
    custom = tuple(replace(attack, kind="custom") for attack in record.attacks)
    with pytest.raises(EvaluationError, match="--protocol standard"):
        measure(model, board, [replace(record, attacks=custom)])


def test_accuracies_are_written_with_two_decimals() -> None:
    assert [format_percent(value) for value in (0.0, 1.4, 75.23, 100.0)] == ["0.00", "1.40", "75.23", "100.00"]


def test_corruptions_count_by_their_mean(make: Any) -> None:
    numbers = measure("empir-cifar", board_of("cifar10", "corruptions"), [make.corruptions(5000)])
    assert (numbers.clean, numbers.autoattack, numbers.external, numbers.attacks) == (75.23, 50.0, None, 15)
    assert not numbers.unreliable


MADE = {"name": "corruptions of cifar10", "source": "made with imagecorruptions-imaug 1.1.5"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"images": MADE}, "corruptions of cifar10 (made with imagecorruptions-imaug 1.1.5)"),
        ({"images": {"source": "folder"}}, "the record is on CIFAR-10-C (folder)"),
        ({"attacks": ()}, "does not have each of 75 corruptions"),
        ({"model": "cifarconv-fp"}, "the record is of 'cifarconv-fp'"),
    ],
    ids=["made", "other files", "no corruption", "other model"],
)
def test_ineligible_records_of_corruptions_are_refused(changes: dict[str, Any], sentence: str, make: Any) -> None:
    with pytest.raises(EvaluationError, match=re.escape(sentence)):
        measure("empir-cifar", board_of("cifar10", "corruptions"), [make.corruptions(**changes)])


def test_attacks_and_corruptions_have_different_boards(standard: Record, make: Any) -> None:
    with pytest.raises(EvaluationError, match=r"under Linf:8/255, .* under corruptions: run `empir evaluate --threat"):
        measure("empir-cifar", board_of("cifar10", "corruptions"), [standard])
    with pytest.raises(EvaluationError, match=r"under corruptions, entries on cifar10/Linf are under Linf:8/255"):
        measure("empir-cifar", board_of("cifar10", "Linf"), [make.corruptions()])


def test_an_audit_has_no_place_on_a_board_of_corruptions(standard: Record, make: Any) -> None:
    with pytest.raises(EvaluationError, match="an audit is about attacks"):
        measure("empir-cifar", board_of("cifar10", "corruptions"), [make.corruptions()], make.audit(standard))
