"""Cases: what words come to mean, and which sentence answers those that mean nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from empir_plugin.attacks import AutoAttackSuite, fgsm, mean_probability, pgd, plain
from empir_plugin.errors import EmpirError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.suite.case import Case, name_of, named_attacks


@pytest.mark.parametrize(
    ("asked", "threat"),
    [
        ({"model": "empir-mnist"}, "Linf:0.3"),
        ({"model": "empir-cifar"}, "Linf:8/255"),
        ({"model": "empir-cifar", "threat": "Linf"}, "Linf:8/255"),
        ({"model": "empir-cifar", "protocol": "paper"}, "Linf:0.1"),
        ({"dataset": "mnist", "protocol": "paper"}, "Linf:0.3"),
        ({"model": "empir-cifar", "eps": "4/255"}, "Linf:4/255"),
        ({"eps": 8 / 255}, "Linf:8/255"),
        ({"eps": "0.5", "threat": "L2"}, "L2:0.5"),
        ({"threat": "L2:0.5"}, "L2:0.5"),
    ],
)
def test_the_threat_is_the_one_asked_for_or_the_default(asked: dict[str, Any], threat: str) -> None:
    assert str(Case(**asked).budget) == threat


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "a model of your own has no default: pass eps"),
        ({"dataset": "cifar10"}, "a model of your own has no default"),
        ({"model": "empir-cifar", "threat": "L2"}, "there is no default under L2: pass eps"),
        ({"threat": "Linf:0.1", "eps": 0.1}, "the radius is named once"),
        ({"eps": 8}, "so write 8/255"),
        ({"model": "empir-cifar", "eps": 0.0}, "eps"),
        ({"eps": [8]}, "eps is a number or text such as '8/255', got \\[8\\]"),
        ({"eps": "0.1", "threat": "L1"}, "a norm is one of Linf, L2, got 'L1'"),
        ({"eps": "0.1", "protocol": "ours", "threat": ""}, None),
    ],
)
def test_a_threat_that_cannot_be_is_refused(asked: dict[str, Any], sentence: str | None) -> None:
    if sentence is None:
        assert str(Case(**asked).budget) == "Linf:0.1", "the protocol is not asked where a radius is given"
        return
    with pytest.raises(InputError, match=sentence):
        _ = Case(**asked).budget


def test_data_is_the_models_own_and_quick_unless_asked_for() -> None:
    data = Case(model="empir-mnist").load_data()
    assert (data.name, len(data)) == ("mnist", 100)
    assert len(Case(dataset="cifar10", n_examples=3).load_data()) == 3
    with pytest.raises(InputError, match="a model of your own needs a data set"):
        Case().load_data()


def test_models_come_by_name() -> None:
    assert isinstance(Case(model="empir-mnist").load_model(), Ensemble)
    with pytest.raises(InputError, match="define a fixture rb_model"):
        Case().load_model()
    with pytest.raises(EmpirError, match="no weight file at nowhere"):
        Case(model="empir-mnist", checkpoint="nowhere.safetensors").load_model()


def test_attacks_or_a_protocol() -> None:
    assert Case(protocol="paper").planned(nn.Flatten()) is None
    assert (Case(protocol="paper").plan.name, Case().plan.name) == ("paper", "default")
    with pytest.raises(InputError, match="got both \\(pgd, paper\\)"):
        Case(attack=("pgd",), protocol="paper")


def test_attacks_are_names_plans_or_attacks() -> None:
    mine = AttackSpec("mine", fgsm())
    planned = Case(attack=("fgsm", mine, fgsm())).planned(nn.Flatten())
    assert planned is not None
    assert [each.name for each in planned] == ["fgsm", "mine", "GradientAttack"]
    assert planned[1] is mine
    assert name_of(lambda: None) == "<lambda>"  # pyright: ignore[reportArgumentType]


def test_pgd_is_the_strong_one() -> None:
    (single,) = named_attacks("pgd", nn.Flatten())
    assert (single.name, single.attack.steps, single.attack.step_size.ratio) == ("pgd", 100, 0.25)  # pyright: ignore
    both = named_attacks("PGD", Ensemble([nn.Flatten(), nn.Flatten()]))
    assert [each.name for each in both] == ["PGD", "PGD mean_probability"]
    assert [each.attack.surrogate for each in both] == [plain, mean_probability]  # pyright: ignore


def test_other_names_are_the_discovered_attacks() -> None:
    (suite,) = named_attacks("autoattack", nn.Flatten())
    assert isinstance(suite.attack, AutoAttackSuite)
    with pytest.raises(InputError, match="did you mean 'fgsm'"):
        named_attacks("fgms", nn.Flatten())


def test_adversarial_images_have_a_file_for_each_case(tmp_path: Path) -> None:
    assert Case(eps="8/255").images_file("net", "weights|images") is None
    case = Case(eps="8/255", attack=("fgsm", "pgd"), adv_out=tmp_path)
    path = case.images_file("a net", "weights|images")
    assert path is not None
    assert path.parent == tmp_path
    assert re.fullmatch(r"a-net-fgsm-pgd-Linf-8-255-[0-9a-f]{8}\.safetensors", path.name)
    objects = [replace(case, attack=(attack,)) for attack in (fgsm(), pgd(1), pgd(2))]
    others = [case, replace(case, seed=7), replace(case, batch_size=9), *objects]
    files = {
        other.images_file("a net", subject) for other in others for subject in ("weights|images", "weights|others")
    }
    assert len(files) == 2 * len(others)
    assert case.images_file("a net", "weights|images") == path


def test_attacks_of_one_class_are_told_apart() -> None:
    plan = Case(attack=(fgsm(), pgd(1), "fgsm")).planned(nn.Flatten())
    assert plan is not None
    assert [planned.name for planned in plan] == ["GradientAttack", "GradientAttack 2", "fgsm"]


def test_a_case_is_described_in_json_words() -> None:
    described = Case(model="m", eps=0.1, attack=("fgsm", AttackSpec("mine", fgsm())), min_clean=5).describe()
    assert described["attack"] == ["fgsm", "mine"]
    assert (described["eps"], described["label"], described["min_clean"]) == ("0.1", "fgsm, mine", 5)
