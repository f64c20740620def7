"""ResNet-18 for 32x32 images, in any precision: the network of the benchmark of integer execution."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from empir_plugin.models.architectures.networks import conv2d
from empir_plugin.models.quantize import Precision


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut around them."""

    def __init__(self, inputs: int, outputs: int, stride: int, precision: Precision) -> None:
        super().__init__()
        how = {"bias": False, "precision": precision, "scale": "max"}
        self.conv1 = conv2d(inputs, outputs, 3, stride=stride, padding=1, **how)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv2d(outputs, outputs, 3, padding=1, **how)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(conv2d(inputs, outputs, 1, stride=stride, **how), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``(N, C, H, W)``."""
        y = self.bn1(self.conv1(x)).relu()
        return (self.bn2(self.conv2(y)) + self.shortcut(x)).relu()


class ResNet18(nn.Module):
    """ResNet-18 (He et al., https://arxiv.org/abs/1512.03385) with a 3x3 first convolution.

    The first and the last layer stay in full precision.

    Args:
        precision: Bits of the other layers.
        width: Channels of the first stage, 64 in the paper.
    """

    def __init__(self, precision: Precision, width: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        stages = [
            nn.Sequential(Block(before, after, 1 + (number > 0), precision), Block(after, after, 1, precision))
            for number, (before, after) in enumerate(pairwise(widths))
        ]
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, 10)`` of images ``(N, 3, 32, 32)`` in [0, 1]."""
        x = self.bn1(self.conv1(x)).relu()
        return self.fc(self.stages(x).mean((2, 3)))


@torch.no_grad()
def resnet18(text: str, width: int) -> nn.Module:
    """A network of random weights, with batch statistics from noise."""
    torch.manual_seed(0)
    network = ResNet18(Precision.parse(text), width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    network.train()(torch.rand(16, 3, 32, 32))
    return network.eval()
