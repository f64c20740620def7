"""Readers: the bundled samples, the official files, and folders of MNIST, CIFAR and ImageNet."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import struct
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from empir_plugin.data import readers
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import CompatibilityError, DataError, InputError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EMPIR_DATA_DIR", ROOT.parent / "shared" / "data"))
SAMPLE_FINGERPRINTS = {
    "mnist": "ef6b806e0e515403da9556c1c6bc00ff76de466b6ec367732e70db6a0e7eb40c",
    "cifar10": "57e0e7a732983ab1da29efe8f2a3a21242f481cc33291a3e24e94909c4e6dfe9",
}
FIRST_LABELS = {"mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "cifar10": [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]}
BUNDLED = sorted(SAMPLE_FINGERPRINTS)


@pytest.fixture
def official() -> Path:
    for folder in ("MNIST/raw", "cifar-10-batches-py"):
        if not (DATA / folder).is_dir():
            pytest.skip(f"needs {folder} in ../shared/data or $EMPIR_DATA_DIR")
    return DATA


# The samples in the package


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_sample_has_the_published_fingerprint(name: str):
    data = load_images(name)
    assert len(data) == 1000
    assert data.num_classes == 10
    assert data.source == "bundled sample"
    assert not data.is_full_official
    assert data.labels[:10].tolist() == FIRST_LABELS[name]
    assert data.fingerprint == SAMPLE_FINGERPRINTS[name]


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_sample_is_small(name: str):
    assert (Path(readers.__file__).parent / "samples" / f"{name}.png").stat().st_size < 2_600_000


@pytest.mark.parametrize(("name", "split"), [("mnist", "train"), ("cifar100", "test"), ("imagenet", "test")])
def test_images_that_are_not_bundled_need_a_folder(name: str, split: str):
    with pytest.raises(DataError, match=rf"{split} images of {name}: pass --data-dir"):
        load_images(name, split=split)


def test_more_images_than_the_sample_has_need_a_folder():
    with pytest.raises(InputError, match=r"cifar10 has 1,000 .*n_examples=5000: pass --data-dir"):
        load_images("cifar10", n_examples=5000)


def use_package_files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(readers.resources, "files", lambda package: folder)


def test_a_damaged_sample_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = bytearray((Path(readers.__file__).parent / "samples" / "mnist.png").read_bytes())
    content[5000] ^= 1
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mnist.png").write_bytes(content)
    use_package_files(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=r"mnist\.png is damaged .*: install empir-plugin again"):
        load_images("mnist")


def test_a_missing_sample_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use_package_files(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=r"cannot be read .*cifar10.*: install empir-plugin again"):
        load_images("cifar10")


@pytest.mark.data
def test_the_samples_can_be_regenerated(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    script = ROOT / "tools" / "make_samples.py"
    if not script.is_file():
        pytest.skip("needs a checkout: tools/ is not part of the source distribution")
    spec = importlib.util.spec_from_file_location("make_samples", script)
    assert spec is not None
    assert spec.loader is not None
    make_samples = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_samples)
    result = CliRunner().invoke(make_samples.main, [str(official), str(tmp_path / "samples")])
    assert result.exit_code == 0, result.output
    # Another version of Pillow may compress to other bytes; pixels and labels must be the same.
    digests = {name: sha256(tmp_path / "samples" / f"{name}.png") for name in BUNDLED}
    assert all(digest in result.output for digest in digests.values())
    monkeypatch.setattr(readers, "SAMPLE_SHA256", digests)
    use_package_files(monkeypatch, tmp_path)
    assert {name: load_images(name).fingerprint for name in BUNDLED} == SAMPLE_FINGERPRINTS


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# The official sets


@pytest.mark.data
@pytest.mark.parametrize("name", BUNDLED)
def test_the_sample_is_the_beginning_of_the_official_test_set(name: str, official: Path):
    sample, full = load_images(name), load_images(name, data_dir=official)
    assert full.is_full_official
    assert full.source == "official"
    assert len(full) == 10_000
    assert torch.equal(full.images[:1000], sample.images)
    assert full.class_names == sample.class_names
    assert full.first(1000).fingerprint == sample.fingerprint
    assert not full.first(9_999).is_full_official


@pytest.mark.data
@pytest.mark.parametrize(("name", "count"), [("mnist", 60_000), ("cifar10", 50_000)])
def test_the_official_training_sets_are_recognised(name: str, count: int, official: Path):
    data = load_images(name, data_dir=official, split="train")
    assert len(data) == count
    assert data.is_full_official


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "inner"), [("mnist", "MNIST"), ("mnist", "MNIST/raw"), ("cifar10", "cifar-10-batches-py")]
)
def test_the_inner_folder_can_be_given(name: str, inner: str, official: Path):
    assert load_images(name, data_dir=official / inner, n_examples=1000).fingerprint == SAMPLE_FINGERPRINTS[name]


@pytest.mark.data
def test_a_relative_folder_can_be_given(official: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(official / "MNIST" / "raw")
    assert load_images("mnist", data_dir=".").is_full_official


@pytest.mark.data
def test_floats_equal_those_of_torchvision(official: Path):
    torchvision_images = CIFAR10(str(official), train=False)
    expected = torch.from_numpy(torchvision_images.data[:50]).permute(0, 3, 1, 2).float() / 255
    assert torch.equal(load_images("cifar10").batch(0, 50)[0], expected)


# MNIST-like folders


def write_mnist(root: Path, images: np.ndarray, labels: np.ndarray, split: str = "t10k") -> Path:
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True, exist_ok=True)
    header = struct.pack(">I3I", 0x0803, *images.shape)
    (raw / f"{split}-images-idx3-ubyte").write_bytes(header + images.astype(np.uint8).tobytes())
    (raw / f"{split}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x0801, len(labels)) + bytes(labels.tolist()))
    return raw


def digits(n: int = 5, side: int = 28) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, side, side))


def test_another_set_in_mnist_format_is_read_but_not_official(tmp_path: Path):
    write_mnist(tmp_path, digits(), np.arange(5))
    data = load_images("mnist", data_dir=tmp_path)
    assert data.images.shape == (5, 1, 28, 28)
    assert np.array_equal(data.images[:, 0].numpy(), digits())
    assert data.labels.tolist() == [0, 1, 2, 3, 4]
    assert data.source == "folder"
    assert not data.is_full_official


def test_the_splits_have_their_own_files(tmp_path: Path):
    write_mnist(tmp_path, digits(2), np.array([4, 5]), split="train")
    assert load_images("mnist", data_dir=tmp_path, split="train").labels.tolist() == [4, 5]
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.* check --data-dir"):
        load_images("mnist", data_dir=tmp_path)


def test_a_compressed_mnist_gets_a_hint(tmp_path: Path):
    raw = write_mnist(tmp_path, digits(), np.arange(5))
    images = raw / "t10k-images-idx3-ubyte"
    images.rename(f"{images}.gz")
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.* unpack the \.gz"):
        load_images("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("keep", [0, 3, 7, 12])
def test_a_truncated_mnist_is_an_error(kind: str, keep: int, tmp_path: Path):
    file = write_mnist(tmp_path, digits(), np.arange(5)) / f"t10k-{kind}-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"t10k-{kind}-ubyte .*get it again"):
        load_images("mnist", data_dir=tmp_path)


def test_an_error_about_the_size_of_a_file_names_both_sizes(tmp_path: Path):
    file = write_mnist(tmp_path, digits(), np.arange(5)) / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"3,936 bytes .*got 3,935 bytes: get it again"):
        load_images("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (digits(5), np.arange(4), r"labels .*\(5,\), got \(4,\)"),
        (digits(2), np.array([3, 10]), r"labels .*0 to 9, got 10"),
        (digits(2, side=32), np.array([3, 1]), r"28 x 28, got 32 x 32"),
        (digits(0), np.arange(0), r"0 items.*get it again"),
    ],
)
def test_an_invalid_mnist_is_an_error(images: np.ndarray, labels: np.ndarray, message: str, tmp_path: Path):
    write_mnist(tmp_path, images, labels)
    with pytest.raises(DataError, match=message):
        load_images("mnist", data_dir=tmp_path)


def test_pickles_of_old_torchvision_versions_are_not_opened(tmp_path: Path):
    write_mnist(tmp_path, digits(), np.arange(5))
    old = tmp_path / "MNIST" / "processed"
    old.mkdir()
    for file in ("training.pt", "test.pt"):
        (old / file).write_bytes(b"not to be read")
    assert len(load_images("mnist", data_dir=tmp_path)) == 5


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "imagenet"])
def test_an_error_about_a_missing_folder_names_it(name: str, tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere .*check --data-dir"):
        load_images(name, data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "imagenet"])
def test_an_empty_folder_is_an_error(name: str, tmp_path: Path):
    with pytest.raises(DataError, match="check --data-dir"):
        load_images(name, data_dir=tmp_path)


# CIFAR-like folders


class Bomb:
    """An object whose unpickling fails the test."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("an unchecked pickle was opened",)


@pytest.fixture
def cifar_folder(tmp_path: Path) -> Path:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for file in (*(name for name, _ in CIFAR10.train_list + CIFAR10.test_list), CIFAR10.meta["filename"]):
        (folder / file).write_bytes(pickle.dumps(Bomb()))
    return tmp_path


def test_a_cifar_file_with_another_md5_is_not_unpickled(cifar_folder: Path):
    with pytest.raises(DataError, match=r"data_batch_1 .*MD5 c99cafc.*: unpack cifar-10-"):
        load_images("cifar10", data_dir=cifar_folder)


def test_an_error_about_a_missing_cifar_file_names_it(cifar_folder: Path):
    (cifar_folder / CIFAR10.base_folder / "data_batch_1").unlink()
    with pytest.raises(DataError, match=r"data_batch_1.* check --data-dir, or unpack"):
        load_images("cifar10", data_dir=cifar_folder)


@pytest.mark.data
@pytest.mark.parametrize("file", ["test_batch", "batches.meta"])
def test_an_error_about_a_truncated_cifar_file_names_it(file: str, official: Path, tmp_path: Path):
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for path in (official / CIFAR10.base_folder).iterdir():
        (folder / path.name).symlink_to(path)
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    (folder / file).write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{file} .*MD5"):
        load_images("cifar10", data_dir=tmp_path)


@pytest.fixture
def cifar100_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-100, whose checksums torchvision is patched to expect."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    pixels = np.arange(3 * 3072).reshape(3, 3072).astype(np.uint8)
    contents = {
        "train": {"data": pixels[:1], "fine_labels": [1]},
        "test": {"data": pixels, "fine_labels": [99, 0, 42]},
        "meta": {"fine_label_names": [f"class {i}" for i in range(100)]},
    }
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
    md5 = {name: hashlib.md5((folder / name).read_bytes()).hexdigest() for name in contents}
    monkeypatch.setattr(CIFAR100, "train_list", [["train", md5["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", md5["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": md5["meta"]})
    return tmp_path


@pytest.mark.parametrize("inner", ["", CIFAR100.base_folder])
def test_cifar100_is_read_in_the_order_of_its_file(inner: str, cifar100_folder: Path):
    data = load_images("cifar100", data_dir=cifar100_folder / inner)
    assert data.images.shape == (3, 3, 32, 32)
    assert data.images.is_contiguous()
    assert torch.equal(data.images.reshape(-1), torch.arange(3 * 3072).to(torch.uint8))
    assert data.labels.tolist() == [99, 0, 42]
    assert (data.num_classes, data.class_names[42]) == (100, "class 42")
    assert not data.is_full_official


# ImageNet, as RobustBench reads it


class ListedImages:
    """A fake of RobustBench's ``CustomImageFolder``: five listed images, the last of them missing."""

    decoded: list[int]

    def __init__(self, root: str, transform: object) -> None:
        assert transform == "Res256Crop224 transform"
        self.classes = sorted(path.name for path in Path(root).iterdir())
        type(self).decoded = []

    def __len__(self) -> int:
        return 5

    def __getitem__(self, i: int) -> tuple[Tensor, int, str]:
        self.decoded.append(i)
        if i == 4:
            raise FileNotFoundError("no such image")
        return torch.full((3, 224, 224), i * 50 / 255), 10 * i, "path"


@pytest.fixture
def imagenet_modules(monkeypatch: pytest.MonkeyPatch) -> type[ListedImages]:
    package, data, loaders = (types.ModuleType(f"robustbench{part}") for part in ("", ".data", ".loaders"))
    data.__dict__["PREPROCESSINGS"] = {"Res256Crop224": "Res256Crop224 transform"}
    loaders.__dict__["CustomImageFolder"] = ListedImages
    for module in (package, data, loaders):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return ListedImages


def class_folders(root: Path, count: int) -> Path:
    for i in range(count):
        (root / "val" / f"n{i:08}").mkdir(parents=True)
    return root


def test_imagenet_decodes_only_the_first_n_examples(tmp_path: Path, imagenet_modules: type[ListedImages]):
    data = load_images("imagenet", data_dir=class_folders(tmp_path, 1000) / "val", n_examples=3)
    assert imagenet_modules.decoded == [0, 1, 2]
    assert data.images.shape == (3, 3, 224, 224)
    assert data.images[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert data.labels.tolist() == [0, 10, 20]
    assert (data.num_classes, data.source, data.is_full_official) == (1000, "folder", False)


def test_a_missing_imagenet_image_is_an_error(tmp_path: Path, imagenet_modules: type):
    with pytest.raises(DataError, match=r"no such image.*check --data-dir"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 1000))


def test_imagenet_needs_every_class_folder(tmp_path: Path):
    with pytest.raises(DataError, match=r"1,000 class folders in .*val, got 999: check --data-dir"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 999))


def test_an_error_about_a_missing_imagenet_class_names_it(
    tmp_path: Path, imagenet_modules: type, monkeypatch: pytest.MonkeyPatch
):
    def look_up(self: object, root: str, transform: object) -> None:
        raise KeyError("n01440764")

    monkeypatch.setattr(imagenet_modules, "__init__", look_up)
    with pytest.raises(DataError, match=r"class folder n01440764 .*check --data-dir"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 1000))


def test_n_examples_cannot_exceed_the_imagenet_list(tmp_path: Path, imagenet_modules: type):
    with pytest.raises(InputError, match=r"lists 5 images .*n_examples=6: ask for fewer"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 1000), n_examples=6)


def test_imagenet_has_no_training_images(tmp_path: Path):
    with pytest.raises(InputError, match=r"got split='train': use test"):
        load_images("imagenet", data_dir=tmp_path, split="train")


def test_imagenet_needs_robustbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "robustbench.data", None)
    with pytest.raises(CompatibilityError, match=r"robustbench, which cannot be imported"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 1000))


@pytest.mark.slow
def test_imagenet_through_the_installed_robustbench(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import robustbench.loaders
        except ImportError as error:
            pytest.skip(f"robustbench cannot be imported: {error}")
    helpers = Path(robustbench.loaders.__file__).parent / "helper_files"
    class_ids = json.loads((helpers / "imagenet_class_to_id_map.json").read_text())
    for name in class_ids:
        (tmp_path / "val" / name).mkdir(parents=True)
    listed = (helpers / "imagenet_test_image_ids.txt").read_text().split()[:2]
    for path in listed:
        Image.new("RGB", (300, 260), (10, 200, 30)).save(tmp_path / "val" / path, "JPEG")
    data = load_images("imagenet", data_dir=tmp_path, n_examples=2)
    assert data.images.shape == (2, 3, 224, 224)
    assert data.labels.tolist() == [class_ids[path.split("/")[0]] for path in listed]
    assert (data.images[0, :, 100, 100] - torch.tensor([10, 200, 30])).abs().max() <= 3
