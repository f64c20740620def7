"""Fingerprints: the documented layout, and one fingerprint per set of images and labels."""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from empir_plugin.data.image_set import fingerprint
from empir_plugin.errors import InputError


def test_the_fingerprint_follows_the_documented_layout():
    images, labels = torch.tensor([[[[0, 255]]]], dtype=torch.uint8), torch.tensor([7])
    layout = b"empir-plugin image set, layout 1\n|u1 (1, 1, 1, 2)\n\x00\xff<i8 (1,)\n" + struct.pack("<q", 7)
    assert fingerprint(images, labels) == hashlib.sha256(layout).hexdigest()
    floats = b"empir-plugin image set, layout 1\n<f4 (1, 1, 1, 2)\n" + struct.pack("<ff", 0.5, 1)
    floats += b"<i8 (1,)\n" + struct.pack("<q", 7)
    assert fingerprint(torch.tensor([[[[0.5, 1.0]]]]), labels) == hashlib.sha256(floats).hexdigest()


def test_uint8_and_float_images_have_the_same_fingerprint():
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
def test_changing_a_pixel_changes_the_fingerprint(pair: tuple[Tensor, Tensor], data: st.DataObject):
    images, labels = pair
    i = data.draw(st.integers(0, images.numel() - 1))
    changed = images.clone()
    changed.view(-1)[i] += data.draw(st.integers(1, 255))
    assert fingerprint(changed, labels) != fingerprint(images, labels)
    nudged = images.float() / 255
    nudged.view(-1)[i] += 1e-3
    assert fingerprint(nudged, labels) != fingerprint(images, labels)


@given(images_and_labels, st.data())
def test_changing_a_label_changes_the_fingerprint(pair: tuple[Tensor, Tensor], data: st.DataObject):
    images, labels = pair
    changed = labels.clone()
    changed[data.draw(st.integers(0, len(labels) - 1))] += data.draw(st.integers(1, 2**40))
    assert fingerprint(images, changed) != fingerprint(images, labels)


@given(images_and_labels)
def test_changing_the_shape_changes_the_fingerprint(pair: tuple[Tensor, Tensor]):
    images, labels = pair
    assert fingerprint(images.flatten(1), labels) != fingerprint(images, labels)
    assert fingerprint(images.unsqueeze(1), labels) != fingerprint(images, labels)


@given(images_and_labels)
def test_the_memory_layout_makes_no_difference(pair: tuple[Tensor, Tensor]):
    images, labels = pair
    permuted = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert fingerprint(permuted, labels) == fingerprint(images, labels)


@pytest.mark.parametrize("invalid", [float("nan"), float("inf"), -0.1, 1.5, 300 / 255])
def test_invalid_pixels_have_their_own_fingerprint(invalid: float):
    images, labels = torch.zeros(1, 1, 1, 2), torch.tensor([0])
    images[..., 1] = invalid
    fingerprints = {fingerprint(images, labels), *(fingerprint(torch.full_like(images, v), labels) for v in (0, 1))}
    assert len(fingerprints) == 3


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.rand(2, 1, 2, 2).double(), torch.arange(2), r"uint8 or float32 .* got torch\.float64: convert"),
        (torch.rand(2, 1, 2, 2), torch.arange(3), r"labels .*int64 \(2,\).* got torch\.int64 \(3,\)"),
        (torch.rand(2, 1, 2, 2), torch.arange(2).int(), r"labels .*int64 \(2,\).* got torch\.int32 \(2,\)"),
    ],
)
def test_other_types_and_shapes_have_no_fingerprint(images: Tensor, labels: Tensor, message: str):
    with pytest.raises(InputError, match=message):
        fingerprint(images, labels)
