"""Records put together: the same as one evaluation, and refused where they are not of one thing."""

from __future__ import annotations

import json
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from empir_plugin.attacks import fgsm, pgd, uniform_noise
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.record import Record, merge_compatible, merge_records, parse_record
from empir_plugin.evaluation.run import evaluate

PLAN = (AttackSpec("noise", uniform_noise(2)), AttackSpec("FGSM", fgsm()), AttackSpec("PGD", pgd(3)))


@pytest.fixture(scope="module")
def parts(toys: ModuleType) -> tuple[Record, ...]:
    return tuple(_evaluated(toys, planned) for planned in PLAN)


def _evaluated(toys: ModuleType, *plan: AttackSpec, **settings: Any) -> Record:
    return evaluate(toys.network(), toys.noise_images(), toys.THREAT, plan, settings=Settings(**settings))


def _timeless(record: Record) -> Record:
    attacks = tuple(replace(attack, seconds=0.0) for attack in record.attacks)
    return replace(record, attacks=attacks, run={**record.run, "finished": ""})


def test_attacks_one_by_one_make_the_record_of_all_together(toys: ModuleType, parts: tuple[Record, ...]) -> None:
    together = _evaluated(toys, *PLAN)
    assert _timeless(merge_records(parts)) == _timeless(together)
    assert together.worst_case_accuracy < max(part.worst_case_accuracy for part in parts), "the attacks must differ"


def test_one_record_and_itself_again_change_nothing(parts: tuple[Record, ...]) -> None:
    assert merge_records(parts[:1]) == parts[0]
    assert merge_records((parts[0], merge_records(parts), parts[2])) == merge_records(parts)


@pytest.mark.parametrize(
    "change",
    [{"model": {"name": "other"}}, {"data": {"n": 40}}, {"threat": "Linf:1/255"}, {"run": {"seed": 1}}],
    ids=lambda change: next(iter(change)),
)
def test_records_of_different_things_have_no_common_worst_case(parts: tuple[Record, ...], change: Any) -> None:
    other = replace(parts[1], **change)
    with pytest.raises(EvaluationError, match="no common worst case"):
        merge_records((parts[0], other))
    assert merge_compatible((parts[0], other, parts[2])) == (merge_records((parts[0], parts[2])), other)


def test_two_attacks_of_one_name_must_be_one(toys: ModuleType, parts: tuple[Record, ...]) -> None:
    longer = _evaluated(toys, AttackSpec("PGD", pgd(4)))
    with pytest.raises(EvaluationError, match="two attacks named PGD differ"):
        merge_records((parts[2], longer))
    assert merge_compatible((parts[0], parts[2], longer)) == (merge_records((parts[0], parts[2])), longer)


def test_gathering_nothing_is_nothing() -> None:
    assert merge_compatible(()) == ()


def test_a_record_comes_back_from_its_table(parts: tuple[Record, ...]) -> None:
    assert parse_record(json.loads(merge_records(parts).to_json())) == merge_records(parts)
    for damaged in ({}, {"attacks": [{}]}, {**json.loads(parts[0].to_json()), "more": 1}):
        with pytest.raises(EvaluationError, match="no run record"):
            parse_record(damaged)
    with pytest.raises(EvaluationError, match="make"):
        parse_record({**json.loads(parts[0].to_json()), "clean_accuracy": 1.0})
