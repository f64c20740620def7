"""What a recipe may write as its objective, and what it is told about anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from empir_plugin.errors import InputError
from empir_plugin.training.adversary import fgsm, nfgsm, pgd, rfgsm
from empir_plugin.training.objectives import Adversarial, Clean, DistilledFrom, GradientPenalty, Trades, WeightPerturbed
from empir_plugin.training.schedules import RecipeObjective, parse_objective

PGD = {"kind": "pgd", "threat": "Linf:8/255", "steps": 2}


@pytest.mark.parametrize(
    ("table", "objective"),
    [
        ({"kind": "clean"}, Clean()),
        ({"kind": "clean", "temperature": 100}, Clean(100.0)),
        ({"kind": "adversarial", "adversary": PGD}, Adversarial(pgd("Linf:8/255", steps=2))),
        (
            {"kind": "adversarial", "adversary": {**PGD, "step": 0.5, "noise": 2, "ramp": 0.1}, "clean_share": 0.5},
            Adversarial(pgd("Linf:8/255", steps=2, step=0.5, noise=2.0, ramp=0.1), 0.5),
        ),
        (
            {"kind": "adversarial", "adversary": {"kind": "fgsm", "threat": "Linf:0.3", "spread": True}},
            Adversarial(fgsm("Linf:0.3", spread=True)),
        ),
        (
            {"kind": "adversarial", "adversary": {"kind": "rfgsm", "threat": "Linf:0.3", "ratio": 0.25}},
            Adversarial(rfgsm("Linf:0.3", ratio=0.25)),
        ),
        (
            {"kind": "adversarial", "adversary": {"kind": "nfgsm", "threat": "Linf:0.1"}},
            Adversarial(nfgsm("Linf:0.1")),
        ),
        ({"kind": "trades", "beta": 6, "adversary": PGD}, Trades(pgd("Linf:8/255", steps=2), 6)),
        (
            {"kind": "trades", "beta": 6, "adversary": PGD, "awp": {"gamma": 5e-3, "warmup": 0.1}},
            WeightPerturbed(Trades(pgd("Linf:8/255", steps=2), 6), 5e-3, 0.1),
        ),
        (
            {"kind": "adversarial", "adversary": PGD, "awp": {"gamma": 0}},
            WeightPerturbed(Adversarial(pgd("Linf:8/255", steps=2)), 0),
        ),
        ({"kind": "gradient_penalty", "weight": 100.0}, GradientPenalty(100.0)),
        ({"kind": "distilled", "teacher": "t", "temperature": 100}, DistilledFrom("t", 100)),
    ],
)
def test_tables(table: Mapping[str, Any], objective: RecipeObjective) -> None:
    assert parse_objective(table) == objective


@pytest.mark.parametrize(
    ("table", "sentence"),
    [
        ("adversarial", r"\[objective\] must be a table, got 'adversarial'"),
        ({}, r"kind of \[objective\] must be one of clean, adversarial, .*, got None"),
        ({"kind": "madry"}, "kind of .* got 'madry'"),
        ({"kind": "clean", "beta": 1.0}, r"\[objective\] has unknown key\(s\) beta; known are temperature"),
        ({"kind": "clean", "temperature": "hot"}, "temperature of .* must be a number, got 'hot'"),
        ({"kind": "clean", "temperature": 0}, r"^\[objective\]: temperature must be above 0 and finite, got 0"),
        ({"kind": "adversarial"}, "kind of .*, adversary must be one of fgsm, rfgsm, nfgsm, pgd, got None"),
        ({"kind": "adversarial", "adversary": 3}, "adversary must be a table, got 3"),
        (
            {"kind": "adversarial", "adversary": {**PGD, "threat": "Linf:8"}},
            r"^\[objective\], adversary: eps must lie in \(0, 1\], got 8",
        ),
        ({"kind": "adversarial", "adversary": {**PGD, "steps": 2.5}}, "steps of .* must be a whole number, got 2.5"),
        ({"kind": "adversarial", "adversary": {**PGD, "steps": True}}, "steps of .* must be a whole number, got True"),
        ({"kind": "adversarial", "adversary": {"kind": "pgd", "steps": 2}}, r"adversary lacks the key\(s\) threat"),
        ({"kind": "trades", "adversary": PGD}, r"lacks the key\(s\) beta"),
        ({"kind": "trades", "beta": -1, "adversary": PGD}, "beta must be 0 or more and finite, got -1"),
        (
            {"kind": "trades", "beta": 6, "adversary": PGD, "awp": 5e-3},
            r"\[objective\], awp must be a table, got 0.005",
        ),
        ({"kind": "adversarial", "adversary": PGD, "awp": {"gamma": -1}}, "gamma must be 0 or more and finite, got -1"),
        ({"kind": "adversarial", "adversary": PGD, "awp": {}}, r"\[objective\], awp lacks the key\(s\) gamma"),
        ({"kind": "clean", "awp": {"gamma": 1e-2}}, r"\[objective\] has unknown key\(s\) awp"),
        ({"kind": "gradient_penalty", "weight": -1.0}, "weight must be 0 or more and finite, got -1.0"),
        ({"kind": "distilled", "teacher": "t", "temperature": 0}, "temperature must be above 0 and finite, got 0"),
        ({"kind": "distilled", "teacher": 7, "temperature": 1}, "teacher of .* must be a text, got 7"),
    ],
)
def test_bad_tables(table: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_objective(table)
