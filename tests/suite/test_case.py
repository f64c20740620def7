"""Cases: what their settings mean, and the errors for invalid ones."""

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
from empir_plugin.evaluation.named_attacks import name_of, named_attacks
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.suite.case import Case


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
def test_the_threat_is_the_given_one_or_the_default(asked: dict[str, Any], threat: str) -> None:
    assert str(Case(**asked).budget) == threat


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({}, "model of your own.*pass eps"),
        ({"dataset": "cifar10"}, "model of your own.*pass eps"),
        ({"model": "empir-cifar", "threat": "L2"}, "L2.*pass eps"),
        ({"threat": "Linf:0.1", "eps": 0.1}, "Linf:0.1.*leave one out"),
        ({"eps": 8}, "so write 8/255"),
        ({"model": "empir-cifar", "eps": 0.0}, "eps"),
        ({"eps": [8]}, "eps.*'8/255'.*\\[8\\]"),
        ({"eps": "0.1", "threat": "L1"}, "Linf, L2.*'L1'"),
        ({"eps": "0.1", "protocol": "ours", "threat": ""}, None),
    ],
)
def test_an_invalid_threat_is_rejected(asked: dict[str, Any], sentence: str | None) -> None:
    if sentence is None:
        assert str(Case(**asked).budget) == "Linf:0.1", "with a radius, the protocol does not matter"
        return
    with pytest.raises(InputError, match=sentence):
        _ = Case(**asked).budget


def test_data_defaults_to_100_images_of_the_models_data_set() -> None:
    data = Case(model="empir-mnist").load_data()
    assert (data.name, len(data)) == ("mnist", 100)
    assert len(Case(dataset="cifar10", n_examples=3).load_data()) == 3
    with pytest.raises(InputError, match=r"model of your own.*--rb-dataset"):
        Case().load_data()


def test_models_are_loaded_by_name() -> None:
    assert isinstance(Case(model="empir-mnist").load_model(), Ensemble)
    with pytest.raises(InputError, match="define a fixture rb_model"):
        Case().load_model()
    with pytest.raises(EmpirError, match="no weight file at nowhere"):
        Case(model="empir-mnist", checkpoint="nowhere.safetensors").load_model()


def test_attacks_or_a_protocol() -> None:
    assert Case(protocol="paper").attack_specs(nn.Flatten()) is None
    assert (Case(protocol="paper").plan.name, Case().plan.name) == ("paper", "default")
    with pytest.raises(InputError, match=r"pgd, paper.*leave one out"):
        Case(attack=("pgd",), protocol="paper")


def test_attacks_are_names_specs_or_attack_objects() -> None:
    mine = AttackSpec("mine", fgsm())
    specs = Case(attack=("fgsm", mine, fgsm())).attack_specs(nn.Flatten())
    assert specs is not None
    assert [each.name for each in specs] == ["fgsm", "mine", "GradientAttack"]
    assert specs[1] is mine
    assert name_of(lambda: None) == "<lambda>"  # pyright: ignore[reportArgumentType]


def test_pgd_is_that_of_the_default_protocol() -> None:
    (single,) = named_attacks("pgd", nn.Flatten())
    assert (single.name, single.attack.steps, single.attack.step_size.ratio) == ("pgd", 100, 0.25)  # pyright: ignore
    both = named_attacks("PGD", Ensemble([nn.Flatten(), nn.Flatten()]))
    assert [each.name for each in both] == ["pgd", "pgd mean_probability"]
    assert [each.attack.surrogate for each in both] == [plain, mean_probability]  # pyright: ignore


def test_other_names_are_the_registered_attacks() -> None:
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
        other.images_file("a net", fingerprints)
        for other in others
        for fingerprints in ("weights|images", "weights|others")
    }
    assert len(files) == 2 * len(others)
    assert case.images_file("a net", "weights|images") == path


def test_attacks_with_the_same_name_are_numbered() -> None:
    specs = Case(attack=(fgsm(), pgd(1), "fgsm")).attack_specs(nn.Flatten())
    assert specs is not None
    assert [spec.name for spec in specs] == ["GradientAttack", "GradientAttack 2", "fgsm"]


def test_a_case_is_described_for_json() -> None:
    described = Case(model="m", eps=0.1, attack=("fgsm", AttackSpec("mine", fgsm())), min_clean=5).describe()
    assert described["attack"] == ["fgsm", "mine"]
    assert (described["eps"], described["label"], described["min_clean"]) == ("0.1", "fgsm, mine", 5)
