"""Evaluations with int8 queries: the same verdicts, and the model itself has the last word."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import AutoAttackSuite, Threat, pgd, uniform_noise
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation import run as run_module
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.int8_queries import Queries
from empir_plugin.evaluation.run import evaluate
from empir_plugin.models.integer import convert as integer
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision

SHARDED = Settings(shard_size=4)


ASKING = [
    AttackSpec("noise", uniform_noise(5)),
    AttackSpec("PGD", pgd(4)),
    AttackSpec("Square", AutoAttackSuite(attacks=("square",), queries=20)),
]


@pytest.fixture
def quantized() -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        conv = QuantConv2d(1, 4, 3, precision=Precision.parse("w2a4"))
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.fixture
def images(toys: ModuleType, quantized: nn.Module) -> ImageSet:
    data = toys.noise_images(24)
    with torch.no_grad():
        labels = quantized(data.as_float()).argmax(1)
    labels[::5] = (labels[::5] + 1) % 3
    return replace(data, labels=labels)


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that every machine has."""
    monkeypatch.setattr(integer, "kernel_for", lambda device: IntMM())


INT8 = replace(SHARDED, int8=True, shard_size=12)
FLOAT = replace(INT8, int8=False)
WEAK = Threat.parse("Linf:0.02")


@pytest.mark.usefixtures("everywhere")
def test_a_copy_on_integers_gives_the_same_verdicts_and_the_record_names_it(
    toys: ModuleType, quantized: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    exact = evaluate(quantized, images, WEAK, ASKING, settings=FLOAT, store=tmp_path)
    stored = len(list(tmp_path.glob("*/*.json")))
    record = evaluate(quantized, images, WEAK, ASKING, settings=INT8, store=tmp_path)
    assert toys.verdicts(record) == toys.verdicts(exact)
    assert 0 < record.worst_case.count("1") < record.clean.count("1") < 24
    assert record.run["backend"] == {"verdicts": "float32", "queries": "int8 (int_mm)", "reason": ""}
    assert exact.run["backend"] == {"verdicts": "float32", "queries": "float32", "reason": ""}
    assert len(list(tmp_path.glob("*/*.json"))) == 2 * stored, "no shard of one kind is taken for the other"


class Lying(nn.Module):
    """Gives the true class of every image, which it finds by its nearest neighbour, the lowest logit."""

    def __init__(self, data: ImageSet) -> None:
        super().__init__()
        self.images, self.labels, self.asked = data.as_float().flatten(1), data.labels, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        nearest = torch.cdist(x.flatten(1), self.images).argmin(1)
        return -5 * nn.functional.one_hot(self.labels[nearest], 3).float()


def test_a_wrong_copy_cannot_break_an_image(
    toys: ModuleType, quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    lying = Lying(images)
    monkeypatch.setattr(run_module, "integer_queries", lambda model, x: Queries("int8 (lies)", lying))
    told = evaluate(quantized, images, WEAK, ASKING, settings=INT8)
    assert lying.asked > 3 * len(images)
    assert toys.verdicts(told) == toys.verdicts(evaluate(quantized, images, WEAK, ASKING, settings=FLOAT))


def test_without_kernels_float32_is_used_and_the_record_says_why(
    toys: ModuleType, quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    record = evaluate(quantized, images, WEAK, ASKING[:1], settings=INT8)
    assert record.run["backend"]["queries"] == "float32"
    assert "lacks oneDNN's int8 kernels" in record.run["backend"]["reason"]
    assert toys.verdicts(record) == toys.verdicts(evaluate(quantized, images, WEAK, ASKING[:1], settings=FLOAT))


@pytest.mark.usefixtures("everywhere")
def test_where_decisions_differ_float32_is_used(
    quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer, "agree", lambda *_: integer.Agreement(1e-6, 1e-7, 1, 24))
    record = evaluate(quantized, images, WEAK, ASKING[:1], settings=INT8)
    assert record.run["backend"]["queries"] == "float32"
    assert record.run["backend"]["reason"] == "on integers, 1 of 24 decisions differ"


@dataclass(frozen=True)
class Meddling:
    """An attack that says it only asks, and changes the mode."""

    queries_only: bool = True

    def __call__(self, model: Any, x: Tensor, y: Tensor, threat: Threat, **rest: Any) -> Tensor:
        model.train()
        return x


@pytest.mark.usefixtures("everywhere")
def test_the_copy_may_not_be_changed_either(quantized: nn.Module, images: ImageSet) -> None:
    with pytest.raises(EvaluationError, match="changed the model"):
        evaluate(quantized, images, WEAK, [AttackSpec("meddling", Meddling())], settings=INT8)


def test_a_model_that_returns_no_logits_is_refused_as_without_int8(images: ImageSet) -> None:
    low = QuantConv2d(1, 3, 6, precision=Precision.parse("w2a4"))
    with pytest.raises(EvaluationError, match="must return logits of shape"):
        evaluate(low, images, WEAK, [], settings=INT8)
