"""Figure 5: CW with a growing number of iterations."""

from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from empir_plugin.attacks.gradient import fgsm
from empir_plugin.attacks.transfer import OnMember
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.protocols import Protocol, released
from empir_plugin.reproduce.targets.fig5 import ITERATIONS, sweep
from empir_plugin.zoo.registry import load_model


def test_a_sweep_sets_only_the_iterations_of_cw() -> None:
    ensemble = load_model("empir-mnist")
    (cw,) = (spec for spec in released.attacks(ensemble, "mnist") if spec.name == "CW")
    specs = sweep(released).attacks(ensemble, "mnist")
    assert [spec.name for spec in specs] == [f"CW-{count}" for count in ITERATIONS]
    for spec, count in zip(specs, ITERATIONS, strict=True):
        assert isinstance(spec.attack, OnMember), "the released CW attacks one member"
        attack: Any = spec.attack.attack
        assert attack.iterations == count
        assert spec.describe().partition(":")[2] == cw.describe().partition(":")[2]


def test_only_carlini_wagner_has_iterations() -> None:
    protocol = Protocol("toy", "", (), lambda model, dataset: (AttackSpec("CW", fgsm()),))
    with pytest.raises(InputError, match=r"CarliniWagner.*got GradientAttack"):
        sweep(protocol).attacks(nn.Flatten(), "mnist")
