"""Building blocks of the architectures: layers of any precision, initialisation, normalisation of images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale


def conv2d(*args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> nn.Conv2d:
    """A convolution of the given precision; the arguments are those of :class:`torch.nn.Conv2d`."""
    if precision.is_full:
        return nn.Conv2d(*args, **kwargs)
    return QuantConv2d(*args, precision=precision, scale=scale, **kwargs)


def linear(*args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> nn.Linear:
    """A linear layer of the given precision; the arguments are those of :class:`torch.nn.Linear`."""
    if precision.is_full:
        return nn.Linear(*args, **kwargs)
    return QuantLinear(*args, precision=precision, scale=scale, **kwargs)


@torch.no_grad()
def unit_norm_(layer: nn.Conv2d | nn.Linear) -> None:
    """Initialise as the release does: normal weights, every filter or output unit scaled to L2 norm 1, no bias.

    The standard deviation cancels in the scaling; only the release's truncation at two of them has an effect.
    """
    if isinstance(layer, nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=1.0, a=-2.0, b=2.0)
    else:
        nn.init.normal_(layer.weight)
    layer.weight /= layer.weight.flatten(1).norm(dim=1).view(-1, *[1] * (layer.weight.dim() - 1)) + 1e-7
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Normalize(nn.Module):
    """Normalise images in [0, 1]: subtract a mean and divide by a standard deviation per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images ``(N, C, H, W)``."""
        return (x - self.mean) / self.std


class UntiedBias(nn.Module):
    """One bias for every output position ``(C, H, W)``, as in conv1 of the release's AlexNet."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, height, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias to features ``(N, C, H, W)``."""
        return x + self.bias
