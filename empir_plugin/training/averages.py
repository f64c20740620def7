"""Exponential moving averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from empir_plugin.models.ensemble import Ensemble


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The members of an ensemble, or the one network itself."""
    return list(model.members) if isinstance(model, Ensemble) else [model]


class WeightAverage:
    """A copy of a network whose weights follow those in training at a distance.

    An ensemble's members have a decay each. The average of a quantized network's latent weights rounds to levels that
    were never trained together, so a low-precision member may do better without.

    Args:
        model: The network in training, or an ensemble.
        decays: For it, or for every member: the share of the average that stays at every step; with 0 the copy equals
            the network.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, [0.75])
        >>> with torch.no_grad():
        ...     model.weight += 1
        >>> average.update()
        >>> (model.weight - average.model.weight).item()
        0.75
    """

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._parts = list(zip(parts_of(self.model), parts_of(model), decays, strict=True))

    def update(self) -> None:
        """Follow one step of training; buffers, such as running statistics, follow like weights."""
        for average, model, decay in self._parts:
            _follow(average, model, decay)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    targets = [*average.parameters(), *average.buffers()]
    sources = [*model.parameters(), *model.buffers()]
    for target, source in zip(targets, sources, strict=True):
        if decay and target.is_floating_point():
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)
