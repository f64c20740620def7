"""Numbers of entries: known answers, and every reason for which a record makes none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.identity import describe
from empir_plugin.evaluation.protocols import adaptive_plan, standard_plan
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.eligibility import Measured, in_percent, measure, require_overhead
from empir_plugin.leaderboard.tree import board_of
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards

BOARD = board_of("cifar10", "Linf")
HIDDEN = "AutoAttackSuite(version='standard', attacks=(), surrogate=OverMembers(rule=MeanProbability()), batch_size=250, queries=5000)"  # fmt: skip # noqa: E501


def measured(*records: Record, audit: Any = None) -> Measured:
    return measure("empir-cifar", BOARD, records, audit)


def test_the_numbers_are_those_of_the_record(standard: Record) -> None:
    found = measured(standard)
    assert (found.clean, found.autoattack, found.external, found.unreliable) == (75.23, 1.40, None, False)


def test_external_is_the_worst_case_per_image_not_the_least_column(standard: Record, adaptive: Record) -> None:
    assert adaptive.worst_case_accuracy == 1.50
    assert measured(standard, adaptive).external == 0.90
    assert measured(adaptive, standard) == measured(standard, adaptive)


def test_an_attack_in_two_records_is_one_attack(made: Any) -> None:
    others = (made.attack("FGSM", made.standing(0, 3000), "fgsm()"), made.attack("PGD", made.standing(0, 90)))
    found = measured(made.record(made.autoattack()), made.record(made.autoattack(), *others))
    assert (found.external, found.attacks) == (0.90, 3)


def test_an_attack_that_breaks_nothing_more_makes_no_external(made: Any) -> None:
    both = made.record(made.autoattack(), made.attack("FGSM", made.standing(0, 3000)))
    assert measured(both).external is None


def test_of_two_runs_of_autoattack_the_lower_counts(made: Any) -> None:
    runs = [made.record(made.autoattack(0, stop)) for stop in (140, 120)]
    assert measured(*runs).autoattack == measured(*reversed(runs)).autoattack == 1.20
    assert measured(*runs).external is None


def test_autoattack_by_another_way_in_is_no_standard_autoattack(made: Any) -> None:
    surrogate = made.attack("AutoAttack", made.standing(0, 10), HIDDEN)
    with pytest.raises(EvaluationError, match="no record of empir-cifar has standard AutoAttack"):
        measured(made.record(surrogate))
    assert measured(made.record(made.autoattack(), surrogate)).autoattack == 1.40


def test_the_protocols_of_this_package_are_recognised(made: Any) -> None:
    model = build_model(cards()["empir-cifar"])
    for plan in (standard_plan, adaptive_plan):
        columns = (made.attack(p.name, made.standing(0, 5), describe(p.attack)) for p in plan(model, "cifar10"))
        assert measured(made.record(*columns)).autoattack == 0.05


def test_autoattack_after_others_in_a_cascade_does_not_count(made: Any) -> None:
    attacks = made.attack("PGD", made.standing(0, 90)), made.autoattack(0, 90)
    with pytest.raises(EvaluationError, match="alone or first in a cascade"):
        measured(made.record(*attacks, cascade=True))
    assert measured(made.record(*reversed(attacks), cascade=True)).autoattack == 0.90
    assert measured(made.record(*attacks)).autoattack == 0.90


def test_flags_of_autoattack_and_masking_make_it_unreliable(standard: Record, made: Any) -> None:
    flagged = made.record(made.autoattack(flags=("a flag",)))
    assert measured(flagged).unreliable
    assert measured(standard, flagged).flags == ("a flag",)
    assert measured(standard, audit=made.audit(standard, masked=True)).masked == ("zero gradients",)
    assert measured(standard, audit=made.audit(standard, masked=True)).unreliable
    assert not measured(standard, audit=made.audit(standard)).unreliable


REFUSED: dict[str, tuple[Callable[[Any], Record], str]] = {
    "other model": (lambda made: made.record(made.autoattack(), model="cifarconv-fp"), "of 'cifarconv-fp', the"),
    "no weights": (lambda made: made.record(made.autoattack(), model_={"weights_loaded": False}), "without its"),
    "not said": (lambda made: made.record(made.autoattack(), model_={"weights_loaded": None}), "without its"),
    "old weights": (lambda made: made.record(made.autoattack(), model_={"sha256": "ab"}), "of another network than"),
    "sample": (lambda made: made.record(made.autoattack(), data={"full_official": False}), "needs the official 10,000"),
    "other images": (lambda made: made.record(made.autoattack(), data={"sha256": "ab"}), "needs the official 10,000"),
    "train images": (lambda made: made.record(made.autoattack(), data={"split": "train"}), "needs the official 10,000"),
    "other eps": (lambda made: made.record(made.autoattack(), threat="Linf:0.1"), "has attacks under Linf:0.1"),
    "other norm": (lambda made: made.record(made.autoattack(), threat="L2:0.5"), "has attacks under L2:0.5"),
    "int8": (lambda made: made.record(made.autoattack(), backend={"queries": "int8 (onednn)"}), "without --int8"),
    "no threat": (lambda made: made.record(made.autoattack(), threat="none"), "has attacks under none"),
    "larger budget": (
        lambda made: made.record(made.autoattack(), made.attack("PGD", made.standing(0, 1), threat="Linf:16/255")),
        "has attacks under Linf:16/255",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("record", "sentence"), REFUSED.values(), ids=REFUSED)
def test_records_that_make_no_entry(
    record: Callable[[Any], Record], sentence: str, standard: Record, made: Any
) -> None:
    measured(standard)
    with pytest.raises(EvaluationError, match=sentence):
        measured(standard, record(made))


def test_an_attack_without_a_budget_may_stand_beside(made: Any) -> None:
    unbounded = made.attack("CW", made.standing(0, 1), threat="L2:inf", in_worst_case=False)
    assert measured(made.record(made.autoattack(), unbounded)).external is None


def test_a_radius_is_a_number(made: Any) -> None:
    assert measured(made.record(made.autoattack(threat="Linf:16/510"), threat="Linf:16/510")).autoattack == 1.40


def test_records_of_different_weights(made: Any) -> None:
    """Where the package ships none, the records have to agree among themselves."""
    about = {"model": "alexnet-fp", "model_": {"sha256": "ab"}}
    one = made.record(made.autoattack(), **about)
    other = made.record(made.autoattack(), **{**about, "model_": {"sha256": "cd"}})
    assert measure("alexnet-fp", BOARD, [one, one]).autoattack == 1.40
    with pytest.raises(EvaluationError, match="the records are of different weights"):
        measure("alexnet-fp", BOARD, [one, other])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"name": "empir-cifar", "sha256": "ab"}}, "the audit is of other weights"),
        ({"data": {"name": "mnist", "split": "test", "n": 200, "sha256": "ab"}}, "the audit is on mnist test"),
        ({"data": {"name": "cifar10", "split": "train", "n": 200, "sha256": "ab"}}, "the audit is on cifar10 train"),
        ({"threat": "Linf:0.1"}, "the audit is on cifar10 test under Linf:0.1, not on cifar10 test under Linf:8/255"),
    ],
)
def test_an_audit_of_something_else(change: dict[str, Any], sentence: str, standard: Record, made: Any) -> None:
    with pytest.raises(EvaluationError, match=sentence):
        measured(standard, audit=replace(made.audit(standard), **change))


def test_costs_are_of_the_same_weights() -> None:
    costs = {"model_sha256": "ab", "storage_ratio": 1.5}
    assert require_overhead(costs, "ab") == costs
    with pytest.raises(EvaluationError, match="the overhead is of other weights"):
        require_overhead(costs, "cd")
    with pytest.raises(EvaluationError, match="does not say of which weights"):
        require_overhead({"storage_ratio": 1.5}, "ab")
    with pytest.raises(InputError, match="overhead is a JSON object with keys, got a list"):
        require_overhead([], "ab")


def test_accuracies_are_written_with_two_decimals() -> None:
    assert [in_percent(value) for value in (0.0, 1.4, 75.23, 100.0)] == ["0.00", "1.40", "75.23", "100.00"]
