"""Augmentation of training batches, drawn from a generator so that a run can be repeated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror about half of the images ``(N, C, H, W)``.

    Example:
        >>> random_flip(torch.rand(2, 3, 4, 4), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 4, 4])
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move every image ``(N, C, H, W)`` by up to ``pixels`` in each direction; zeros come in.

    Example:
        >>> random_shift(torch.rand(2, 3, 4, 4), 1, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 4, 4])
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    top, left = torch.randint(0, 2 * pixels + 1, (2, n, 1, 1), generator=generator).to(images.device)
    rows = top + torch.arange(height, device=images.device).view(1, -1, 1)  # (N, H, 1)
    columns = left + torch.arange(width, device=images.device).view(1, 1, -1)  # (N, 1, W)
    index = torch.arange(n, device=images.device).view(-1, 1, 1)
    return padded[index, :, rows, columns].permute(0, 3, 1, 2)
