"""A small network and images of it, for the tests of conversions."""

from __future__ import annotations

import torch
from torch import nn

IMAGES = torch.rand(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(*, norm: bool = True, act: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        act or nn.ReLU(),
        nn.Conv2d(6, 6, 3, bias=False),
        nn.Flatten(),
        nn.Linear(96, 12),
        nn.Linear(12, 4),
    ).eval()
