"""Evaluations on int8 kernels: the same verdicts, and float32 where a kernel is missing or not exact."""

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
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation import evaluator
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.run import evaluate
from empir_plugin.models.ensemble import Ensemble
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


INT8 = replace(SHARDED, shard_size=12)
FLOAT = replace(INT8, int8=False)
WEAK = Threat.parse("Linf:0.02")


@pytest.mark.usefixtures("everywhere")
def test_integers_give_the_same_verdicts_and_share_the_cache(
    toys: ModuleType, quantized: nn.Module, images: ImageSet, tmp_path: Path
) -> None:
    exact = evaluate(quantized, images, WEAK, ASKING, settings=FLOAT, store=tmp_path)
    stored = len(list(tmp_path.glob("*/*.json")))
    record = evaluate(quantized, images, WEAK, ASKING, settings=INT8)
    assert toys.verdicts(record) == toys.verdicts(exact)
    assert 0 < record.worst_case.count("1") < record.clean.count("1") < 24
    int8, float32, gradients = "int8 (int_mm)", "float32", "int8 (int_mm) forward, float32 backward"
    assert record.run["backend"] == {"verdicts": int8, "queries": int8, "gradients": gradients, "reason": ""}
    off = {"verdicts": float32, "queries": float32, "gradients": float32, "reason": "int8 kernels are turned off"}
    assert exact.run["backend"] == off
    evaluate(quantized, images, WEAK, ASKING, settings=INT8, store=tmp_path)
    assert len(list(tmp_path.glob("*/*.json"))) == stored, "the verdicts are the same, so the shards are"


@pytest.mark.usefixtures("everywhere")
def test_int8_kernels_run_by_default_and_only_without_gradients(
    quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    run = integer.IntegerModel.forward
    monkeypatch.setattr(
        integer.IntegerModel, "forward", lambda self, x: (asked.append(torch.is_grad_enabled()), run(self, x))[1]
    )
    evaluate(quantized, images, WEAK, ASKING[:2])
    assert len(asked) > 3
    assert not any(asked)


@pytest.mark.usefixtures("everywhere")
def test_gradients_in_bfloat16_are_recorded_and_have_shards_of_their_own(
    quantized: nn.Module, images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer, "_without_bf16", lambda device: "")
    evaluate(quantized, images, WEAK, ASKING[1:2], settings=INT8, store=tmp_path)
    stored = len(list(tmp_path.glob("*/*.json")))
    record = evaluate(quantized, images, WEAK, ASKING[1:2], settings=replace(INT8, gradients="bf16"), store=tmp_path)
    assert record.run["backend"]["gradients"] == "int8 (int_mm) forward, bf16 backward"
    assert len(list(tmp_path.glob("*/*.json"))) == 2 * stored


def test_another_arithmetic_of_gradients_is_refused() -> None:
    with pytest.raises(InputError, match=r"gradients must be 'float32' or 'bf16', got 'float16'"):
        Settings(gradients="float16")


def test_without_kernels_float32_is_used_and_the_record_says_why(
    toys: ModuleType, quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    record = evaluate(quantized, images, WEAK, ASKING[:1], settings=INT8)
    assert record.run["backend"]["queries"] == "float32"
    assert "lacks oneDNN's int8 kernels" in record.run["backend"]["reason"]
    assert toys.verdicts(record) == toys.verdicts(evaluate(quantized, images, WEAK, ASKING[:1], settings=FLOAT))


@pytest.mark.usefixtures("everywhere")
def test_where_a_bit_differs_float32_is_used(
    quantized: nn.Module, images: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(integer, "agree", lambda *_: integer.Agreement(1e-7, 1e-9, 0, 24))
    record = evaluate(quantized, images, WEAK, ASKING[:1], settings=INT8)
    assert record.run["backend"]["queries"] == "float32"
    assert record.run["backend"]["reason"] == "the whole network's logits differ from the model's"


@pytest.mark.usefixtures("everywhere")
def test_members_of_an_ensemble_on_integers_are_within_reach(quantized: nn.Module, images: ImageSet) -> None:
    record = evaluate(Ensemble([quantized, quantized]), images, WEAK, ASKING[1:2], settings=INT8)
    assert record.run["backend"]["verdicts"] == "int8 (int_mm)"
    assert record.flags == ()
    (flag,) = evaluate(nn.Sequential(nn.ReLU(), Ensemble([quantized])), images, WEAK, ASKING[1:2], settings=INT8).flags
    assert "members were not reached" in flag


def test_a_network_of_full_precision_runs_in_float32(images: ImageSet) -> None:
    record = evaluate(nn.Sequential(nn.Flatten(), nn.Linear(36, 3)), images, WEAK, ASKING[:1])
    assert record.run["backend"]["verdicts"] == "float32"
    assert record.run["backend"]["reason"] == "no layer of the model is quantized"


@dataclass(frozen=True)
class Meddling:
    """An attack that changes the mode."""

    def __call__(self, model: Any, x: Tensor, y: Tensor, threat: Threat, **rest: Any) -> Tensor:
        model.train()
        return x


@pytest.mark.usefixtures("everywhere")
def test_an_attack_may_not_change_the_model(quantized: nn.Module, images: ImageSet) -> None:
    with pytest.raises(EvaluationError, match="changed the model"):
        evaluate(quantized, images, WEAK, [AttackSpec("meddling", Meddling())], settings=INT8)


def test_a_model_that_returns_no_logits_is_refused_as_without_int8(images: ImageSet) -> None:
    low = QuantConv2d(1, 3, 6, precision=Precision.parse("w2a4"))
    with pytest.raises(EvaluationError, match="must return logits of shape"):
        evaluate(low, images, WEAK, [], settings=INT8)


class Drawing(nn.Module):
    """Adds the same noise to all images of a batch, another one in every pass."""

    def __init__(self, model: nn.Module, size: float) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x + self.size * torch.randn(x.shape[1:] if isinstance(x, Tensor) else (1, 6, 6)))


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("settings", [INT8, FLOAT], ids=["int8", "float32"])
def test_random_numbers_of_the_caller_go_on_undisturbed(
    quantized: nn.Module, images: ImageSet, settings: Settings
) -> None:
    torch.manual_seed(6)
    expected = torch.rand(4)
    torch.manual_seed(6)
    evaluate(Drawing(quantized, 1e-6), images, WEAK, ASKING[:1], settings=settings)
    assert torch.equal(torch.rand(4), expected)


class Purifying(nn.Module):
    """Moves its images along a gradient of its own before it decides."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            start = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(self.model(start).logsumexp(1).sum(), start)
        return self.model((x + 0.02 * gradient.sign()).clamp(0, 1))


@pytest.mark.usefixtures("everywhere")
def test_a_model_that_differentiates_in_its_forward_pass_runs_in_float32(
    toys: ModuleType, quantized: nn.Module, images: ImageSet
) -> None:
    record, expected = (evaluate(Purifying(quantized), images, WEAK, ASKING, settings=each) for each in (INT8, FLOAT))
    assert toys.verdicts(record) == toys.verdicts(expected)
    assert record.run["backend"]["verdicts"] == "float32"


class Standardizing(nn.Module):
    """Divides by the standard deviation of each image, which is zero for a plain one."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True))


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("settings", [INT8, FLOAT], ids=["int8", "float32"])
def test_nan_is_refused_also_if_the_first_images_have_none(
    quantized: nn.Module, images: ImageSet, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluator, "_COMPARED", 8)
    pixels = images.images.clone()
    pixels[20] = 128
    with pytest.raises(EvaluationError, match="the model returned NaN"):
        evaluate(Standardizing(quantized), replace(images, images=pixels), WEAK, ASKING[:1], settings=settings)
