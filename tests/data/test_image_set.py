"""Loading, checking and naming the images an evaluation runs on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import pickle
import socket
import struct
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.datasets import CIFAR10, CIFAR100

from empir_plugin.data import readers as sources
from empir_plugin.data.image_set import ImageSet, check_images, fingerprint, load_images
from empir_plugin.errors import CompatibilityError, DataError, InputError

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("EMPIR_DATA_DIR", ROOT.parent / "shared" / "data"))
SAMPLE_FINGERPRINTS = {
    "mnist": "ef6b806e0e515403da9556c1c6bc00ff76de466b6ec367732e70db6a0e7eb40c",
    "cifar10": "57e0e7a732983ab1da29efe8f2a3a21242f481cc33291a3e24e94909c4e6dfe9",
}
FIRST_LABELS = {"mnist": [7, 2, 1, 0, 4, 1, 4, 9, 5, 9], "cifar10": [3, 8, 8, 0, 6, 6, 1, 6, 3, 1]}
BUNDLED = sorted(SAMPLE_FINGERPRINTS)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a data set was looked for on the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def official() -> Path:
    for folder in ("MNIST/raw", "cifar-10-batches-py"):
        if not (DATA / folder).is_dir():
            pytest.skip(f"needs {folder} in ../shared/data or $EMPIR_DATA_DIR")
    return DATA


def small_set(n: int = 3) -> ImageSet:
    images = torch.arange(n * 4, dtype=torch.uint8).reshape(n, 1, 2, 2)
    return ImageSet("mnist", "test", images, torch.arange(n), tuple("0123456789"))


# The samples in the package


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_sample_is_the_one_that_was_published(name: str):
    data = load_images(name)
    assert len(data) == 1000
    assert data.num_classes == 10
    assert data.source == "bundled sample"
    assert not data.is_full_official
    assert data.labels[:10].tolist() == FIRST_LABELS[name]
    assert data.fingerprint == SAMPLE_FINGERPRINTS[name]


@pytest.mark.parametrize("name", BUNDLED)
def test_the_bundled_sample_stays_small(name: str):
    assert (Path(sources.__file__).parent / "samples" / f"{name}.png").stat().st_size < 2_600_000


@pytest.mark.parametrize(("name", "split"), [("mnist", "train"), ("cifar100", "test"), ("imagenet", "test")])
def test_what_is_not_bundled_needs_a_folder(name: str, split: str):
    with pytest.raises(DataError, match=rf"not the {split} images of {name}: pass --data-dir$"):
        load_images(name, split=split)


def test_more_than_the_sample_has_points_to_the_full_set():
    with pytest.raises(InputError, match=r"sample of cifar10 has 1,000 images, got n_examples=5000: pass --data-dir"):
        load_images("cifar10", n_examples=5000)


def with_package_files(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(sources.resources, "files", lambda package: folder)


def test_a_damaged_sample_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    content = bytearray((Path(sources.__file__).parent / "samples" / "mnist.png").read_bytes())
    content[5000] ^= 1
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "mnist.png").write_bytes(content)
    with_package_files(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=r"mnist\.png is damaged .*: install empir-plugin again$"):
        load_images("mnist")


def test_a_missing_sample_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with_package_files(monkeypatch, tmp_path)
    with pytest.raises(DataError, match=r"cannot be read .*: install empir-plugin again$"):
        load_images("cifar10")


@pytest.mark.data
def test_the_samples_can_be_made_again(official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
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
    # Another Pillow may compress to other bytes; what must not change is the pixels and the labels.
    made = {name: sha256(tmp_path / "samples" / f"{name}.png") for name in BUNDLED}
    assert all(digest in result.output for digest in made.values())
    monkeypatch.setattr(sources, "SAMPLE_SHA256", made)
    with_package_files(monkeypatch, tmp_path)
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
def test_the_inner_folder_will_do(name: str, inner: str, official: Path):
    assert load_images(name, data_dir=official / inner, n_examples=1000).fingerprint == SAMPLE_FINGERPRINTS[name]


@pytest.mark.data
def test_a_relative_folder_will_do(official: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(official / "MNIST" / "raw")
    assert load_images("mnist", data_dir=".").is_full_official


@pytest.mark.data
def test_floats_are_what_torchvision_gives(official: Path):
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


def test_a_users_own_mnist_is_read_but_not_official(tmp_path: Path):
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
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte, which is not there: check --data-dir"):
        load_images("mnist", data_dir=tmp_path)


def test_a_packed_mnist_is_pointed_out(tmp_path: Path):
    raw = write_mnist(tmp_path, digits(), np.arange(5))
    images = raw / "t10k-images-idx3-ubyte"
    images.rename(f"{images}.gz")
    with pytest.raises(DataError, match=r"which is not there: unpack the \.gz beside it$"):
        load_images("mnist", data_dir=tmp_path)


@pytest.mark.parametrize("kind", ["images-idx3", "labels-idx1"])
@pytest.mark.parametrize("keep", [0, 3, 7, 12])
def test_a_truncated_mnist_is_refused(kind: str, keep: int, tmp_path: Path):
    file = write_mnist(tmp_path, digits(), np.arange(5)) / f"t10k-{kind}-ubyte"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"get it again$"):
        load_images("mnist", data_dir=tmp_path)


def test_a_mnist_one_byte_short_says_both_sizes(tmp_path: Path):
    file = write_mnist(tmp_path, digits(), np.arange(5)) / "t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(DataError, match="must have 3,936 bytes of 5 items, got 3,935 bytes: get it again"):
        load_images("mnist", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (digits(5), np.arange(4), r"labels must have the shape \(5,\), got \(4,\)"),
        (digits(2), np.array([3, 10]), "labels must be 0 to 9, got 10"),
        (digits(2, side=32), np.array([3, 1]), "must hold images of 28 x 28, got 32 x 32"),
        (digits(0), np.arange(0), "0 items"),
    ],
)
def test_an_impossible_mnist_is_refused(images: np.ndarray, labels: np.ndarray, sentence: str, tmp_path: Path):
    write_mnist(tmp_path, images, labels)
    with pytest.raises(DataError, match=sentence):
        load_images("mnist", data_dir=tmp_path)


def test_no_pickle_of_an_old_torchvision_is_opened(tmp_path: Path):
    write_mnist(tmp_path, digits(), np.arange(5))
    old = tmp_path / "MNIST" / "processed"
    old.mkdir()
    for file in ("training.pt", "test.pt"):
        (old / file).write_bytes(b"not to be read")
    assert len(load_images("mnist", data_dir=tmp_path)) == 5


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "imagenet"])
def test_a_missing_folder_is_named(name: str, tmp_path: Path):
    with pytest.raises(DataError, match="nowhere is not a folder: check --data-dir"):
        load_images(name, data_dir=tmp_path / "nowhere")


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "imagenet"])
def test_an_empty_folder_says_what_is_missing(name: str, tmp_path: Path):
    with pytest.raises(DataError, match="check --data-dir"):
        load_images(name, data_dir=tmp_path)


# CIFAR-like folders


class Bomb:
    """Unpickling this is caught."""

    def __reduce__(self) -> tuple:
        return pytest.fail, ("an unchecked pickle was opened",)


@pytest.fixture
def cifar_folder(tmp_path: Path) -> Path:
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for file in (*(name for name, _ in CIFAR10.train_list + CIFAR10.test_list), CIFAR10.meta["filename"]):
        (folder / file).write_bytes(pickle.dumps(Bomb()))
    return tmp_path


def test_a_cifar_with_another_md5_is_never_unpickled(cifar_folder: Path):
    with pytest.raises(DataError, match=r"data_batch_1 must have the MD5 c99cafc.*got another one: unpack cifar-10-"):
        load_images("cifar10", data_dir=cifar_folder)


def test_a_missing_cifar_file_is_named(cifar_folder: Path):
    (cifar_folder / CIFAR10.base_folder / "data_batch_1").unlink()
    with pytest.raises(DataError, match="data_batch_1, which is not there: check --data-dir, or unpack"):
        load_images("cifar10", data_dir=cifar_folder)


@pytest.mark.data
@pytest.mark.parametrize("file", ["test_batch", "batches.meta"])
def test_a_truncated_cifar_file_is_named(file: str, official: Path, tmp_path: Path):
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    for path in (official / CIFAR10.base_folder).iterdir():
        (folder / path.name).symlink_to(path)
    content = (folder / file).read_bytes()
    (folder / file).unlink()
    (folder / file).write_bytes(content[:-1])
    with pytest.raises(DataError, match=f"{file} must have the MD5"):
        load_images("cifar10", data_dir=tmp_path)


@pytest.fixture
def cifar100_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-100 whose checksums torchvision is told to expect."""
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


@pytest.mark.parametrize(("count", "source", "full"), [(10_000, "official", True), (10_000, "folder", False)])
def test_cifar100_is_official_by_its_files_and_size(count: int, source: str, full: bool):
    images, labels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    data = ImageSet("cifar100", "test", images, labels, tuple(map(str, range(100))), source)
    assert data.is_full_official is full
    assert not data.first(count - 1).is_full_official


# ImageNet, as RobustBench reads it


class ListedImages:
    """Stands for RobustBench's ``CustomImageFolder``: five listed images, the last of them missing."""

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


def test_imagenet_decodes_only_what_is_asked_for(tmp_path: Path, imagenet_modules: type[ListedImages]):
    data = load_images("imagenet", data_dir=class_folders(tmp_path, 1000) / "val", n_examples=3)
    assert imagenet_modules.decoded == [0, 1, 2]
    assert data.images.shape == (3, 3, 224, 224)
    assert data.images[:, 0, 0, 0].tolist() == [0, 50, 100]
    assert data.labels.tolist() == [0, 10, 20]
    assert (data.num_classes, data.source, data.is_full_official) == (1000, "folder", False)


def test_imagenet_names_a_missing_image(tmp_path: Path, imagenet_modules: type):
    with pytest.raises(DataError, match=r"cannot be read .no such image.: check --data-dir and its files"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 1000))


def test_imagenet_needs_every_class_folder(tmp_path: Path):
    with pytest.raises(DataError, match=r"needs 1,000 class folders in .*val, got 999"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 999))


def test_imagenet_names_a_class_folder_of_another_name(
    tmp_path: Path, imagenet_modules: type, monkeypatch: pytest.MonkeyPatch
):
    def look_up(self: object, root: str, transform: object) -> None:
        raise KeyError("n01440764")

    monkeypatch.setattr(imagenet_modules, "__init__", look_up)
    with pytest.raises(DataError, match="needs the class folder n01440764 in"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 1000))


def test_imagenet_has_no_more_than_its_list(tmp_path: Path, imagenet_modules: type):
    with pytest.raises(InputError, match="RobustBench lists 5 images of imagenet, got n_examples=6: ask for fewer"):
        load_images("imagenet", data_dir=class_folders(tmp_path, 1000), n_examples=6)


def test_imagenet_has_no_training_images(tmp_path: Path):
    with pytest.raises(InputError, match="test images of imagenet only"):
        load_images("imagenet", data_dir=tmp_path, split="train")


def test_imagenet_without_robustbench_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "robustbench.data", None)
    with pytest.raises(CompatibilityError, match="through robustbench, which cannot be imported"):
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


# Sets


def test_the_first_examples_are_the_first_in_order():
    data = load_images("mnist")
    head = data.first(10)
    assert head.labels.tolist() == FIRST_LABELS["mnist"]
    assert torch.equal(head.images, data.images[:10])
    assert load_images("mnist", n_examples=10).fingerprint == head.fingerprint != data.fingerprint
    assert head.first(3).fingerprint == data.first(3).fingerprint


def test_a_batch_is_a_slice_of_the_whole():
    data = small_set()
    images, labels = data.batch(1, 3)
    assert images.dtype == torch.float32
    assert images[0, 0, 0, 0].item() == torch.tensor(4 / 255).item()
    assert torch.equal(images, data.as_float()[1:3])
    assert labels.tolist() == [1, 2]
    assert data.images.dtype == torch.uint8


def test_floats_cannot_change_the_stored_bytes():
    data = small_set()
    data.as_float().zero_()
    assert data.images[0, 0, 0].tolist() == [0, 1]


def test_more_than_a_folder_has_is_refused():
    with pytest.raises(InputError, match=r"^mnist \(test\) has 3 images, got n_examples=4: ask for fewer$"):
        small_set().first(4)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_a_number_of_examples_is_a_positive_whole_number(n: int):
    with pytest.raises(InputError, match="n_examples must be a whole number, at least 1, got"):
        load_images("mnist", n_examples=n)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match="must be one of mnist, cifar10, cifar100, imagenet, got 'svhn'"):
        load_images("svhn")
    with pytest.raises(InputError, match="split must be test or train, got 'val'"):
        load_images("mnist", split="val")


def test_a_set_stores_bytes():
    with pytest.raises(InputError, match=r"stores uint8 in 0\.\.255, got torch\.float32"):
        ImageSet("mnist", "test", torch.rand(2, 1, 2, 2), torch.arange(2), ("a", "b"))


# Fingerprints


def test_the_fingerprint_is_the_stated_layout():
    images, labels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8), torch.tensor([7])
    layout = b"empir-plugin image set, layout 1\n|u1 (1, 1, 1, 2)\n\x00\xff<i8 (1,)\n" + struct.pack("<q", 7)
    assert fingerprint(images, labels) == hashlib.sha256(layout).hexdigest()
    floats = b"empir-plugin image set, layout 1\n<f4 (1, 1, 1, 2)\n" + struct.pack("<ff", 0.5, 1)
    floats += b"<i8 (1,)\n" + struct.pack("<q", 7)
    assert fingerprint(torch.tensor([[[[0.5, 1.0]]]]), labels) == hashlib.sha256(floats).hexdigest()


def test_every_byte_has_one_fingerprint_as_integer_and_as_float():
    images, labels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16), torch.tensor([0])
    assert fingerprint(images.float() / 255, labels) == fingerprint(images, labels)
    assert fingerprint(torch.nextafter(images.float() / 255, torch.tensor(2.0)), labels) != fingerprint(images, labels)


images_and_labels = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)).flatmap(
    lambda shape: st.tuples(
        st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
            lambda data: torch.tensor(list(data), dtype=torch.uint8).reshape(shape)
        ),
        st.lists(st.integers(0, 2**40), min_size=shape[0], max_size=shape[0]).map(torch.tensor),
    )
)


@given(images_and_labels, st.data())
def test_any_other_pixel_is_another_fingerprint(pair: tuple[Tensor, Tensor], data: st.DataObject):
    images, labels = pair
    i = data.draw(st.integers(0, images.numel() - 1))
    changed = images.clone()
    changed.view(-1)[i] += data.draw(st.integers(1, 255))
    assert fingerprint(changed, labels) != fingerprint(images, labels)
    nudged = images.float() / 255
    nudged.view(-1)[i] += 1e-3
    assert fingerprint(nudged, labels) != fingerprint(images, labels)


@given(images_and_labels, st.data())
def test_any_other_label_is_another_fingerprint(pair: tuple[Tensor, Tensor], data: st.DataObject):
    images, labels = pair
    changed = labels.clone()
    changed[data.draw(st.integers(0, len(labels) - 1))] += data.draw(st.integers(1, 2**40))
    assert fingerprint(images, changed) != fingerprint(images, labels)


@given(images_and_labels)
def test_any_other_shape_is_another_fingerprint(pair: tuple[Tensor, Tensor]):
    images, labels = pair
    assert fingerprint(images.flatten(1), labels) != fingerprint(images, labels)
    assert fingerprint(images.unsqueeze(1), labels) != fingerprint(images, labels)


@given(images_and_labels)
def test_how_a_tensor_lies_in_memory_is_no_matter(pair: tuple[Tensor, Tensor]):
    images, labels = pair
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert fingerprint(permuted, labels) == fingerprint(images, labels)


@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -0.1, 1.5, 300 / 255])
def test_impossible_pixels_have_a_fingerprint_too(odd: float):
    images, labels = torch.zeros(1, 1, 1, 2), torch.tensor([0])
    images[..., 1] = odd
    prints = {fingerprint(images, labels), *(fingerprint(torch.full_like(images, v), labels) for v in (0, 1))}
    assert len(prints) == 3


@pytest.mark.parametrize(
    ("images", "labels", "sentence"),
    [
        (torch.rand(2, 1, 2, 2).double(), torch.arange(2), r"must be uint8 or float32 .* got torch\.float64"),
        (torch.rand(2, 1, 2, 2), torch.arange(3), r"labels must be torch\.int64 \(2,\).* got torch\.int64 \(3,\)"),
        (
            torch.rand(2, 1, 2, 2),
            torch.arange(2).int(),
            r"labels must be torch\.int64 \(2,\).* got torch\.int32 \(2,\)",
        ),
    ],
)
def test_what_cannot_be_fingerprinted(images: Tensor, labels: Tensor, sentence: str):
    with pytest.raises(InputError, match=sentence):
        fingerprint(images, labels)


# Checking anybody's tensors

GOOD = torch.zeros(2, 3, 4, 4)


def changed(value: float) -> Tensor:
    images = GOOD.clone()
    images[1, 2, 3, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (np.zeros((2, 3, 4, 4)), r"must be a torch\.Tensor, got ndarray: convert it"),
        (GOOD.to(torch.uint8), r"float32 in \[0, 1\], got torch\.uint8: divide them by 255"),
        (GOOD.double(), r"float32 in \[0, 1\], got torch\.float64: call \.float\(\)"),
        (GOOD[0], r"\(N, C, H, W\), got \(3, 4, 4\): add the batch dimension"),
        (GOOD[0, 0], r"\(N, C, H, W\), got \(4, 4\): reshape"),
        (GOOD[:0], r"must not be empty, got the shape \(0, 3, 4, 4\)"),
        (GOOD[..., :0], "must not be empty"),
        (changed(float("nan")), "must be finite"),
        (changed(float("inf")), "must be finite"),
        (changed(float("-inf")), "must be finite"),
        (changed(255), r"in \[0, 1\], got values up to 255: divide by 255"),
        (changed(1.0000002), r"in \[0, 1\], got values up to 1\.00000024: clamp"),
        (changed(-2.25), r"in \[0, 1\], got values down to -2\.25: undo the normalisation"),
    ],
)
def test_wrong_images_each_have_their_sentence(images: Tensor, sentence: str):
    with pytest.raises(InputError, match=sentence) as caught:
        check_images(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ([0, 1], r"must be a torch\.int64 tensor, got list"),
        (torch.tensor([0.0, 1.0]), r"must be a torch\.int64 tensor, got torch\.float32"),
        (torch.arange(3), r"must have the shape \(2,\), got \(3,\): pass one class number"),
        (torch.eye(2).long(), r"must have the shape \(2,\), got \(2, 2\): take y\.argmax\(1\)"),
        (torch.tensor([1, 10]), "must be 0 to 9, got 10: count the classes from 0"),
        (torch.tensor([-1, 0]), "must be 0 to 9, got -1"),
    ],
)
def test_wrong_labels_each_have_their_sentence(labels: Tensor, sentence: str):
    with pytest.raises(InputError, match=sentence):
        check_images(GOOD, labels, num_classes=10)


def test_good_images_pass():
    check_images(GOOD)
    check_images(torch.ones(1, 1, 1, 1), torch.tensor([9]), num_classes=10)
    check_images(GOOD.clone().requires_grad_(), torch.tensor([0, 10**6]))
    with pytest.raises(InputError, match="labels must be 0 or more, got -1"):
        check_images(GOOD, torch.tensor([0, -1]))


def test_loaded_sets_pass_the_check():
    for name in BUNDLED:
        data = load_images(name)
        check_images(*data.batch(0, 1000), num_classes=data.num_classes)
