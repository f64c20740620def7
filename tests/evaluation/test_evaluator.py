"""The evaluator: attacks that break the rules are caught and named, and the judge decides by the true labels."""

from __future__ import annotations

import math
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import Threat, pgd
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate

THREAT = Threat.parse("Linf:8/255")
DIFFERENCES = [1, 7, 9, 20, -1, -7, -9, -20, 3, -12]
LABELS = [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
CLEAN = "1111111100"
SHARDED = Settings(shard_size=4)


def run(toys: ModuleType, attacks: Any, **rest: Any) -> Record:
    data = toys.pairs(DIFFERENCES, LABELS)
    plan = [AttackSpec(name, attack) for name, attack in attacks.items()] if isinstance(attacks, dict) else attacks
    return evaluate(toys.Compare(), data, THREAT, plan, **{"settings": Settings(shard_size=4, batch_size=3), **rest})


# Nobody is believed.


def too_far(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return (x + 9 / 255).clamp(0, 1)


def outside(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x - 1


def not_a_number(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x * math.nan


def too_few(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x[:-1]


def nothing(model: nn.Module, x: Tensor, y: Tensor) -> None:
    return None


def in_place(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return x.copy_(1 - x)


def new_weights(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        next(model.parameters()).zero_()
    return x


def new_weights_behind_the_back(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    next(model.parameters()).data.add_(0.5)
    return x


def train_mode(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    model.train()
    return x


def raising(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    raise ZeroDivisionError("\x1b[31mby design\x1b[0m\nand more")


@pytest.mark.parametrize(
    ("cheat", "sentence"),
    [
        (too_far, "left its budget"), (outside, "left"), (not_a_number, "NaN"), (too_few, "must return images like"),
        (nothing, "got a NoneType"), (in_place, "left its budget"), (new_weights, r"changed the model \(0\.weight"),
        (new_weights_behind_the_back, r"changed the model \(0\.weight\)"),
        (train_mode, r"changed the model \(its mode\)"),
        (raising, "failed on .* with ZeroDivisionError: by design$"),
    ],
)  # fmt: skip
def test_cheating_is_caught_and_located(toys: ModuleType, cheat: Callable[..., object], sentence: str) -> None:
    data = toys.noise_images()
    with pytest.raises(EvaluationError, match=sentence) as caught:
        evaluate(
            toys.network(), data, THREAT, [AttackSpec("cheat", toys.Does(cheat))], settings=Settings(shard_size=16)
        )
    assert "cheat" in str(caught.value)
    assert "shard 0 (images 0 to 15)" in str(caught.value)


def relabelling(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    y.zero_()
    return x.add_(0)


def test_labels_are_the_judges_own(toys: ModuleType) -> None:
    assert run(toys, {"relabelling": toys.Does(relabelling)}).worst_case == CLEAN


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (nn.Softmax(1), "remove its softmax"),
        (nn.Linear(3, 7), "another data set"),
        (nn.Threshold(1e9, math.nan), "NaN"),
        (nn.Unflatten(1, (3, 1)), "one row per image"),
    ],
)
def test_models_that_do_not_return_logits_are_refused(toys: ModuleType, output: nn.Module, sentence: str) -> None:
    model = nn.Sequential(toys.Compare(), output)
    with pytest.raises(EvaluationError, match=rf"the clean images, shard 0 .*{sentence}"):
        evaluate(model, toys.pairs(DIFFERENCES, LABELS), THREAT, [])


def test_numbers_that_are_not_real_are_refused(toys: ModuleType) -> None:
    class Complex(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to(torch.complex64)

    with pytest.raises(EvaluationError, match=r"real numbers as logits, got torch\.complex64"):
        evaluate(nn.Sequential(toys.Compare(), Complex()), toys.pairs(DIFFERENCES, LABELS), THREAT, [])


def test_a_call_that_cannot_be_evaluated_is_refused_before_anything_runs(toys: ModuleType) -> None:
    class Untouched(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise AssertionError("the model ran")

    data = toys.pairs(DIFFERENCES, LABELS)
    for other in (data.as_float(), None):
        with pytest.raises(InputError, match=rf"ImageSet, .*got a {type(other).__name__}: call load_images"):
            evaluate(Untouched(), other, THREAT, [])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"Threat or a text such as 'Linf:8/255', got 0\.03"):
        evaluate(Untouched(), data, 0.03, [])  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"a torch\.nn\.Module, got 'empir-cifar': pass load_model"):
        evaluate("empir-cifar", data, THREAT, [])  # type: ignore[arg-type]
    with torch.inference_mode(), pytest.raises(InputError, match=r"torch\.inference_mode\(\): call it outside"):
        evaluate(Untouched(), data, THREAT, [])


def test_a_model_and_data_made_inside_inference_mode_are_evaluated(toys: ModuleType) -> None:
    with torch.inference_mode():
        model, data = toys.network(), toys.noise_images()
    attacks = [AttackSpec("PGD", pgd(3))]
    record = evaluate(model, data, THREAT, attacks)
    assert record.worst_case == evaluate(toys.network(), toys.noise_images(), THREAT, attacks).worst_case
