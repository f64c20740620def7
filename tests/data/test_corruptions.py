"""Corrupted images: CIFAR-10-C as it is laid out, every damage named, and made ones that say what they are."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from empir_plugin.data import corruptions
from empir_plugin.data.corruptions import CORRUPTIONS, SEVERITIES, MadeCorruptions, PublishedCorruptions
from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.errors import CompatibilityError, DataError, InputError


@pytest.fixture
def clean() -> ImageSet:
    return load_images("cifar10", n_examples=10)


def test_names_and_order_are_those_of_robustbench() -> None:
    data = pytest.importorskip("robustbench.data")
    assert data.CORRUPTIONS == CORRUPTIONS


@pytest.mark.parametrize("inner", ["", "CIFAR-10-C"], ids=["its parent", "the folder itself"])
def test_each_severity_is_read_from_its_place(inner: str, corrupted_dir: Path, clean: ImageSet) -> None:
    found = PublishedCorruptions(clean, corrupted_dir / inner)
    for severity in SEVERITIES:
        images = found.read("fog", severity, [0, 9, severity - 1, severity])
        assert images.shape == (4, 3, 32, 32)
        assert images.dtype == torch.uint8
        assert not images[[0, 2]].any()
        assert torch.equal(images[1], clean.images[9])
        assert torch.equal(images[3], clean.images[severity])


def test_only_files_with_the_published_checksums_are_official(
    corrupted_dir: Path, clean: ImageSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = PublishedCorruptions(clean, corrupted_dir)
    assert found.describe()["name"] == "CIFAR-10-C"
    assert found.describe()["source"] == "folder"
    md5 = found.md5
    assert set(md5) == {*CORRUPTIONS, "labels"}
    published = corruptions._PUBLISHED["cifar10"]
    monkeypatch.setitem(vars(published), "md5", md5)
    assert PublishedCorruptions(clean, corrupted_dir).describe() == {
        "name": "CIFAR-10-C",
        "source": "official",
        "md5": md5,
    }
    images = np.load(corrupted_dir / "CIFAR-10-C" / "fog.npy")
    images[-1, -1, -1, -1] ^= 1
    np.save(corrupted_dir / "CIFAR-10-C" / "fog.npy", images)
    assert PublishedCorruptions(clean, corrupted_dir).source == "folder"


def test_the_published_checksums_are_complete() -> None:
    for published in corruptions._PUBLISHED.values():
        assert set(published.md5) == {*CORRUPTIONS, "labels"}
        assert all(len(digest) == 32 and int(digest, 16) for digest in published.md5.values())
        assert len(set(published.md5.values())) == 16


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def write(name: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: np.save(folder / name, array, allow_pickle=True)


def cut(folder: Path) -> None:
    path = folder / "snow.npy"
    path.write_bytes(path.read_bytes()[:-100])


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (lambda folder: folder.rename(folder.with_name("other")), "needs the folder"),
    "no file": (remove("frost.npy"), "frost.npy, which is not there"),
    "no labels": (remove("labels.npy"), "labels.npy, which is not there"),
    "cut": (cut, "snow.npy cannot be read as an array"),
    "pickle": (write("snow.npy", np.array([{}], dtype=object)), "snow.npy cannot be read as an array"),
    "one severity": (write("fog.npy", np.zeros((12, 32, 32, 3), np.uint8)), "fog.npy must hold uint8 (60, 32, 32, 3)"),
    "floats": (write("fog.npy", np.zeros((60, 32, 32, 3), np.float32)), "got float32"),
    "channels first": (write("fog.npy", np.zeros((60, 3, 32, 32), np.uint8)), "got uint8 (60, 3, 32, 32)"),
    "labels as floats": (write("labels.npy", np.zeros(60)), "must hold whole numbers (60,), got float64"),
    "other labels": (write("labels.npy", np.zeros(60, np.int64)), "other labels than the clean images"),
}


@pytest.mark.parametrize(("damage", "sentence"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_one_sentence_with_the_cure(
    damage: Callable[[Path], Any], sentence: str, corrupted_dir: Path, clean: ImageSet
) -> None:
    damage(corrupted_dir / "CIFAR-10-C")
    with pytest.raises(DataError, match=r"https://zenodo\.org/records/2535967") as refused:
        PublishedCorruptions(clean, corrupted_dir)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_sets_without_published_corruptions_are_refused(corrupted_dir: Path) -> None:
    with pytest.raises(InputError, match=r"cifar10 and cifar100, got mnist .*make them"):
        PublishedCorruptions(load_images("mnist", n_examples=2), corrupted_dir)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for imagecorruptions-imaug: noise from numpy's global generator, or from the seed it is given."""

    def corrupt(image: np.ndarray, severity: int, name: str, seed: int | None = None) -> np.ndarray:
        if (seed is None) == (name in ("glass_blur", "impulse_noise")):
            raise ValueError(name)
        noise = np.random.randint(0, 256, image.shape) if seed is None else np.full(image.shape, seed % 251)
        return (noise + severity).clip(0, 255).astype(np.uint8)

    module: Any = ModuleType("imagecorruptions")
    module.corrupt = corrupt
    monkeypatch.setitem(sys.modules, "imagecorruptions", module)
    monkeypatch.setattr(corruptions, "version", lambda name: "9.9")


@pytest.mark.parametrize("name", ["fog", "glass_blur"])
def test_made_corruptions_depend_on_the_image_alone(name: str, library: None, clean: ImageSet) -> None:
    made = MadeCorruptions(clean)
    together = made.read(name, 3, [0, 1, 2])
    assert together.shape == (3, 3, 32, 32)
    np.random.seed(5)
    before = np.random.get_state()[1]
    assert torch.equal(made.read(name, 3, [2])[0], together[2])
    assert np.array_equal(np.random.get_state()[1], before), "the caller's random numbers are left as they were"
    others = made.read(name, 2, [2]), made.read(name, 3, [1]), MadeCorruptions(clean, seed=1).read(name, 3, [2])
    assert not any(torch.equal(other[0], together[2]) for other in others)


def test_made_corruptions_never_pass_as_a_published_set(library: None, clean: ImageSet) -> None:
    about = MadeCorruptions(clean, seed=7).describe()
    assert about == {
        "name": "corruptions of cifar10",
        "source": "made with imagecorruptions-imaug 9.9",
        "seed": 7,
    }


def test_small_or_grey_images_are_refused(library: None) -> None:
    with pytest.raises(InputError, match=r"at least 32 x 32, got 1 x 28 x 28 of mnist: use cifar10"):
        MadeCorruptions(load_images("mnist", n_examples=2))


def test_a_missing_library_is_named_with_the_extra(clean: ImageSet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagecorruptions", None)
    with pytest.raises(CompatibilityError, match=r"imagecorruptions-imaug.*pip install 'empir-plugin\[corruptions\]'"):
        MadeCorruptions(clean)


def test_the_library_makes_all_corruptions(clean: ImageSet) -> None:
    pytest.importorskip("imagecorruptions")
    made, rows = MadeCorruptions(clean), range(len(clean))
    for name in CORRUPTIONS:
        mild, hard = (made.read(name, severity, rows).float() for severity in (1, 5))
        assert torch.equal(mild[:1], made.read(name, 1, [0]).float())
        near, far = ((images - clean.images.float()).abs().mean() for images in (mild, hard))
        assert 1 < near < far, name
