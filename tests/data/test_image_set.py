"""Image sets: slices, official sets, arguments of ``load_images``, and checks of any images and labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from empir_plugin.data.image_set import ImageSet, check_images, load_images
from empir_plugin.errors import InputError


def small_set(n: int = 3) -> ImageSet:
    images = torch.arange(n * 4, dtype=torch.uint8).reshape(n, 1, 2, 2)
    return ImageSet("mnist", "test", images, torch.arange(n), tuple("0123456789"))


def test_first_keeps_the_first_images_in_order():
    data = load_images("mnist")
    head = data.first(10)
    assert head.labels.tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert torch.equal(head.images, data.images[:10])
    assert load_images("mnist", n_examples=10).fingerprint == head.fingerprint != data.fingerprint
    assert head.first(3).fingerprint == data.first(3).fingerprint


def test_a_batch_is_a_slice():
    data = small_set()
    images, labels = data.batch(1, 3)
    assert images.dtype == torch.float32
    assert images[0, 0, 0, 0].item() == torch.tensor(4 / 255).item()
    assert torch.equal(images, data.as_float()[1:3])
    assert labels.tolist() == [1, 2]
    assert data.images.dtype == torch.uint8


def test_changing_the_floats_does_not_change_the_set():
    data = small_set()
    data.as_float().zero_()
    assert data.images[0, 0, 0].tolist() == [0, 1]


def test_first_cannot_exceed_the_set():
    with pytest.raises(InputError, match=r"mnist \(test\) has 3 .*n_examples=4: ask for fewer"):
        small_set().first(4)


@pytest.mark.parametrize("n", [0, -1, 2.0, True])
def test_n_examples_is_a_positive_integer(n: int):
    with pytest.raises(InputError, match=rf"n_examples .*whole number.*got {n}"):
        load_images("mnist", n_examples=n)


def test_errors_about_unknown_names_list_the_known_ones():
    with pytest.raises(InputError, match=r"mnist, cifar10, cifar100, imagenet, got 'svhn'"):
        load_images("svhn")
    with pytest.raises(InputError, match=r"split .*test or train, got 'val'"):
        load_images("mnist", split="val")


def test_a_set_stores_uint8():
    with pytest.raises(InputError, match=r"uint8 .*got torch\.float32: multiply by 255"):
        ImageSet("mnist", "test", torch.rand(2, 1, 2, 2), torch.arange(2), ("a", "b"))


@pytest.mark.parametrize("images", [np.zeros((2, 1, 2, 2), np.uint8), np.zeros((2, 1, 2, 2)), [[[[0]]], [[[1]]]], None])
def test_images_that_are_no_tensor_are_refused_by_name(images: object):
    kind = type(images).__name__
    with pytest.raises(InputError, match=rf"stores a torch\.Tensor of uint8, got a {kind}: use torch\.as_tensor"):
        ImageSet("mnist", "test", images, torch.arange(2), ("a", "b"))  # type: ignore[arg-type]


@pytest.mark.parametrize("names", [2, "ab", None])
def test_class_names_are_a_tuple(names: object):
    images = torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    with pytest.raises(InputError, match=rf"class_names must be a tuple .*got {names!r}: .*\('cat', 'dog'\)"):
        ImageSet("mnist", "test", images, torch.arange(2), names)  # type: ignore[arg-type]


@pytest.mark.parametrize(("count", "source", "full"), [(10_000, "official", True), (10_000, "folder", False)])
def test_cifar100_is_official_by_its_files_and_size(count: int, source: str, full: bool):
    images, labels = torch.zeros(count, 1, 1, 1, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    data = ImageSet("cifar100", "test", images, labels, tuple(map(str, range(100))), source)
    assert data.is_full_official is full
    assert not data.first(count - 1).is_full_official


# Checks of any images and labels

VALID = torch.zeros(2, 3, 4, 4)


def with_pixel(value: float) -> Tensor:
    images = VALID.clone()
    images[1, 2, 3, 3] = value
    return images


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((2, 3, 4, 4)), r"torch\.Tensor, got ndarray: convert it"),
        (VALID.to(torch.uint8), r"float32 .*torch\.uint8: divide them by 255"),
        (VALID.double(), r"float32 .*torch\.float64: call \.float\(\)"),
        (VALID[0], r"got \(3, 4, 4\): add the batch dimension"),
        (VALID[0, 0], r"got \(4, 4\): reshape"),
        (VALID[:0], r"empty, got .*\(0, 3, 4, 4\): pass at least one"),
        (VALID[..., :0], r"empty, got .*\(2, 3, 4, 0\)"),
        (with_pixel(float("nan")), "finite, got NaN or infinite pixels: check"),
        (with_pixel(float("inf")), "finite, got NaN or infinite pixels: check"),
        (with_pixel(float("-inf")), "finite, got NaN or infinite pixels: check"),
        (with_pixel(255), r"\[0, 1\], got .*255: divide by 255"),
        (with_pixel(1.0000002), r"\[0, 1\], got .*1\.00000024: clamp"),
        (with_pixel(-2.25), r"\[0, 1\], got .*-2\.25: undo the normalisation"),
    ],
)
def test_errors_about_images_name_the_value_and_the_cure(images: Tensor, message: str):
    with pytest.raises(InputError, match=message) as caught:
        check_images(images)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1], r"torch\.int64 .*got list: use torch\.as_tensor"),
        (torch.tensor([0.0, 1.0]), r"torch\.int64 .*got torch\.float32: use torch\.as_tensor"),
        (torch.arange(3), r"\(2,\), got \(3,\): pass one class number"),
        (torch.eye(2).long(), r"\(2,\), got \(2, 2\): take y\.argmax\(1\)"),
        (torch.tensor([1, 10]), "0 to 9, got 10: count the classes from 0"),
        (torch.tensor([-1, 0]), "0 to 9, got -1: count the classes from 0"),
    ],
)
def test_errors_about_labels_name_the_value_and_the_cure(labels: Tensor, message: str):
    with pytest.raises(InputError, match=message):
        check_images(VALID, labels, num_classes=10)


def test_valid_images_pass():
    check_images(VALID)
    check_images(torch.ones(1, 1, 1, 1), torch.tensor([9]), num_classes=10)
    check_images(VALID.clone().requires_grad_(), torch.tensor([0, 10**6]))
    with pytest.raises(InputError, match=r"labels .*0 or more, got -1"):
        check_images(VALID, torch.tensor([0, -1]))


def test_loaded_sets_pass_the_check():
    for name in ("mnist", "cifar10"):
        data = load_images(name)
        check_images(*data.batch(0, 1000), num_classes=data.num_classes)


def test_its_repr_is_short() -> None:
    images = torch.zeros(1000, 3, 4, 5, dtype=torch.uint8)
    data = ImageSet("toy", "test", images, torch.zeros(1000, dtype=torch.int64), ("a", "b"))
    assert repr(data) == "ImageSet('toy', 'test', 1,000 images of 3x4x5, 2 classes, folder)"
