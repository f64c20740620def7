"""Square asks a copy, the other parts of AutoAttack the model, and the verdicts stay those of the model."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import AutoAttackSuite, Threat
from empir_plugin.attacks.surrogates import Through, plain
from empir_plugin.evaluation.int8_queries import AutoAttackInput, run_autoattack
from empir_plugin.models.backward import identity
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision

THREAT = Threat.parse("Linf:0.02")


class Counting(nn.Module):
    """Another network's output, and how often it was asked for, with and without gradient."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.asked = network, []

    def forward(self, x: Tensor) -> Tensor:
        self.asked.append(x.requires_grad and torch.is_grad_enabled())
        return self.network(x)


class Lying(nn.Module):
    """Sees a class in everything that nothing has."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([0.0, 0.0, 0.0, 5.0]).repeat(len(x), 1)


def attacked(toys: ModuleType, copy: nn.Module | None) -> AutoAttackInput:
    data = toys.noise_images(24)
    return AutoAttackInput(toys.network(), copy, data.as_float(), data.labels, THREAT, seed=1)


@pytest.mark.parametrize(
    "parts", [("square",), ("apgd-ce", "square"), ("square", "apgd-ce"), ("apgd-ce",)], ids="+".join
)
def test_with_the_model_itself_as_the_copy_everything_is_the_same(toys: ModuleType, parts: tuple[str, ...]) -> None:
    suite = AutoAttackSuite(attacks=parts, queries=20)
    alone, both = (run_autoattack(suite, attacked(toys, copy)) for copy in (None, toys.network()))
    assert torch.equal(both.images, alone.images)
    assert list(both.robust) == list(alone.robust) == ["clean", *parts]
    assert all(torch.equal(both.robust[part], alone.robust[part]) for part in both.robust)
    assert 0 < both.robust[parts[-1]].sum() < both.robust["clean"].sum()


def test_only_square_asks_the_copy(toys: ModuleType) -> None:
    suite, copy = AutoAttackSuite(attacks=("apgd-ce", "square"), queries=20), Counting(toys.network())
    run_autoattack(suite, attacked(toys, copy))
    assert len(copy.asked) > 20
    assert not any(copy.asked)
    unasked = Counting(toys.network())
    run_autoattack(replace(suite, attacks=("apgd-ce",)), attacked(toys, unasked))
    quantized = nn.Sequential(QuantConv2d(1, 4, 3, precision=Precision(2, 2)), nn.Flatten(), nn.Linear(64, 3)).eval()
    inside = AutoAttackSuite(attacks=("square",), surrogate=Through(plain, identity), queries=2)
    run_autoattack(inside, replace(attacked(toys, unasked), model=quantized))
    assert unasked.asked == []


@pytest.mark.parametrize("parts", [("square",), ("apgd-ce", "square")], ids="+".join)
def test_a_copy_that_lies_about_everything_changes_nothing(toys: ModuleType, parts: tuple[str, ...]) -> None:
    suite = AutoAttackSuite(attacks=parts, queries=20)
    alone, lied = (run_autoattack(suite, attacked(toys, copy)) for copy in (None, Lying()))
    assert all(torch.equal(lied.robust[part], alone.robust[part]) for part in alone.robust)
    wrong = ~lied.robust[parts[-1]]
    with torch.no_grad():
        data = toys.noise_images(24)
        assert torch.equal(toys.network()(lied.images).argmax(1) != data.labels, wrong)


def test_nothing_is_left_to_do_where_all_is_wrong(toys: ModuleType) -> None:
    subject = attacked(toys, toys.network())
    wrong = replace(subject, y=(toys.network()(subject.x).argmax(1) + 1) % 3)
    result = run_autoattack(AutoAttackSuite(attacks=("apgd-ce", "square"), queries=20), wrong)
    assert torch.equal(result.images, wrong.x)
    assert not any(robust.any() for robust in result.robust.values())
