"""Image sets: the images an evaluation runs on, loaded in their official order, checked, and fingerprinted."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from empir_plugin.data import readers
from empir_plugin.errors import DataError, InputError

DATASETS = ("mnist", "cifar10", "cifar100", "imagenet")
SPLITS = ("test", "train")
BUNDLED = "bundled sample"
OFFICIAL = "official"
FOLDER = "folder"

OFFICIAL_FINGERPRINTS: Mapping[tuple[str, str], str] = MappingProxyType(
    {
        ("mnist", "test"): "63b79273055efff99d865a104133d9f7f4e51da07a8a86954420da210b3363b4",
        ("mnist", "train"): "29479b849e6b8220da3f64c127b4a9f6748680c669bec8c30730234ffdf4fdc3",
        ("cifar10", "test"): "70ee2c1a56d5663d5058d586ee4bbc07dfe756c063d7853367f867b75c8916af",
        ("cifar10", "train"): "b53bea61c049632ef66ee3db691d3d9dc7984ae3e4d42cecb687062cc07c0414",
    }
)
"""Fingerprints of the complete published sets, in the published order, by name and split."""


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Labelled images in a fixed order, stored as uint8 and returned as float32 in [0, 1].

    Args:
        name: ``mnist``, ``cifar10``, ``cifar100`` or ``imagenet``.
        split: ``test`` or ``train``.
        images: ``(N, C, H, W)``, uint8.
        labels: ``(N,)``, int64, the true classes.
        class_names: Names of the K classes, in the order of their labels.
        source: ``bundled sample``; ``official`` for the published files; ``folder`` for any others.

    Raises:
        InputError: If the tensors are not of these types and shapes, empty, or a label is not one of the K classes.

    Example:
        >>> data = load_images("mnist").first(2)
        >>> images, labels = data.batch(0, 2)
        >>> images.shape, images.dtype, labels
        (torch.Size([2, 1, 28, 28]), torch.float32, tensor([7, 2]))
    """

    name: str
    split: str
    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    source: str = FOLDER

    def __post_init__(self) -> None:
        if not isinstance(self.images, Tensor):
            got = type(self.images).__name__
            raise InputError(f"an image set stores a torch.Tensor of uint8, got a {got}: use torch.as_tensor(images)")
        if self.images.dtype != torch.uint8:
            raise InputError(f"an image set stores uint8 in 0..255, got {self.images.dtype}: multiply by 255 and round")
        if not isinstance(self.class_names, (tuple, list)):
            got = repr(self.class_names)
            raise InputError(f"class_names must be a tuple of K names, got {got}: write such as ('cat', 'dog')")
        _check_shape(self.images)
        _check_labels(self.labels, len(self.images), self.num_classes)

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        return (
            f"ImageSet({self.name!r}, {self.split!r}, {len(self):,} images of {shape}, {self.num_classes} classes, "
            f"{self.source})"
        )

    @property
    def num_classes(self) -> int:
        """K, the number of classes."""
        return len(self.class_names)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the images and labels, see :func:`fingerprint`."""
        return fingerprint(self.images, self.labels)

    @property
    def is_full_official(self) -> bool:
        """Whether this is the complete published set, in the published order.

        MNIST and CIFAR-10 are recognised by their fingerprints, CIFAR-100 by its size and the published checksums of
        its files. It is never true of ImageNet, as the pixels of a JPEG depend on the decoder.
        """
        official = OFFICIAL_FINGERPRINTS.get((self.name, self.split))
        if official is not None:
            return self.fingerprint == official
        size = {("cifar100", "test"): 10_000, ("cifar100", "train"): 50_000}.get((self.name, self.split))
        return self.source == OFFICIAL and len(self) == size

    def batch(self, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Images ``start`` to ``stop - 1`` as float32 ``(n, C, H, W)`` in [0, 1], and their labels ``(n,)``."""
        return self.images[start:stop].float().div_(255), self.labels[start:stop]

    def as_float(self) -> Tensor:
        """All images as float32 ``(N, C, H, W)`` in [0, 1]: four times the memory of the set itself."""
        return self.batch(0, len(self))[0]

    def first(self, n: int) -> ImageSet:
        """The first ``n`` images, in order, as an image set with its own fingerprint.

        Raises:
            InputError: If ``n`` is not in 1..N.
        """
        _check_count(n)
        if n > len(self):
            cure = "pass --data-dir for the full set" if self.source == BUNDLED else "ask for fewer"
            where = f"the {BUNDLED} of {self.name}" if self.source == BUNDLED else f"{self.name} ({self.split})"
            raise InputError(f"{where} has {len(self):,} images, got n_examples={n}: {cure}")
        return replace(self, images=self.images[:n], labels=self.labels[:n])


def load_images(
    name: str,
    *,
    data_dir: str | PathLike[str] | None = None,
    n_examples: int | None = None,
    split: str = "test",
) -> ImageSet:
    """Load the images of a benchmark in their official order; nothing is ever downloaded.

    Args:
        name: ``mnist``, ``cifar10``, ``cifar100`` or ``imagenet``.
        data_dir: A folder in torchvision's layout (``MNIST/raw``, ``cifar-10-batches-py``, ``cifar-100-python``; for
            ImageNet ``val``), or that inner folder itself. None for the bundled sample: the first 1,000 test images of
            MNIST or CIFAR-10.
        n_examples: Keep only the first so many images; None for all.
        split: ``test``, or ``train`` from a folder.

    Raises:
        InputError: If the name or the split is unknown, or there are fewer than ``n_examples`` images.
        DataError: If the folder is missing or damaged, or no sample of these images is bundled.
        CompatibilityError: If robustbench, which ImageNet is read with, cannot be imported.

    Example:
        >>> data = load_images("cifar10", n_examples=4)
        >>> [data.class_names[label] for label in data.labels]
        ['cat', 'ship', 'ship', 'airplane']
    """
    if name not in DATASETS:
        raise InputError(f"the data set must be one of {', '.join(DATASETS)}, got {name!r}")
    if split not in SPLITS:
        raise InputError(f"the split must be test or train, got {split!r}")
    if n_examples is not None:
        _check_count(n_examples)
    images = _load_sample(name, split) if data_dir is None else _load_folder(name, split, Path(data_dir), n_examples)
    return images if n_examples is None else images.first(n_examples)


def _load_sample(name: str, split: str) -> ImageSet:
    if name not in readers.SAMPLE_SHA256 or split != "test":
        have = "the first 1,000 test images of mnist and of cifar10"
        raise DataError(f"this package holds {have}, not the {split} images of {name}: pass --data-dir")
    images, labels, names, _ = readers.read_sample(name)
    return ImageSet(name, split, images, labels, names, BUNDLED)


def _load_folder(name: str, split: str, data_dir: Path, n_examples: int | None) -> ImageSet:
    try:
        images, labels, names, verified = _read(name, split, data_dir, n_examples)
    except OSError as error:
        raise DataError(f"{name} in {data_dir} cannot be read ({error}): check --data-dir and its files") from error
    try:
        loaded = ImageSet(name, split, images, labels, names, OFFICIAL if verified else FOLDER)
    except InputError as error:
        raise DataError(f"{data_dir} does not hold a usable {name}: {error}") from error
    return replace(loaded, source=OFFICIAL) if loaded.is_full_official else loaded


def _read(name: str, split: str, data_dir: Path, n_examples: int | None) -> readers.LabelledImages:
    if name == "mnist":
        return readers.read_mnist(data_dir, split)
    if name == "imagenet":
        if split != "test":
            raise InputError("RobustBench lists test images of imagenet only, got split='train': use test")
        return readers.read_imagenet(data_dir, n_examples)
    return readers.read_cifar(data_dir, split, CIFAR10 if name == "cifar10" else CIFAR100)


_LAYOUT = b"empir-plugin image set, layout 1\n"


def fingerprint(images: Tensor, labels: Tensor) -> str:
    r"""SHA-256 of labelled images (https://doi.org/10.6028/NIST.FIPS.180-4).

    The hashed bytes are the line ``empir-plugin image set, layout 1``, then, for the images and for the labels, a line
    with NumPy's name of the type and the shape (``|u1 (10000, 1, 28, 28)``), followed by the values in C order,
    little-endian. Lines end in ``\n`` and state the size of what follows, so different sets have different bytes.

    Images in steps of 1/255 are hashed as uint8, so a set has the same fingerprint stored as uint8 or as float32. Other
    images, such as adversarial ones, are hashed as float32.

    Args:
        images: ``(N, ...)``, uint8 in 0..255 or float32 in [0, 1].
        labels: ``(N,)``, the true classes.

    Returns:
        64 hexadecimal digits.

    Raises:
        InputError: If the types are not as above, or there is not one label per image.

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
    """The images as uint8 if that is exact, else as little-endian float32."""
    if images.dtype == torch.uint8:
        return images.numpy()
    steps = images.mul(255).round_().clamp_(0, 255).nan_to_num_().to(torch.uint8)
    if torch.equal(steps.float().div_(255), images):
        return steps.numpy()
    return images.numpy().astype("<f4", copy=False)


def check_images(x: Tensor, y: Tensor | None = None, num_classes: int | None = None) -> None:
    """Check that images, and labels if given, can be used to evaluate a model.

    Args:
        x: ``(N, C, H, W)``, float32 in [0, 1], N at least 1.
        y: ``(N,)``, int64, the true classes.
        num_classes: K; labels must be below it.

    Raises:
        InputError: If a type, shape or value is not as above.

    Example:
        >>> check_images(torch.rand(2, 3, 32, 32), torch.tensor([3, 8]), num_classes=10)
    """
    if not isinstance(x, Tensor):
        raise InputError(f"images must be a torch.Tensor, got {type(x).__name__}: convert it with torch.as_tensor")
    if x.dtype != torch.float32:
        cure = "divide them by 255" if x.dtype == torch.uint8 else "call .float() on images in [0, 1]"
        raise InputError(f"images must be float32 in [0, 1], got {x.dtype}: {cure}")
    _check_shape(x)
    _check_range(x)
    if y is not None:
        _check_labels(y, len(x), num_classes)


def _check_shape(x: Tensor) -> None:
    if x.ndim != 4:
        cure = "add the batch dimension with x[None]" if x.ndim == 3 else "reshape them"
        raise InputError(f"images must have the shape (N, C, H, W), got {tuple(x.shape)}: {cure}")
    if x.numel() == 0:
        raise InputError(f"images must not be empty, got the shape {tuple(x.shape)}: pass at least one image")


def _check_range(x: Tensor) -> None:
    low, high = (value.item() for value in x.detach().aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):
        raise InputError("images must be finite, got NaN or infinite pixels: check how they were computed")
    if low < 0:
        cure = "undo the normalisation, it belongs inside the model"
        raise InputError(f"images must be in [0, 1], got values down to {low:.9g}: {cure}")
    if high > 1:
        cure = "divide by 255" if high > 2 else "clamp them"
        raise InputError(f"images must be in [0, 1], got values up to {high:.9g}: {cure}")


def _check_labels(y: Tensor, n: int, num_classes: int | None) -> None:
    if not isinstance(y, Tensor) or y.dtype != torch.int64:
        got = y.dtype if isinstance(y, Tensor) else type(y).__name__
        raise InputError(f"labels must be a torch.int64 tensor, got {got}: use torch.as_tensor(labels).long()")
    if y.shape != (n,):
        cure = "take y.argmax(1)" if y.ndim == 2 and len(y) == n else "pass one class number for each image"
        raise InputError(f"labels must have the shape ({n},), got {tuple(y.shape)}: {cure}")
    low, high = (int(value) for value in y.aminmax())
    if low < 0 or (num_classes is not None and high >= num_classes):
        limit = "0 or more" if num_classes is None else f"0 to {num_classes - 1}"
        raise InputError(f"labels must be {limit}, got {low if low < 0 else high}: count the classes from 0")


def _check_count(n: int) -> None:
    if not isinstance(n, int) or isinstance(n, bool) or n < 1:
        raise InputError(f"n_examples must be a whole number, at least 1, got {n!r}")
