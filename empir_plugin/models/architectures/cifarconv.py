"""CIFARconv, as EMPIR's release codes it and as the paper's Table 3 prints it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.models.architectures.blocks import conv2d, unit_norm_
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale


class CIFARConv(nn.Module):
    """CIFARconv (Sen et al., ICLR 2020, https://openreview.net/forum?id=HJem3yHKwH).

    The release has 5x5 filters throughout and 32 of them in conv2: 116,704 parameters. The paper's Table 3 prints 8x8
    filters and 64 of them in conv2 and conv3: 433,120 parameters. In both the convolutions are quantized, the first one
    and so the image included; the two linear layers, with no activation between them, stay in full precision.

    Args:
        precision: Bits of the three convolutions.
        scale: Scale of their quantized weights; the release has none.
        table3: Build the network of the paper's Table 3 instead of the released one.

    Example:
        >>> import torch
        >>> CIFARConv(Precision.parse("w4a2"))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        precision: Precision | None = None,
        *,
        scale: Scale = "none",
        table3: bool = False,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        bits = precision or Precision()
        width, kernel = (64, 8) if table3 else (32, 5)
        # TensorFlow's SAME padding puts the odd pixel of an even filter at the end.
        before, after = (kernel - 1) // 2, kernel // 2
        self.pad = nn.ZeroPad2d((before, after, before, after))
        self.conv1 = conv2d(3, 32, 5, padding=2, bias=False, precision=bits, scale=scale)
        self.conv2 = conv2d(32, width, kernel, bias=False, precision=bits, scale=scale)
        self.conv3 = conv2d(width, 64, kernel, bias=False, precision=bits, scale=scale)
        self.ip1 = nn.Linear(576, 64, bias=False)
        self.logits = nn.Linear(64, num_classes, bias=False)
        for layer in (self.conv1, self.conv2, self.conv3, self.ip1, self.logits):
            unit_norm_(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 3, 32, 32)`` in [0, 1]."""
        x = F.max_pool2d(self.conv1(x), 3, 2).relu()  # (N, 32, 15, 15)
        x = F.avg_pool2d(self.conv2(self.pad(x)).relu(), 3, 2)  # (N, 32, 7, 7)
        x = F.avg_pool2d(self.conv3(self.pad(x)).relu(), 3, 2)  # (N, 64, 3, 3)
        return self.logits(self.ip1(x.flatten(1)))
