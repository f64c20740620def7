"""Latent weights for packed ones: what packing drops, made up again so that quantizing gives the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from empir_plugin.models.binary import AnyWeightQuantizer
from empir_plugin.models.quantize import WeightQuantizer


def latent_weights(quantizer: AnyWeightQuantizer, weight: Tensor) -> Tensor:
    """Latent weights that quantize to ``weight``: to the same codes exactly, to the same scale up to rounding."""
    if not isinstance(quantizer, WeightQuantizer) or quantizer.bits == 1:
        return weight.clone()
    largest = weight.abs().max()
    tiny = torch.finfo(weight.dtype).tiny
    if largest < (1 if quantizer.scale == "none" else tiny):
        return weight * tiny  # so does a layer of zeros come out, whose maximum the quantizer bounds by this number
    levels = (weight / largest).double()
    # tanh undoes atanh, and the division by the maximum undoes the amplitude.
    return (levels * _AMPLITUDES[quantizer.scale](levels, largest.double())).atanh().float()


def _amplitude_of_mean(levels: Tensor, mean: Tensor) -> Tensor:
    """The amplitude ``m`` for which ``mean|atanh(m * levels)|`` is ``mean``, by bisection."""
    low, high = torch.zeros_like(mean), torch.ones_like(mean)
    for _ in range(60):
        middle = (low + high) / 2
        too_small = (levels * middle).atanh().abs().mean() < mean
        low, high = torch.where(too_small, middle, low), torch.where(too_small, high, middle)
    return low


_AMPLITUDES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {
        "none": lambda levels, largest: largest.new_tensor(math.tanh(1.0)),
        "max": lambda levels, largest: largest.clamp_max(1 - 1e-7),
        "mean": _amplitude_of_mean,
    }
)
