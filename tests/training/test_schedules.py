"""Objectives as recipes state them, and the settings that identify a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from empir_plugin.errors import InputError
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import fgsm, nfgsm, pgd, rfgsm
from empir_plugin.training.objectives import Adversarial, Clean, DistilledFrom, GradientPenalty, Trades, WeightPerturbed
from empir_plugin.training.recipe import find_recipe
from empir_plugin.training.schedules import MemberRecipe, RecipeObjective, parse_objective, settings_of

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
def test_tables_become_objectives(table: Mapping[str, Any], objective: RecipeObjective) -> None:
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
        ({"kind": "adversarial"}, r"\[objective\] lacks the key\(s\) adversary"),
        ({"kind": "adversarial", "adversary": 3}, "adversary of .* must be a table, got 3"),
        (
            {"kind": "adversarial", "adversary": {**PGD, "threat": "Linf:8"}},
            r"^adversary of \[objective\]: eps must lie in \(0, 1\], got 8",
        ),
        ({"kind": "adversarial", "adversary": {**PGD, "steps": 2.5}}, "steps of .* must be a whole number, got 2.5"),
        ({"kind": "adversarial", "adversary": {**PGD, "steps": True}}, "steps of .* must be a whole number, got True"),
        (
            {"kind": "adversarial", "adversary": {"kind": "pgd", "steps": 2}},
            r"adversary of .* lacks the key\(s\) threat",
        ),
        ({"kind": "trades", "adversary": PGD}, r"lacks the key\(s\) beta"),
        ({"kind": "trades", "beta": -1, "adversary": PGD}, "beta must be 0 or more and finite, got -1"),
        (
            {"kind": "trades", "beta": 6, "adversary": PGD, "awp": 5e-3},
            r"awp of \[objective\] must be a table, got 0.005",
        ),
        ({"kind": "adversarial", "adversary": PGD, "awp": {"gamma": -1}}, "gamma must be 0 or more and finite, got -1"),
        ({"kind": "adversarial", "adversary": PGD, "awp": {}}, r"awp of \[objective\] lacks the key\(s\) gamma"),
        ({"kind": "clean", "awp": {"gamma": 1e-2}}, r"awp of \[objective\] .*'adversarial' or 'trades', got 'clean'"),
        ({"kind": "gradient_penalty", "weight": -1.0}, "weight must be 0 or more and finite, got -1.0"),
        ({"kind": "distilled", "teacher": "t", "temperature": 0}, "temperature must be above 0 and finite, got 0"),
        ({"kind": "distilled", "teacher": 7, "temperature": 1}, "teacher of .* must be a text, got 7"),
    ],
)
def test_bad_tables_are_refused(table: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        parse_objective(table)


def test_settings_of_old_runs_have_not_changed() -> None:
    member = MemberRecipe("m", 1, 2, precision=Precision(2, 4))
    assert settings_of(member) == {
        "name": "m", "seed": 1, "epochs": 2, "batch_size": 128, "learning_rate": 1e-3, "warmup": 0.0,
        "weight_decay": 0.0, "label_smoothing": 0.0, "shift": 0, "flip": False, "scale": "none", "ema": 0.0,
        "precision": {"weight_bits": 2, "activation_bits": 4},
    }  # fmt: skip
    assert settings_of(replace(member, start="n", in_ensemble=False)).keys() - settings_of(member).keys() == {
        "start",
        "in_ensemble",
    }


EIGHT, NINE, TEN = (f"eps={eps / 255}, eps_text='{eps}/255'" for eps in (8, 9, 10))


PGD_2 = (
    f"Adversarial(adversary=Adversary(threat=Threat(norm=Linf(), {EIGHT}), steps=2, "
    "step=0.75, start=Noise(ratio=1.0), ramp=0.0, reach=1.0, spread=False), clean_share=0.0)"
)


def test_settings_of_the_robust_recipes_have_not_changed() -> None:
    recipe = find_recipe("empir-cifar-at")
    assert recipe.joint is not None
    assert settings_of(recipe.joint) == {
        "name": "empir-cifar-at", "seed": 14, "epochs": 26, "batch_size": 128, "learning_rate": 2e-3, "warmup": 0.1,
        "weight_decay": 0.0, "label_smoothing": 0.0, "shift": 2, "flip": True, "member_share": 0.1,
        "objective": PGD_2.replace(EIGHT, NINE),
    }  # fmt: skip
    assert recipe.finish is not None
    assert settings_of(recipe.finish) == {
        **settings_of(recipe.joint), "seed": 19, "epochs": 16, "learning_rate": 2e-3, "shift": 0, "member_share": 0.0,
        "gce_q": 0.5, "compute": "bfloat16", "rule": "mean_logits", "objective": PGD_2.replace(EIGHT, TEN),
    }  # fmt: skip
    assert [settings_of(member)["objective"] for member in recipe.members] == [PGD_2] * 3
    distilled = find_recipe("mnistconv-defences").members[4]
    expected = "DistilledFrom(teacher='mnistconv-teacher', temperature=100.0, label_share=0.5)"
    assert settings_of(distilled)["objective"] == expected
