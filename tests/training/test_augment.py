"""Augmentation moves pixels and never invents any."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from empir_plugin.training.loop import random_flip, random_shift


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_flip_mirrors_whole_images_and_only_some() -> None:
    images = torch.rand(64, 3, 4, 5)
    flipped = random_flip(images, _generator(0))
    mirrored = torch.tensor([torch.equal(new, old.flip(2)) for new, old in zip(flipped, images, strict=True)])
    kept = torch.tensor([torch.equal(new, old) for new, old in zip(flipped, images, strict=True)])
    assert (mirrored ^ kept).all()
    assert 16 < int(mirrored.sum()) < 48


@given(st.integers(0, 1000), st.integers(1, 3))
def test_shift_is_a_translation_with_zeros_coming_in(seed: int, pixels: int) -> None:
    images = torch.rand(4, 2, 6, 7) + 0.1
    shifted = random_shift(images, pixels, _generator(seed))
    padded = torch.nn.functional.pad(images, (pixels,) * 4)
    for new, old in zip(shifted, padded, strict=True):
        windows = [old[:, i : i + 6, j : j + 7] for i in range(2 * pixels + 1) for j in range(2 * pixels + 1)]
        assert any(torch.equal(new, window) for window in windows)


def test_shift_moves_images_apart() -> None:
    same = torch.rand(1, 1, 8, 8).expand(32, 1, 8, 8)
    assert len({tuple(image.flatten().tolist()) for image in random_shift(same, 2, _generator(1))}) > 8


def test_the_same_generator_gives_the_same_batch() -> None:
    images = torch.rand(8, 3, 6, 6)
    assert torch.equal(random_shift(images, 2, _generator(3)), random_shift(images, 2, _generator(3)))
    assert not torch.equal(random_shift(images, 2, _generator(3)), random_shift(images, 2, _generator(4)))
