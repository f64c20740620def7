"""A small network of one's own, for the tests of quantized networks by name."""

from __future__ import annotations

from torch import Tensor, nn


class Tiny(nn.Module):
    """Three layers, of which the middle one is quantized."""

    default_cfg = {"input_size": (3, 32, 32)}  # noqa: RUF012 - as timm's networks have it

    def __init__(self, num_classes: int, width: int = 4) -> None:
        super().__init__()
        self.stem, self.body, self.head = (
            nn.Conv2d(3, width, 3),
            nn.Conv2d(width, width, 3),
            nn.Linear(width, num_classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x).relu()).mean((2, 3)))
