"""MNISTconv of EMPIR's release: three convolutions and a linear layer, no bias, no normalisation."""

from __future__ import annotations

from torch import Tensor, nn

from empir_plugin.models.architectures.blocks import conv2d, unit_norm_
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale


class MNISTConv(nn.Module):
    """MNISTconv (Sen et al., ICLR 2020, Table 3, https://openreview.net/forum?id=HJem3yHKwH), 709,888 parameters.

    In low precision the three convolutions are quantized, the first one and so the image included; the linear layer
    stays in full precision.

    Args:
        precision: Bits of the three convolutions.
        scale: Scale of their quantized weights; the release has none.

    Example:
        >>> import torch
        >>> MNISTConv(Precision.parse("w2a4"))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, precision: Precision | None = None, *, scale: Scale = "none", num_classes: int = 10) -> None:
        super().__init__()
        bits = precision or Precision()
        self.conv1 = conv2d(1, 64, 8, stride=2, padding=3, bias=False, precision=bits, scale=scale)
        self.conv2 = conv2d(64, 128, 6, stride=2, bias=False, precision=bits, scale=scale)
        self.conv3 = conv2d(128, 128, 5, bias=False, precision=bits, scale=scale)
        self.logits = nn.Linear(128, num_classes, bias=False)
        for layer in (self.conv1, self.conv2, self.conv3, self.logits):
            unit_norm_(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 1, 28, 28)`` in [0, 1]."""
        x = self.conv1(x).relu()  # (N, 64, 14, 14)
        x = self.conv2(x).relu()  # (N, 128, 5, 5)
        x = self.conv3(x).relu()  # (N, 128, 1, 1)
        return self.logits(x.flatten(1))
