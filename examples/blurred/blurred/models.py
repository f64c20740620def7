"""The model ``blurred-cifarconv``: a network behind a blur."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin import ModelBuilder, load_model


class Blurred(nn.Module):
    """A network behind a mean filter of 3x3 pixels. It is no defence.

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
    # These weights are part of empir-plugin. Load the weights of your own model here; if there are none, set
    # `weights_loaded = False` on the model, so that it is not evaluated.
    return Blurred(load_model("cifarconv-fp"))


blurred_cifarconv = ModelBuilder(_build, dataset="cifar10", threats=("Linf", "L2"))
