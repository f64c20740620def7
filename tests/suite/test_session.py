"""The evaluation session: nothing is loaded or attacked twice, and no result is reused for another case."""

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
from empir_plugin.suite import session as session_module
from empir_plugin.suite.case import Case
from empir_plugin.suite.session import EvaluationSession


class Brighter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :2]


def _data(labels: list[int]) -> ImageSet:
    images = torch.tensor([[130, 120]] * len(labels), dtype=torch.uint8).view(-1, 1, 1, 2)
    return ImageSet("toy", "test", images, torch.tensor(labels), ("left", "right"))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    """The cases that were evaluated."""
    cases: list[Case] = []
    evaluate: Callable[..., Record] = session_module._evaluate

    def counting(case: Case, model: nn.Module, data: ImageSet) -> Record:
        cases.append(case)
        return evaluate(case, model, data)

    monkeypatch.setattr(session_module, "_evaluate", counting)
    return cases


def test_the_worst_case_reuses_attacks_that_ran(counted: list[Case]) -> None:
    session, model, data = EvaluationSession(), Brighter(), _data([0, 0, 1])
    one, two = Case(eps="8/255", attack=("fgsm",)), Case(eps="8/255", attack=("bim",))
    parts = [session.record(case, model, data) for case in (one, two)]
    both = session.record(replace(one, attack=("fgsm", "bim")), model, data)
    assert [case.attack for case in counted] == [("fgsm",), ("bim",)]
    assert both.attacks == (*parts[0].attacks, *parts[1].attacks)
    assert (both.clean_accuracy, both.worst_case_accuracy) == (66.67, 0.0)


@pytest.mark.parametrize("change", [{"eps": "1/255"}, {"seed": 1}, {"batch_size": 2}], ids=lambda change: str(change))
def test_another_case_is_another_evaluation(counted: list[Case], change: dict[str, Any]) -> None:
    session, model, data, case = EvaluationSession(), Brighter(), _data([0]), Case(eps="8/255", attack=("fgsm",))
    session.record(case, model, data)
    session.record(replace(case, **change), model, data)
    assert len(counted) == 2
    session.record(replace(case, min_robust=3.0), model, data)
    assert len(counted) == 2, "thresholds do not change the evaluation"


def test_another_model_or_data_set_is_another_evaluation(counted: list[Case]) -> None:
    session, model, case = EvaluationSession(), Brighter(), Case(eps="8/255", attack=("fgsm",))
    data = _data([0])
    session.record(case, model, data)
    session.record(case, Brighter(), data)
    assert session.record(case, model, _data([1])).clean_accuracy == 0
    assert len(counted) == 3


def test_a_model_changed_in_place_is_another_model(counted: list[Case]) -> None:
    model, data, session = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval(), _data([0, 1]), EvaluationSession()
    case = Case(attack=("fgsm",), eps="8/255", dataset="toy")
    before = session.record(case, model, data)
    assert session.record(case, model, data) is not None
    assert len(counted) == 1
    with torch.no_grad():
        model[1].weight.neg_()
    after = session.record(case, model, data)
    assert len(counted) == 2
    assert after.model["sha256"] != before.model["sha256"]


def test_objects_and_protocols_are_evaluate_as_they_come(counted: list[Case]) -> None:
    session, model, data = EvaluationSession(), Brighter(), _data([0, 0])
    case = Case(eps="8/255", attack=(AttackSpec("mine", fgsm()),))
    assert [session.record(case, model, data).attacks[0].name for _ in range(2)] == ["mine"] * 2
    assert session.record(Case(eps="8/255", protocol="paper"), model, data).protocol["name"] == "paper"
    assert len(counted) == 3


def test_only_the_last_model_and_data_are_kept() -> None:
    session = EvaluationSession()
    one, two = Case(model="cifarconv-fp", n_examples=2), Case(model="cifarconv-w2a2", n_examples=2)
    first = session.model(one), session.data(one)
    assert (session.model(replace(one, seed=4)), session.data(replace(one, seed=4))) == first
    assert session.model(two) is not first[0]
    assert session.model(one) is not first[0]
    assert len(session.data(replace(one, n_examples=3))) == 3


def test_check_raises_the_errors_of_an_evaluation() -> None:
    good = Case(model="cifarconv-fp", attack=("fgsm",), n_examples=2)
    EvaluationSession().check(good)
    for change in ({"attack": ("fgms",)}, {"eps": "8"}, {"n_examples": 0}, {"device": "?"}, {"dataset": "mnist"}):
        with pytest.raises(EmpirError):
            EvaluationSession().check(replace(good, **change))
    with pytest.raises(InputError, match="a protocol is one of"):
        EvaluationSession().check(replace(good, attack=(), protocol="ours"))
