"""Kernels, and a residual network, for the tests of integer execution."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.models.integer.kernels import IntegerOp, IntMM, Kernel, OneDNN, Program
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision

CPU = torch.device("cpu")


def _if_usable(kernel: Kernel) -> Any:
    reason = kernel.unusable(CPU)
    return pytest.param(kernel, id=kernel.name, marks=pytest.mark.skipif(reason is not None, reason=reason or ""))


ONEDNN = _if_usable(OneDNN())
KERNELS = [ONEDNN, _if_usable(IntMM())]


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest) -> Kernel:
    """Every kernel that runs on the CPU."""
    return request.param


@dataclass(frozen=True)
class Altered:
    """A kernel that computes something else."""

    change: Callable[[IntegerOp], IntegerOp] = lambda op: op
    after: Callable[[Tensor], Tensor] = lambda y: y
    name: str = "altered"

    def unusable(self, device: torch.device) -> str | None:
        return None

    def compile(self, op: IntegerOp) -> Program:
        program = IntMM().compile(self.change(op))
        return lambda codes: self.after(program(codes))


@pytest.fixture
def altered() -> Callable[..., Altered]:
    """Makes a kernel that computes something else."""
    return Altered


def _conv(text: str, *, seed: int) -> QuantConv2d:
    torch.manual_seed(seed)
    return QuantConv2d(4, 6, 3, padding=1, bias=False, precision=Precision.parse(text), scale="max").eval()


class Block(nn.Module):
    """A residual block: one input to two convolutions, batch normalisation, and an addition in float."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv1, self.bn1 = _conv(text, seed=0), nn.BatchNorm2d(6)
        self.conv2 = QuantConv2d(6, 6, 3, padding=1, precision=Precision.parse(text), scale="max")
        self.bn2 = nn.BatchNorm2d(6)
        self.short, self.bn3 = _conv(text, seed=1), nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)))
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)) + self.bn3(self.short(x)))
        return self.fc(y.mean((2, 3)))


@pytest.fixture
def block() -> Callable[..., Block]:
    """Builds a residual block of a precision, in evaluation mode."""

    def build(text: str = "w4a4") -> Block:
        torch.manual_seed(3)
        network = Block(text).train()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
                nn.init.uniform_(module.weight, -1.5, 1.5)  # negative ones turn the order of values around
                nn.init.uniform_(module.bias, 0.0, 0.6)
        network(torch.rand(32, 3, 8, 8))
        return network.eval()

    return build
