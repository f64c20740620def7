"""A copy on integers answers queries; what counts against the model is for the model to say."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import Transfer, bim, fgsm, gaussian_noise, pgd, uniform_noise
from empir_plugin.errors import InputError
from empir_plugin.evaluation.int8_queries import (
    Queries,
    agree_on_backend,
    attack_copy_first,
    integer_queries,
    never_differentiates,
)
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer import convert as integer_module
from empir_plugin.models.integer.kernels import IntegerOp, IntMM, Program
from empir_plugin.models.integer.selftest import Agreement
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision

CPU = torch.device("cpu")


def network(precision: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        conv = QuantConv2d(1, 4, 3, precision=Precision.parse(precision))
        return prepare(nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)), CPU)


def images() -> Tensor:
    return torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that every machine has."""
    monkeypatch.setattr(integer_module, "kernel_for", lambda device: IntMM())


# A copy, or the reason why there is none.


@pytest.mark.usefixtures("everywhere")
def test_a_quantized_network_gets_a_copy_that_decides_like_it() -> None:
    model = network("w2a2")
    found = integer_queries(model, images())
    assert (found.backend, found.reason) == ("int8 (int_mm)", "")
    assert found.copy is not None
    assert found.copy is not model
    with torch.no_grad():
        assert torch.allclose(found.copy(images()), model(images()), atol=1e-5)
    assert found.to_table() == {"verdicts": "float32", "queries": "int8 (int_mm)", "reason": ""}


@pytest.mark.usefixtures("everywhere")
def test_the_copy_of_an_ensemble_has_its_members_and_no_gradient() -> None:
    model = prepare(Ensemble([network("w2a2"), network("w4a4", 1), network("fp", 2)]), CPU)
    copy = integer_queries(model, images()).copy
    assert isinstance(copy, Ensemble)
    assert (len(copy.members), copy.leader) == (3, 2)
    with pytest.raises(InputError, match="integers have no gradient"):
        copy(images().requires_grad_(True))


def test_without_kernels_the_model_itself_answers_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    found = integer_queries(network("w2a2"), images())
    assert (found.backend, found.copy) == ("float32", None)
    assert "lacks oneDNN's int8 kernels" in found.reason


@dataclass(frozen=True)
class Wrong(IntMM):
    """A kernel that is off by one."""

    def compile(self, op: IntegerOp) -> Program:
        program = super().compile(op)
        return lambda codes: program(codes) + op.scale.view(1, -1, 1, 1)


def test_a_kernel_that_fails_its_self_test_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_module, "kernel_for", lambda device: Wrong())
    found = integer_queries(network("w2a2"))
    assert found.copy is None
    assert "is not exact here" in found.reason


@pytest.mark.usefixtures("everywhere")
def test_a_copy_that_decides_otherwise_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_module, "agree", lambda *_: Agreement(1e-6, 1e-7, 2, 30))
    found = integer_queries(network("w2a2"), images())
    assert (found.backend, found.copy) == ("float32", None)
    assert found.reason == "on integers, 2 of 30 decisions differ"


def test_a_network_in_full_precision_has_nothing_to_run_on_integers() -> None:
    assert integer_queries(network("fp")).reason == "no layer of the model is quantized"


def test_all_processes_or_none() -> None:
    mine = Queries("int8 (onednn)", nn.Flatten())
    alike: Any = SimpleNamespace(gather=lambda text: [text, text])
    unlike: Any = SimpleNamespace(gather=lambda text: [text, "float32"])
    assert agree_on_backend(mine, alike) is mine
    found = agree_on_backend(mine, unlike)
    assert (found.backend, found.copy) == ("float32", None)
    assert found.reason == "the processes differ in what they can run: float32, int8 (onednn)"


# Which attacks ask it.


def test_attacks_that_never_ask_for_a_gradient() -> None:
    asking = [uniform_noise(3), gaussian_noise(), Transfer(nn.Flatten(), bim(2)), SimpleNamespace(queries_only=True)]
    assert [never_differentiates(attack) for attack in asking] == [True] * 4  # type: ignore[arg-type]
    others = [fgsm(), pgd(2), SimpleNamespace(queries_only=0), SimpleNamespace()]
    assert [never_differentiates(attack) for attack in others] == [False] * 4  # type: ignore[arg-type]


# The last word.


class Shifted(nn.Module):
    """Class 1 from a threshold on, else class 0."""

    def __init__(self, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1).sum(1)
        return torch.stack([torch.zeros_like(value), value - self.threshold], 1)


def test_what_falls_on_the_copy_alone_is_attacked_again_on_the_model(toys: ModuleType) -> None:
    model, copy, asked = Shifted(0.5), Shifted(0.3), []
    x, labels = torch.tensor([0.15, 0.2, 0.35, 0.0]).view(4, 1, 1, 1), torch.zeros(4, dtype=torch.int64)

    def run(on: nn.Module, rows: Tensor) -> Tensor:
        asked.append((on, rows.tolist()))
        brighter = x[rows] + (0.2 if on is copy else 0.32)
        fell = on(brighter).argmax(1).bool().view(-1, 1, 1, 1)
        return torch.where(fell, brighter, x[rows])

    made = attack_copy_first(run, model, copy, torch.arange(4), labels)
    # On the copy 0.35, 0.4 and 0.55 fall, on the model only 0.55; its own attack then ends at 0.47 and at 0.52.
    assert asked == [(copy, [0, 1, 2, 3]), (model, [0, 1])]
    assert made.flatten().tolist() == pytest.approx([0.15, 0.52, 0.55, 0.0])


def test_where_the_two_agree_nothing_is_attacked_twice(toys: ModuleType) -> None:
    model, calls = Shifted(0.5), []

    def run(on: nn.Module, rows: Tensor) -> Tensor:
        calls.append(on)
        return torch.full((len(rows), 1, 1, 1), 0.9)

    attack_copy_first(run, model, Shifted(0.5), torch.arange(3), torch.tensor([0, 1, 0]))
    assert len(calls) == 1
