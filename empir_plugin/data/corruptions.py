"""Corrupted images: CIFAR-10-C and CIFAR-100-C as published, or corruptions made from clean images.

The 15 common corruptions at 5 severities are those of Hendrycks and Dietterich, https://arxiv.org/abs/1903.12261. Which
of the two sources an image is from is part of every result: made corruptions are drawn anew, with ImageNet-C's
severities, and are never CIFAR-10-C.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from empir_plugin.data.image_set import FOLDER, OFFICIAL, ImageSet
from empir_plugin.data.readers import inside
from empir_plugin.errors import CompatibilityError, DataError, InputError

CORRUPTIONS = (
    "shot_noise",
    "motion_blur",
    "snow",
    "pixelate",
    "gaussian_noise",
    "defocus_blur",
    "brightness",
    "fog",
    "zoom_blur",
    "frost",
    "glass_blur",
    "impulse_noise",
    "contrast",
    "jpeg_compression",
    "elastic_transform",
)
"""Names of the corruptions, in RobustBench's order."""

SEVERITIES = (1, 2, 3, 4, 5)

_LABELS = "labels"
_N = 10_000
"""Images per severity in a published file."""

_SIDE = 32
"""The smallest side of an image that the corruptions are defined for."""

_LIBRARY = "imagecorruptions-imaug"


class CorruptedImages(Protocol):
    """The corrupted versions of the images of a set."""

    @property
    def clean(self) -> ImageSet:
        """The images they were made from."""
        ...

    def read(self, corruption: str, severity: int, rows: Sequence[int]) -> Tensor:
        """Corrupted versions ``(n, C, H, W)``, uint8, of the clean images with these indices."""
        ...

    def describe(self) -> dict[str, Any]:
        """What they are, for records: ``name``, ``source``, and what identifies the content."""
        ...


@dataclass(frozen=True)
class _Published:
    """A published set: the folder it unpacks to, its archive, and the MD5 of each file."""

    folder: str
    record: str
    md5: Mapping[str, str]


_PUBLISHED: Mapping[str, _Published] = MappingProxyType(
    {
        "cifar10": _Published(
            "CIFAR-10-C",
            "https://zenodo.org/records/2535967",
            {
                "brightness": "0a81ef75e0b523c3383219c330a85d48",
                "contrast": "3c8262171c51307f916c30a3308235a8",
                "defocus_blur": "7d1322666342a0702b1957e92f6254bc",
                "elastic_transform": "9421657c6cd452429cf6ce96cc412b5f",
                "fog": "7b397314b5670f825465fbcd1f6e9ccd",
                "frost": "31f6ab3bce1d9934abfb0cc13656f141",
                "gaussian_noise": "ecaf8b9a2399ffeda7680934c33405fd",
                "glass_blur": "7361fb4019269e02dbf6925f083e8629",
                "impulse_noise": "2090e01c83519ec51427e65116af6b1a",
                "jpeg_compression": "2b9cc4c864e0193bb64db8d7728f8187",
                "labels": "c439b113295ed5254878798ffe28fd54",
                "motion_blur": "fffa5f852ff7ad299cfe8a7643f090f4",
                "pixelate": "0f14f7e2db14288304e1de10df16832f",
                "shot_noise": "3a7239bb118894f013d9bf1984be7f11",
                "snow": "bb238de8555123da9c282dea23bd6e55",
                "zoom_blur": "6ea8e63f1c5cdee1517533840641641b",
            },
        ),
        "cifar100": _Published(
            "CIFAR-100-C",
            "https://zenodo.org/records/3555552",
            {
                "brightness": "f22d7195aecd6abb541e27fca230c171",
                "contrast": "322bb385f1d05154ee197ca16535f71e",
                "defocus_blur": "d923e3d9c585a27f0956e2f2ad832564",
                "elastic_transform": "a0792bd6581f6810878be71acedfc65a",
                "fog": "4efc7ebd5e82b028bdbe13048e3ea564",
                "frost": "3a39c6823bdfaa0bf8b12fe7004b8117",
                "gaussian_noise": "ecc4d366eac432bdf25c024086f5e97d",
                "glass_blur": "0bf384f38e5ccbf8dd479d9059b913e1",
                "impulse_noise": "3b3c210ddfa0b5cb918ff4537a429fef",
                "jpeg_compression": "c851b7f1324e1d2ffddeb76920576d11",
                "labels": "bb4026e9ce52996b95f439544568cdb2",
                "motion_blur": "732a7e2e54152ff97c742d4c388c5516",
                "pixelate": "96c00c60f144539e14cffb02ddbd0640",
                "shot_noise": "b0a1fa6e1e465a747c1b204b1914048a",
                "snow": "0237be164583af146b7b144e73b43465",
                "zoom_blur": "0204613400c034a81c4830d5df81cb82",
            },
        ),
    }
)


@dataclass(frozen=True, eq=False)
class PublishedCorruptions:
    """A folder in the layout of CIFAR-10-C: one file of 5 times 10,000 images for each corruption, and the labels.

    Args:
        clean: The first test images of the data set.
        data_dir: The folder that contains ``CIFAR-10-C`` (or ``CIFAR-100-C``), or that folder itself.

    Raises:
        InputError: If the set is not one of CIFAR's test sets.
        DataError: If a file is missing, damaged, of another form, or the labels are not those of the clean images.
    """

    clean: ImageSet
    data_dir: str | PathLike[str]
    _arrays: dict[str, np.ndarray] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.clean.name not in _PUBLISHED or self.clean.split != "test" or len(self.clean) > _N:
            raise InputError(
                f"corrupted images are read for the test sets of {' and '.join(_PUBLISHED)}, got "
                f"{self.clean.name} ({self.clean.split}, {len(self.clean):,} images): make them from clean images"
            )
        if not self.folder.is_dir():
            raise DataError(f"{self._set.folder} needs the folder {self.folder}, which is not there: {self._cure}")
        for name in CORRUPTIONS:
            self._arrays[name] = self._load(name, (len(SEVERITIES) * _N, _SIDE, _SIDE, 3), np.dtype(np.uint8))
        labels = self._load(_LABELS, (len(SEVERITIES) * _N,), None).reshape(len(SEVERITIES), _N)
        if not (labels[:, : len(self.clean)] == self.clean.labels.numpy()).all():
            raise DataError(f"{self._path(_LABELS)} has other labels than the clean images: {self._cure}")

    @property
    def folder(self) -> Path:
        """The folder of the files."""
        return inside(Path(self.data_dir), self._set.folder)

    @cached_property
    def md5(self) -> Mapping[str, str]:
        """MD5 of each file, by name of the corruption, and of the labels."""
        return {name: self._digest(name) for name in (*CORRUPTIONS, _LABELS)}

    @property
    def source(self) -> str:
        """``official`` if every file is the published one, else ``folder``."""
        return OFFICIAL if self.md5 == dict(self._set.md5) else FOLDER

    def read(self, corruption: str, severity: int, rows: Sequence[int]) -> Tensor:
        """Corrupted versions ``(n, 3, 32, 32)``, uint8, of the clean images with these indices."""
        start = (severity - 1) * _N
        images = self._arrays[corruption][[start + row for row in rows]]
        return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))

    def describe(self) -> dict[str, Any]:
        """``name``, ``source``, and the MD5 of each file."""
        return {"name": self._set.folder, "source": self.source, "md5": dict(self.md5)}

    @property
    def _set(self) -> _Published:
        return _PUBLISHED[self.clean.name]

    @property
    def _cure(self) -> str:
        return f"unpack {self._set.folder}.tar of {self._set.record} there, or make corruptions from clean images"

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.npy"

    def _load(self, name: str, shape: tuple[int, ...], dtype: np.dtype | None) -> np.ndarray:
        path = self._path(name)
        if not path.is_file():
            raise DataError(f"{self._set.folder} needs the file {path}, which is not there: {self._cure}")
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise DataError(f"{path} cannot be read as an array ({error}): {self._cure}") from error
        if array.shape != shape or (array.dtype != dtype if dtype else array.dtype.kind not in "iu"):
            wanted = f"{dtype or 'whole numbers'} {shape}"
            raise DataError(f"{path} must hold {wanted}, got {array.dtype} {array.shape}: {self._cure}")
        return array

    def _digest(self, name: str) -> str:
        digest = hashlib.md5(usedforsecurity=False)
        try:
            with self._path(name).open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(f"{self._path(name)} cannot be read ({error}): {self._cure}") from error
        return digest.hexdigest()


@dataclass(frozen=True, eq=False)
class MadeCorruptions:
    """Corruptions made from clean images by the package imagecorruptions-imaug: the same for the same image and index.

    Its severities are those of ImageNet-C, which are harder on 32 x 32 pixels than those of CIFAR-10-C. So the
    accuracies cannot be compared with a leaderboard.

    Args:
        clean: Colour images of at least 32 x 32.
        seed: Of the random numbers.

    Raises:
        InputError: If the images are smaller or not in colour.
        CompatibilityError: If the package is not installed.
    """

    clean: ImageSet
    seed: int = 0

    def __post_init__(self) -> None:
        channels, height, width = self.clean.images.shape[1:]
        if channels != 3 or min(height, width) < _SIDE:
            raise InputError(
                f"corruptions are made from colour images of at least {_SIDE} x {_SIDE}, got {channels} x {height} x "
                f"{width} of {self.clean.name}: use cifar10, cifar100 or imagenet"
            )
        _require_library()

    def read(self, corruption: str, severity: int, rows: Sequence[int]) -> Tensor:
        """Corrupted versions ``(n, C, H, W)``, uint8, of the clean images with these indices."""
        corrupt = _require_library()
        made = []
        for row in rows:
            image = np.ascontiguousarray(self.clean.images[row].permute(1, 2, 0).numpy())
            seed = zlib.crc32(f"{self.seed} {corruption} {severity} {row}".encode())
            # These two draw from a generator of their own.
            own = {"seed": seed} if corruption in ("glass_blur", "impulse_noise") else {}
            with _seeded_numpy(seed):
                made.append(corrupt(image, severity, corruption, **own))
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2).contiguous()

    def describe(self) -> dict[str, Any]:
        """``name`` and ``source``, which say that it is not a published set, and the ``seed``."""
        made = f"made with {_LIBRARY} {version(_LIBRARY)}"
        return {"name": f"corruptions of {self.clean.name}", "source": made, "seed": self.seed}


def _require_library() -> Any:
    try:
        version(_LIBRARY)  # Another package of the same module name does not run with NumPy 2.
        return import_module("imagecorruptions").corrupt
    except (PackageNotFoundError, ImportError) as error:
        raise CompatibilityError(
            f"corruptions are made by the package {_LIBRARY}, which cannot be used ({error}): "
            "pip install 'empir-plugin[corruptions]'"
        ) from error


@contextmanager
def _seeded_numpy(seed: int) -> Iterator[None]:
    state = np.random.get_state()
    np.random.seed(seed)
    try:
        yield
    finally:
        np.random.set_state(state)
