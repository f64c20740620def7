"""The images a reproduction runs on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch

from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import ImageSet, load_images
from empir_plugin.models.quantize import quantize_unit

Prepare = Callable[[ImageSet], ImageSet]
"""What is done to images before they are shown to anybody."""


def as_they_are(data: ImageSet) -> ImageSet:
    """Change nothing."""
    return data


@dataclass(frozen=True)
class Discretize:
    """Leave ``2**bits`` levels of every pixel, the nearest ones, with black and white among them.

    The images are then what a network behind ``Discretized(network, bits, "round")`` is shown, and still bytes.

    Args:
        bits: 1, 2, 4 or 8: of these all levels are whole numbers from 0 to 255.

    Raises:
        InputError: If the number of bits is another one.

    Example:
        >>> data = Discretize(2)(Images(n_examples=1).test("mnist"))
        >>> data.images.unique()
        tensor([  0,  85, 170, 255], dtype=torch.uint8)
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise InputError(f"images can be stored with 1, 2, 4 or 8 bits per pixel, got {self.bits!r}")

    def __call__(self, data: ImageSet) -> ImageSet:
        """Discretize a set."""
        values = quantize_unit(data.images.float() / 255, self.bits)
        return replace(data, images=(values * 255).round().to(torch.uint8))


class Source(Protocol):
    """Where images come from."""

    def test(self, dataset: str) -> ImageSet:
        """Images to attack."""
        ...

    def train(self, dataset: str) -> ImageSet:
        """Images to train on."""
        ...


@dataclass(frozen=True)
class Images:
    """Test images to attack, and training images for networks that are trained on demand.

    Args:
        data_dir: Folder of the full data sets; None for the bundled sample, which has no training images.
        n_examples: How many test images, from the first; None for the 1,000 of the bundled sample, or all of
            ``data_dir``.

    Example:
        >>> len(Images(n_examples=3).test("mnist"))
        3
    """

    data_dir: Path | None = None
    n_examples: int | None = None

    def test(self, dataset: str) -> ImageSet:
        """Images to attack.

        Raises:
            InputError: If more are asked for than there are.
            DataError: If they are missing or damaged.
        """
        return load_images(dataset, data_dir=self.data_dir, n_examples=self.n_examples)

    def train(self, dataset: str) -> ImageSet:
        """Images to train on.

        Raises:
            DataError: If they are missing or damaged.
        """
        return load_images(dataset, data_dir=self.data_dir, split="train")
