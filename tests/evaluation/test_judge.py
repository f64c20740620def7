"""The judge takes nobody's word: not the attack's about its perturbation, not the model's about its output."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.judge import check_attack_result, correct, decisions

LINF = Threat.parse("Linf:8/255")
L2 = Threat.parse("L2:0.5")
X = torch.rand(5, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 0.5 + 0.25


class Returns(nn.Module):
    def __init__(self, output: object) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output


def test_what_lies_on_the_border_is_allowed() -> None:
    assert torch.equal(check_attack_result(X, X + 8 / 255, LINF), X + 8 / 255)
    direction = torch.ones_like(X) * 0.5 / math.sqrt(X[0].numel())
    check_attack_result(X, X + direction, L2)


@pytest.mark.parametrize("eps", [1e-4, 1e-3, 8 / 255, 0.3])
@pytest.mark.parametrize("text", ["Linf", "L2"])
def test_rounding_of_pixels_is_no_cheating(eps: float, text: str) -> None:
    threat = Threat(Threat.parse(f"{text}:1").norm, eps)
    images = torch.rand(200, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    delta = torch.randn(images.shape, generator=torch.Generator().manual_seed(2))
    adversarial = (images + threat.norm.project(100 * delta, eps)).clamp(0, 1)
    check_attack_result(images, adversarial, threat)


@pytest.mark.parametrize("threat", [LINF, L2, Threat.parse("Linf:0.001")], ids=str)
def test_a_perturbation_a_little_too_large_is_void(threat: Threat) -> None:
    delta = torch.zeros_like(X)
    delta[3, 0, 0, 0] = 1.001 * threat.eps
    with pytest.raises(EvaluationError, match=r"left its budget .*image 3"):
        check_attack_result(X, (X + delta).clamp(0, 1), threat)


@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6, -0.01, 2.0, math.inf, -math.inf])
def test_pixels_outside_the_box_are_void(value: float) -> None:
    adversarial = X.clone()
    adversarial[1, 2, 3, 4] = value
    with pytest.raises(EvaluationError, match=r"left \[0, 1\]"):
        check_attack_result(X, adversarial, Threat.parse("L2:inf"))


def test_nan_pixels_are_void() -> None:
    adversarial = X.clone()
    adversarial[1, 2, 3, 4] = math.nan
    with pytest.raises(EvaluationError, match="NaN pixels"):
        check_attack_result(X, adversarial, LINF)


@pytest.mark.parametrize(
    "result",
    [None, X.numpy(), X[:4], X.double(), X[:, :1], X.flatten(1)],
    ids=["none", "numpy", "n", "type", "c", "2d"],
)
def test_what_is_no_image_like_the_given_is_void(result: object) -> None:
    with pytest.raises(EvaluationError, match="must return"):
        check_attack_result(X, result, LINF)


def test_an_unlimited_threat_limits_only_the_box() -> None:
    check_attack_result(X, 1 - X, Threat.parse("L2:inf"))


def test_a_result_with_history_is_detached() -> None:
    assert not check_attack_result(X, X.clone().requires_grad_(True) * 1, LINF).requires_grad


def test_decisions_are_the_argmax_whatever_the_batch() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, -1.0, 0.0], [0.0, 0.0, 0.5]])
    images = logits.view(3, 3, 1, 1)
    for batch_size in (1, 2, 3, 100):
        assert decisions(nn.Flatten(), images, num_classes=3, batch_size=batch_size).tolist() == [1, 0, 2]
    assert correct(nn.Flatten(), images, torch.tensor([1, 1, 2])).tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (torch.zeros(5), "logits of shape"),
        (torch.zeros(5, 9), "another data set"),
        (torch.zeros(4, 10), "logits of shape"),
        (torch.zeros(5, 10, 1), "one row per image"),
        ((torch.zeros(5, 10),), "got a tuple"),
        (torch.full((5, 10), math.nan), "NaN"),
        (torch.zeros(5, 10, dtype=torch.int64), "floating-point logits, got torch.int64"),
        (torch.zeros(5, 10, dtype=torch.complex64), "real numbers as logits, got torch.complex64"),
        (torch.zeros(5, 10).index_fill(1, torch.tensor([3]), math.nan), "NaN"),
    ],
)
def test_what_are_no_logits_is_refused(output: object, sentence: str) -> None:
    with pytest.raises(EvaluationError, match=sentence):
        decisions(Returns(output), X, num_classes=10)


@pytest.mark.parametrize(
    "probabilities", [torch.randn(5, 10).softmax(1), torch.eye(10)[:5]], ids=["softmax", "one-hot"]
)
def test_probabilities_are_refused_where_asked_for(probabilities: Tensor) -> None:
    with pytest.raises(EvaluationError, match="remove its softmax"):
        decisions(Returns(probabilities), X, refuse_probabilities=True)
    decisions(Returns(probabilities), X)
    decisions(Returns(probabilities.log()), X, refuse_probabilities=True)
