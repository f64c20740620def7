"""A linear model with known distances to its decision boundary, and small networks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """A hyperplane separates classes 0 and 1, and classes 2 and 3 never win: the smallest perturbation is known."""

    def __init__(self, shape: tuple[int, int, int] = (3, 4, 4)) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.w = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

    def score(self, x: Tensor) -> Tensor:
        return ((x - 0.5) * self.w).sum((1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        score = self.score(x)
        low = torch.full_like(score, -50.0)
        return torch.stack([-score, score, low, low - 1], 1)

    def distance(self, x: Tensor, norm: str) -> Tensor:
        w = self.w.detach()
        dual = w.abs().sum() if norm == "Linf" else w.square().sum().sqrt()
        return self.score(x).detach().abs() / dual


@pytest.fixture
def linear() -> Linear:
    return Linear()


@pytest.fixture
def near_middle(linear: Linear) -> Tensor:
    """Images on both sides of the hyperplane, all at the same distance, and far from the borders of the box."""
    noise = 0.05 * torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w = linear.w.detach()
    scores = torch.tensor([0.4, -0.4] * 8, dtype=torch.float64)
    missing = scores - (noise * w).sum((1, 2, 3))
    return 0.5 + noise + missing.view(-1, 1, 1, 1) * w / w.square().sum()


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    layers = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    return layers.double().eval()


@pytest.fixture
def small_network() -> nn.Module:
    return network(0)


@pytest.fixture
def small_members() -> list[nn.Module]:
    return [network(seed) for seed in range(3)]


@pytest.fixture
def images() -> Tensor:
    return torch.rand(24, 3, 8, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
