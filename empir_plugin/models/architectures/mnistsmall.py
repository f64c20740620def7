"""The small network with biases that adversarial training on MNIST is known to work with."""

from __future__ import annotations

from torch import Tensor, nn

from empir_plugin.models.architectures.blocks import conv2d, linear
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale


class MNISTSmall(nn.Module):
    """Two convolutions and two linear layers, 436,202 parameters.

    It is that of Wong and Kolter (https://arxiv.org/abs/1711.00851) at twice the width. What makes a network robust on
    MNIST is a threshold for every pixel, and a threshold is a bias followed by a ReLU. MNISTconv has no biases,
    and stays far less robust after adversarial training within 0.3; 4 bits for the image and the first layer cost some
    robustness, too. So in low precision the first and the last layer stay as they are, as in DoReFa-Net
    (https://arxiv.org/abs/1606.06160, Section 2.7), and the two between, with 95 % of the multiplications, are
    quantized.

    Args:
        precision: Bits of the second convolution and of the first linear layer.
        scale: Scale of their quantized weights.

    Example:
        >>> import torch
        >>> MNISTSmall(Precision.parse("w4a4"), scale="max")(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, precision: Precision | None = None, *, scale: Scale = "none", num_classes: int = 10) -> None:
        super().__init__()
        bits = precision or Precision()
        self.conv1 = nn.Conv2d(1, 32, 4, stride=2, padding=1)
        self.conv2 = conv2d(32, 64, 4, stride=2, padding=1, precision=bits, scale=scale)
        self.hidden = linear(3136, 128, precision=bits, scale=scale)
        self.logits = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 1, 28, 28)`` in [0, 1]."""
        x = self.conv1(x).relu()  # (N, 32, 14, 14)
        x = self.conv2(x).relu()  # (N, 64, 7, 7)
        x = self.hidden(x.flatten(1)).relu()  # (N, 128)
        return self.logits(x)
