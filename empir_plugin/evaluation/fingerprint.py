"""A name for exactly these images with exactly these labels, and the names of the official sets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor

from empir_plugin.errors import InputError

_LAYOUT = b"empir-plugin image set, layout 1\n"

OFFICIAL_FINGERPRINTS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("mnist", "test"): "63b79273055efff99d865a104133d9f7f4e51da07a8a86954420da210b3363b4",
        ("mnist", "train"): "29479b849e6b8220da3f64c127b4a9f6748680c669bec8c30730234ffdf4fdc3",
        ("cifar10", "test"): "70ee2c1a56d5663d5058d586ee4bbc07dfe756c063d7853367f867b75c8916af",
        ("cifar10", "train"): "b53bea61c049632ef66ee3db691d3d9dc7984ae3e4d42cecb687062cc07c0414",
    }
)
"""Fingerprints of the complete published sets, in the published order, by name and split."""


def fingerprint(images: Tensor, labels: Tensor) -> str:
    r"""SHA-256 of a set of labelled images (https://doi.org/10.6028/NIST.FIPS.180-4).

    The hashed bytes are the line ``empir-plugin image set, layout 1``, then for the images and for the labels a line
    with NumPy's name of the type and the shape (``|u1 (10000, 1, 28, 28)``) followed by the values in C order,
    little-endian. The lines end in ``\n``; each states the size of what follows, so no two sets share their bytes.

    Images in steps of 1/255 are hashed as uint8, so that a set has one fingerprint whether it is stored as uint8 or as
    float32; any other image, such as an adversarial one, is hashed as float32.

    Args:
        images: ``(N, ...)``, uint8 in 0..255 or float32 in [0, 1].
        labels: ``(N,)``, the true classes.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: If the types are others, or the number of labels is not the number of images.

    Example:
        >>> images, labels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8), torch.tensor([7])
        >>> fingerprint(images, labels)[:16]
        '8819479d2502cf78'
        >>> fingerprint(images / 255, labels) == fingerprint(images, labels)
        True
    """
    if images.dtype not in (torch.uint8, torch.float32):
        raise InputError(f"images must be uint8 or float32 to be fingerprinted, got {images.dtype}: convert them first")
    if labels.dtype != torch.int64 or labels.shape != images.shape[:1]:
        expected, got = f"({len(images)},)", f"{labels.dtype} {tuple(labels.shape)}"
        raise InputError(f"labels must be torch.int64 {expected}, one for each image, got {got}")
    digest = hashlib.sha256(_LAYOUT)
    for array in (_canonical_pixels(images.detach().cpu()), labels.cpu().numpy().astype("<i8", copy=False)):
        digest.update(f"{array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).data)
    return digest.hexdigest()


def _canonical_pixels(images: Tensor) -> np.ndarray:
    """The images as uint8 where that loses nothing, else as little-endian float32."""
    if images.dtype == torch.uint8:
        return images.numpy()
    steps = images.mul(255).round_().clamp_(0, 255).nan_to_num_().to(torch.uint8)
    if torch.equal(steps.float().div_(255), images):
        return steps.numpy()
    return images.numpy().astype("<f4", copy=False)
