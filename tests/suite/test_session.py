"""The bench: nothing is loaded or attacked twice, and nothing is mistaken for something else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import fgsm
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EmpirError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.record import Record
from empir_plugin.suite import session as bench_module
from empir_plugin.suite.case import Case
from empir_plugin.suite.session import Bench


class Brighter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def _data(labels: list[int]) -> ImageSet:
    images = torch.tensor([[130, 120]] * len(labels), dtype=torch.uint8).view(-1, 1, 1, 2)
    return ImageSet("toy", "test", images, torch.tensor(labels), ("left", "right"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The evaluations that were made."""
    made: list[Case] = []
    evaluate: Callable[..., Record] = bench_module._evaluated

    def counting(case: Case, model: nn.Module, data: ImageSet) -> Record:
        made.append(case)
        return evaluate(case, model, data)

    monkeypatch.setattr(bench_module, "_evaluated", counting)
    return made


def test_the_worst_case_of_attacks_that_ran_costs_no_evaluation(counted: list[Case]) -> None:
    bench, model, data = Bench(), Brighter(), _data([0, 0, 1])
    one, two = Case(eps="8/255", attack=("fgsm",)), Case(eps="8/255", attack=("bim",))
    parts = [bench.record(case, model, data) for case in (one, two)]
    both = bench.record(replace(one, attack=("fgsm", "bim")), model, data)
    assert [case.attack for case in counted] == [("fgsm",), ("bim",)]
    assert both.attacks == (*parts[0].attacks, *parts[1].attacks)
    assert (both.clean_accuracy, both.worst_case_accuracy) == (66.67, 0.0)


@pytest.mark.parametrize("change", [{"eps": "1/255"}, {"seed": 1}, {"batch_size": 2}], ids=lambda change: str(change))
def test_another_case_is_another_evaluation(counted: list[Case], change: dict[str, Any]) -> None:
    bench, model, data, case = Bench(), Brighter(), _data([0]), Case(eps="8/255", attack=("fgsm",))
    bench.record(case, model, data)
    bench.record(replace(case, **change), model, data)
    assert len(counted) == 2
    bench.record(replace(case, min_robust=3.0), model, data)
    assert len(counted) == 2, "thresholds change no evaluation"


def test_another_model_or_data_set_is_another_evaluation(counted: list[Case]) -> None:
    bench, model, case = Bench(), Brighter(), Case(eps="8/255", attack=("fgsm",))
    data = _data([0])
    bench.record(case, model, data)
    bench.record(case, Brighter(), data)
    assert bench.record(case, model, _data([1])).clean_accuracy == 0
    assert len(counted) == 3


def test_a_model_changed_in_place_is_another_model(counted: list[Case]) -> None:
    model, data, bench = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval(), _data([0, 1]), Bench()
    case = Case(attack=("fgsm",), eps="8/255", dataset="toy")
    before = bench.record(case, model, data)
    assert bench.record(case, model, data) is not None
    assert len(counted) == 1
    with torch.no_grad():
        model[1].weight.neg_()
    after = bench.record(case, model, data)
    assert len(counted) == 2
    assert after.model["sha256"] != before.model["sha256"]


def test_objects_and_protocols_are_evaluated_as_they_come(counted: list[Case]) -> None:
    bench, model, data = Bench(), Brighter(), _data([0, 0])
    case = Case(eps="8/255", attack=(AttackSpec("mine", fgsm()),))
    assert [bench.record(case, model, data).attacks[0].name for _ in range(2)] == ["mine"] * 2
    assert bench.record(Case(eps="8/255", protocol="paper"), model, data).protocol["name"] == "paper"
    assert len(counted) == 3


def test_a_model_and_its_data_are_loaded_once_and_the_next_ones_replace_them() -> None:
    bench = Bench()
    one, two = Case(model="cifarconv-fp", n_examples=2), Case(model="cifarconv-w2a2", n_examples=2)
    first = bench.model(one), bench.data(one)
    assert (bench.model(replace(one, seed=4)), bench.data(replace(one, seed=4))) == first
    assert bench.model(two) is not first[0]
    assert bench.model(one) is not first[0]
    assert len(bench.data(replace(one, n_examples=3))) == 3


def test_a_check_finds_what_an_evaluation_would() -> None:
    good = Case(model="cifarconv-fp", attack=("fgsm",), n_examples=2)
    Bench().check(good)
    for change in ({"attack": ("fgms",)}, {"eps": "8"}, {"n_examples": 0}, {"device": "?"}, {"dataset": "mnist"}):
        with pytest.raises(EmpirError):
            Bench().check(replace(good, **change))
    with pytest.raises(InputError, match="a protocol is one of"):
        Bench().check(replace(good, attack=(), protocol="ours"))
