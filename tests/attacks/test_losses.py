"""Losses by hand, on log-probabilities, and on too few classes."""

import math

import pytest
import torch

from empir_plugin.attacks.losses import CrossEntropy, Dlr, Loss, cross_entropy, dlr, margin, parse_loss, softmax_twice
from empir_plugin.errors import InputError

LOGITS = torch.tensor([[4.0, 1.0, 2.0, 0.0], [0.0, 3.0, 1.0, 2.5]], dtype=torch.float64)
Y = torch.tensor([0, 3])
TARGETS = torch.tensor([2, 1])


def log_sum(values: list[float]) -> float:
    return math.log(sum(map(math.exp, values)))


def test_cross_entropy_by_hand() -> None:
    expected = [log_sum([4, 1, 2, 0]) - 4, log_sum([0, 3, 1, 2.5]) - 2.5]
    assert cross_entropy(LOGITS, Y).tolist() == pytest.approx(expected)
    expected = [2 - log_sum([4, 1, 2, 0]), 3 - log_sum([0, 3, 1, 2.5])]
    assert cross_entropy(LOGITS, Y, TARGETS).tolist() == pytest.approx(expected)


def test_temperature_by_hand() -> None:
    assert CrossEntropy(2.0)(LOGITS, Y)[0].item() == pytest.approx(log_sum([2, 0.5, 1, 0]) - 2)


def test_temperature_restores_a_saturated_gradient() -> None:
    logits = torch.tensor([[400.0, 0.0]], requires_grad=True)
    (saturated,) = torch.autograd.grad(cross_entropy(logits, torch.tensor([0])).sum(), logits)
    (restored,) = torch.autograd.grad(CrossEntropy(100.0)(logits, torch.tensor([0])).sum(), logits)
    assert saturated.abs().sum() == 0
    assert restored.abs().sum() > 0


def test_margin_by_hand() -> None:
    assert margin(LOGITS, Y).tolist() == [-2.0, 0.5]
    assert margin(LOGITS, Y, TARGETS).tolist() == [-2.0, 0.5]
    assert margin(LOGITS, Y, torch.tensor([0, 0])).tolist() == [2.0, -3.0]


def test_dlr_by_hand() -> None:
    assert dlr(LOGITS, Y).tolist() == pytest.approx([-2 / 3, 0.5 / 2.0])
    assert dlr(LOGITS, Y, TARGETS).tolist() == pytest.approx([-2 / 3.5, 0.5 / 2.5])


def test_dlr_is_invariant_to_scale() -> None:
    torch.testing.assert_close(dlr(LOGITS * 1000, Y), dlr(LOGITS, Y))
    torch.testing.assert_close(dlr(LOGITS * 1000, Y, TARGETS), dlr(LOGITS, Y, TARGETS))


def test_softmax_twice_by_hand() -> None:
    p = LOGITS[0].softmax(0).tolist()
    assert softmax_twice(LOGITS, Y)[0].item() == pytest.approx(log_sum(p) - p[0])


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr, softmax_twice])
def test_losses_take_log_probabilities(loss: Loss) -> None:
    torch.testing.assert_close(loss(LOGITS.log_softmax(1), Y), loss(LOGITS, Y))


@pytest.mark.parametrize("loss", [cross_entropy, margin, dlr, softmax_twice])
def test_higher_is_more_adversarial(loss: Loss) -> None:
    y = torch.tensor([0])
    good, bad = torch.tensor([[5.0, 1.0, 0.0, -1.0]]), torch.tensor([[1.0, 5.0, 0.0, -1.0]])
    assert loss(bad, y) > loss(good, y)
    target = torch.tensor([1])
    assert loss(bad, y, target) > loss(good, y, target)


def test_too_few_classes() -> None:
    two, three = torch.zeros(1, 2), torch.zeros(1, 3)
    zero = torch.tensor([0])
    with pytest.raises(InputError, match=r"dlr .*3 classes, got 2: use cross_entropy"):
        dlr(two, zero)
    with pytest.raises(InputError, match=r"targeted dlr .*4 classes, got 3: use cross_entropy"):
        dlr(three, zero, zero)
    with pytest.raises(InputError, match=r"margin .*2 classes, got 1"):
        margin(torch.zeros(1, 1), zero)


def test_parsing() -> None:
    assert parse_loss("dlr") == Dlr()
    with pytest.raises(InputError, match=r"cross_entropy, margin.*got 'ce'"):
        parse_loss("ce")


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(InputError, match=rf"temperature .*above 0, got {temperature}"):
        CrossEntropy(temperature)
