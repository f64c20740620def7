"""Readers of image sets: the bundled samples, and folders in the layouts of torchvision and RobustBench."""

from __future__ import annotations

import hashlib
import io
import math
import struct
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10
from torchvision.datasets.mnist import read_image_file, read_label_file
from torchvision.datasets.utils import check_integrity

from empir_plugin.errors import CompatibilityError, DataError, InputError

SHEET_COLUMNS = 40
"""Images per row in the picture that holds a bundled sample."""

SAMPLE_SHA256: Mapping[str, str] = MappingProxyType(
    {
        "mnist": "97b0722ca37a2171759ea9d6f2f8e9b7496d7e2ac20a8b005f3dc32cf582c1ba",
        "cifar10": "5b2ef0db6e27ef7b5d0abc0745eb1233e3831f984ccc8a7ae3fb0ab364a8ddb7",
    }
)
"""SHA-256 of the pictures in ``samples/``, by data set."""

DIGITS = tuple("0123456789")
CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_MNIST_RAW = ("MNIST", "raw")
_MNIST_PREFIX: Mapping[str, str] = MappingProxyType({"test": "t10k", "train": "train"})
_IMAGENET_CLASSES = 1000


class LabelledImages(NamedTuple):
    """What a reader returns, in file order: ``images`` uint8 ``(N, C, H, W)`` and ``labels`` int64 ``(N,)``."""

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    verified: bool
    """Whether every file had its published checksum."""


def read_sample(name: str) -> LabelledImages:
    """Read the bundled sample: the first 1,000 official test images of MNIST or CIFAR-10.

    The sample is a lossless picture with 40 images per row, and the labels as digits in its text chunk ``labels``.

    Raises:
        DataError: If the file is missing or damaged.
    """
    content = _sample_bytes(name)
    with Image.open(io.BytesIO(content)) as picture:
        picture.load()
        sheet, digits = np.atleast_3d(np.asarray(picture)), picture.info["labels"]
    side, channels = sheet.shape[1] // SHEET_COLUMNS, sheet.shape[2]
    tiles = sheet.reshape(-1, side, SHEET_COLUMNS, side, channels).transpose(0, 2, 4, 1, 3)
    images = torch.from_numpy(tiles.reshape(-1, channels, side, side).copy())
    names = DIGITS if name == "mnist" else CIFAR10_NAMES
    return LabelledImages(images, torch.tensor([int(digit) for digit in digits]), names, verified=True)


def _sample_bytes(name: str) -> bytes:
    file = resources.files("empir_plugin.data") / "samples" / f"{name}.png"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"the bundled sample cannot be read ({error}): install empir-plugin again") from error
    if hashlib.sha256(content).hexdigest() != SAMPLE_SHA256[name]:
        raise DataError(f"the bundled sample {name}.png is damaged (SHA-256 differs): install empir-plugin again")
    return content


def read_mnist(data_dir: Path, split: str) -> LabelledImages:
    """Read MNIST (http://yann.lecun.com/exdb/mnist/), or another set in its format, from ``MNIST/raw`` in a folder.

    Only the format and size of the files are checked, as torchvision has no checksums of the unpacked files.

    Raises:
        DataError: If a file is missing, truncated or not in MNIST's format.
    """
    raw = inside(data_dir, *_MNIST_RAW)
    images, labels = (raw / f"{_MNIST_PREFIX[split]}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    _check_idx(images, (28, 28))
    _check_idx(labels, ())
    return LabelledImages(
        read_image_file(str(images)).unsqueeze(1), read_label_file(str(labels)), DIGITS, verified=False
    )


def _check_idx(path: Path, item: tuple[int, ...]) -> None:
    """Check that a file holds items of this shape and is as long as its header says."""
    if not path.is_file():
        cure = "unpack the .gz beside it" if path.with_name(f"{path.name}.gz").is_file() else "check --data-dir"
        raise DataError(f"MNIST needs the file {path}, which is not there: {cure}")
    rank = 1 + len(item)
    with path.open("rb") as file:
        header = file.read(4 * (1 + rank))
    if header[:4] != bytes([0, 0, 8, rank]) or len(header) < 4 * (1 + rank):
        raise DataError(f"{path} must be an idx file of {rank}-dimensional bytes, got another header: get it again")
    shape, size = struct.unpack(f">{rank}I", header[4:]), path.stat().st_size
    if shape[1:] != item:
        raise DataError(f"{path} must hold images of 28 x 28, got {shape[1]} x {shape[2]}: give it MNIST's format")
    expected = len(header) + math.prod(shape)
    if size != expected or shape[0] == 0:
        raise DataError(f"{path} must have {expected:,} bytes of {shape[0]:,} items, got {size:,} bytes: get it again")


def read_cifar(data_dir: Path, split: str, dataset: type[CIFAR10]) -> LabelledImages:
    """Read CIFAR-10 or CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html) with torchvision, without downloads.

    The files are pickles; torchvision checks that a file has the published MD5 before it opens it.

    Raises:
        DataError: If a file is missing or does not have the published MD5.
    """
    folder = inside(data_dir, dataset.base_folder)
    try:
        files = dataset(str(folder.parent), train=split == "train", download=False)
    except RuntimeError as error:
        raise DataError(_cifar_problem(folder, dataset)) from error
    images = torch.from_numpy(np.ascontiguousarray(files.data.transpose(0, 3, 1, 2)))
    return LabelledImages(images, torch.tensor(files.targets), tuple(files.classes), verified=True)


def _cifar_problem(folder: Path, dataset: type[CIFAR10]) -> str:
    """Which file keeps torchvision from reading a folder, and what to do."""
    cure = f"unpack {dataset.filename} from {dataset.url.rpartition('/')[0]} again"
    for file, md5 in (*dataset.train_list, *dataset.test_list, (dataset.meta["filename"], dataset.meta["md5"])):
        if not (folder / file).is_file():
            return f"{dataset.__name__} needs the file {folder / file}, which is not there: check --data-dir, or {cure}"
        if not check_integrity(folder / file, md5):
            return f"{folder / file} must have the MD5 {md5} of the published file, got another one: {cure}"
    return f"{dataset.__name__} in {folder} cannot be read: {cure}"


def read_imagenet(data_dir: Path, n_examples: int | None) -> LabelledImages:
    """Read RobustBench's 5,000 ImageNet validation images (https://github.com/RobustBench/robustbench), 224 x 224.

    The list, the decoding and the preprocessing (``Res256Crop224``) are RobustBench's own. Only the first
    ``n_examples`` images of the list are read.

    Args:
        data_dir: The folder that contains ``val``, or ``val`` itself, with one folder for each class.
        n_examples: How many images of the list to decode; None for all.

    Raises:
        CompatibilityError: If robustbench cannot be imported.
        DataError: If there is no ``val`` with 1,000 class folders.
        InputError: If the list has fewer than ``n_examples`` images.
    """
    val = _imagenet_val(data_dir)
    try:
        from robustbench.data import PREPROCESSINGS
        from robustbench.loaders import CustomImageFolder
    except ImportError as error:
        raise CompatibilityError(f"ImageNet is read through robustbench, which cannot be imported: {error}") from error
    try:
        folder = CustomImageFolder(str(val), PREPROCESSINGS["Res256Crop224"])
    except KeyError as error:
        raise DataError(f"ImageNet needs the class folder {error.args[0]} in {val}: check --data-dir") from error
    count = len(folder) if n_examples is None else n_examples
    if count > len(folder):
        raise InputError(f"RobustBench lists {len(folder):,} images of imagenet, got n_examples={count}: ask for fewer")
    images, labels = torch.empty(count, 3, 224, 224, dtype=torch.uint8), torch.empty(count, dtype=torch.int64)
    for i in range(count):
        image, labels[i], _ = folder[i]
        images[i] = image.mul(255).round()
    return LabelledImages(images, labels, tuple(folder.classes), verified=False)


def _imagenet_val(data_dir: Path) -> Path:
    val = inside(data_dir, "val")
    # RobustBench numbers the classes by the folders that exist: if one is missing, labels shift silently.
    classes = sum(entry.is_dir() for entry in val.iterdir()) if val.is_dir() else 0
    if classes != _IMAGENET_CLASSES:
        raise DataError(f"ImageNet needs 1,000 class folders in {val}, got {classes:,}: check --data-dir")
    return val


def inside(data_dir: Path, *inner: str) -> Path:
    """The inner folder of a data folder; ``data_dir`` may also be that inner folder itself, or a folder on its path."""
    folder = data_dir.expanduser().absolute()
    if not folder.is_dir():
        raise DataError(f"{data_dir} is not a folder: check --data-dir")
    for depth in range(len(inner), 0, -1):
        if folder.parts[-depth:] == inner[:depth] and not folder.joinpath(*inner).is_dir():
            return folder.joinpath(*inner[depth:])
    return folder.joinpath(*inner)
