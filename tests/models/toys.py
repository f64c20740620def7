"""Small quantized layers and inputs of them, for the tests of models."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.quantize import Precision, Scale


def conv(text: str = "w2a4", *, bias: bool = False, scale: Scale = "none", seed: int = 0) -> QuantConv2d:
    torch.manual_seed(seed)
    return QuantConv2d(2, 4, 3, padding=1, stride=2, bias=bias, precision=Precision.parse(text), scale=scale)


def linear(text: str = "w2a4", *, bias: bool = False, scale: Scale = "none", seed: int = 0) -> QuantLinear:
    torch.manual_seed(seed)
    return QuantLinear(6, 3, bias=bias, precision=Precision.parse(text), scale=scale)


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(2, 2, 3), nn.Sequential(conv("w2a4"), nn.ReLU()), nn.Flatten(), linear("w4a32"))


def inputs(layer: nn.Module, seed: int = 1) -> Tensor:
    """Some below 0, some above 1."""
    shape = (5, 2, 7, 7) if isinstance(layer, nn.Conv2d) else (5, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + 0.5
