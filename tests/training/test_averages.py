"""Averages of weights against a column of hand-made numbers."""

from __future__ import annotations

import torch
from torch import nn

from empir_plugin.models.ensemble import Ensemble
from empir_plugin.training.loop import WeightAverage


def _scale(value: float) -> nn.Linear:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, value)
    return layer


def _set(model: nn.Module, value: float) -> None:
    for weight in model.parameters():
        nn.init.constant_(weight, value)


def _weights(average: WeightAverage) -> list[float]:
    return [weight.item() for weight in average.model.parameters()]


def test_an_average_follows_at_its_decay() -> None:
    model = _scale(0.0)
    average = WeightAverage(model, [0.75])
    seen = []
    for value in (4.0, 4.0, -8.0):
        _set(model, value)
        average.update()
        seen += _weights(average)
    assert seen == [1.0, 1.75, -0.6875]


def test_every_member_has_its_own_decay_and_zero_means_none() -> None:
    ensemble = Ensemble([_scale(0.0), _scale(0.0), _scale(0.0)])
    average = WeightAverage(ensemble, [0.5, 0.0, 0.75])
    _set(ensemble, 4.0)
    average.update()
    assert _weights(average) == [2.0, 4.0, 1.0]


def test_running_statistics_follow_too_and_counters_are_copied() -> None:
    model = nn.BatchNorm1d(1)
    average = WeightAverage(model, [0.5])
    model(torch.tensor([[0.0], [20.0]]))
    average.update()
    assert average.model.running_mean.item() == model.running_mean.item() / 2 == 0.5  # type: ignore[union-attr,operator]
    assert average.model.num_batches_tracked == 1


def test_an_average_is_no_part_of_the_graph() -> None:
    average = WeightAverage(_scale(1.0), [0.5])
    assert not any(weight.requires_grad for weight in average.model.parameters())
