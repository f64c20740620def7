"""Records of evaluations: the kind of each attack, and verdicts from outcomes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn

from empir_plugin.attacks import fgsm
from empir_plugin.attacks.autoattack import AutoAttackSuite, autoattack_plus
from empir_plugin.attacks.carlini_wagner import CarliniWagner
from empir_plugin.attacks.surrogates import OverMembers
from empir_plugin.attacks.threat import Threat
from empir_plugin.attacks.transfer import OnMember, Transfer
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.outcome import Outcome
from empir_plugin.evaluation.summary import attack_kind, attack_record
from empir_plugin.models.ensemble import MeanProbability

STANDARD = AutoAttackSuite()
PARTS = ("apgd-ce", "apgd-t", "fab-t", "square")


class Subclass(AutoAttackSuite):
    """Of other code: what it does is not known."""


@dataclass(frozen=True)
class Stating:
    """An attack of other code that states a kind."""

    kind: Any
    algorithm_version: Any = 1

    def __call__(self, model: Any, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return x


KINDS: dict[str, tuple[Any, tuple[str, int]]] = {
    "standard": (STANDARD, ("autoattack-standard", 1)),
    "another batch size": (AutoAttackSuite(batch_size=7), ("autoattack-standard", 1)),
    "all parts by name": (AutoAttackSuite(attacks=PARTS), ("autoattack-standard", 1)),
    "some parts": (AutoAttackSuite(attacks=PARTS[:3]), ("autoattack", 1)),
    "parts in another order": (AutoAttackSuite(attacks=PARTS[::-1]), ("autoattack", 1)),
    "fewer queries": (AutoAttackSuite(queries=4999), ("autoattack", 1)),
    "plus": (autoattack_plus(), ("autoattack", 1)),
    "surrogate": (AutoAttackSuite(surrogate=OverMembers(MeanProbability())), ("autoattack", 1)),
    "gradient": (fgsm(), ("gradient", 1)),
    "carlini-wagner": (CarliniWagner(), ("carlini-wagner", 1)),
    "transfer": (Transfer(nn.Flatten(), STANDARD), ("transfer", 1)),
    "on a member": (OnMember(0, STANDARD), ("on-member", 1)),
    "function": (lambda *args, **settings: args[1], ("custom", 1)),
    "bound method": (STANDARD.__call__, ("custom", 1)),
    "partial": (functools.partial(STANDARD, seed=1), ("custom", 1)),
    "subclass": (Subclass(), ("custom", 1)),
    "stated": (Stating("boundary", 3), ("boundary", 3)),
    "reserved": (Stating("autoattack-standard"), ("custom", 1)),
    "no text": (Stating(3), ("custom", 1)),
    "no version": (Stating("boundary", "1.0"), ("custom", 1)),
}


@pytest.mark.parametrize(("attack", "kind"), KINDS.values(), ids=KINDS)
def test_an_attack_has_a_kind(attack: Any, kind: tuple[str, int]) -> None:
    assert attack_kind(attack) == kind
    spec = AttackSpec("attack", attack)
    record = attack_record(spec, Threat.parse("Linf:8/255"), [Outcome((1, 0), 0.5, 1)], torch.tensor([1, 1]))
    assert (record.kind, record.version, record.robust) == (*kind, "10")


def test_a_surrogate_of_standard_autoattack_is_compared_by_value() -> None:
    surrogate = type(STANDARD.surrogate)()
    assert surrogate is not STANDARD.surrogate
    assert AutoAttackSuite(surrogate=surrogate).kind == "autoattack-standard"
