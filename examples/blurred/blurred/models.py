"""A model by name."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin import ModelBuilder, load_model


class Blurred(nn.Module):
    """A network that sees every image through a mean filter of 3x3 pixels. It is no defence.

    Args:
        network: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)`` in [0, 1]."""
        return self.network(F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1))


def _build(*, num_classes: int) -> nn.Module:
    # The weights travel with empir-plugin. A model of your own loads its own here, and sets `weights_loaded = False` on
    # itself where it finds none: nothing evaluates it then.
    return Blurred(load_model("cifarconv-fp"))


blurred_cifarconv = ModelBuilder(_build, dataset="cifar10", threats=("Linf", "L2"))
