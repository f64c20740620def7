"""Random numbers per image: the literal hash, independence of the batch, and moments."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from empir_plugin.attacks.randomness import Draw

MASK = 2**64 - 1


def splitmix(z: int) -> int:
    """SplitMix64's finaliser in Python's unbounded integers."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def literal_uniform(seed: int, index: int, number: int, stream: int, place: int) -> float:
    key = index
    for part in (seed, number, stream):
        key = splitmix((key * 0x9E3779B97F4A7C15 + part) & MASK)
    bits = splitmix((key + (place + 1) * 0x9E3779B97F4A7C15) & MASK)
    return (bits >> 40) * 2.0**-24


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(-(2**63), 2**64 - 1), index=st.integers(0, 2**40), number=st.integers(0, 50))
def test_equals_the_literal_hash(seed: int, index: int, number: int) -> None:
    got = Draw(seed, torch.tensor([index]), number).uniform(torch.empty(1, 1, 1, 3, dtype=torch.float64), stream=1)
    assert got.flatten().tolist() == [literal_uniform(seed, index, number, 1, place) for place in range(3)]


def test_numbers_depend_on_the_image_and_not_on_the_batch() -> None:
    like = torch.empty(6, 3, 4, 4)
    together = Draw(7, torch.arange(10, 16)).normal(like)
    for row in range(6):
        alone = Draw(7, torch.tensor([10 + row])).normal(like[:1])
        assert torch.equal(together[row : row + 1], alone)


def test_the_memory_layout_makes_no_difference() -> None:
    like = torch.empty(2, 3, 4, 4)
    draw = Draw(0, torch.arange(2))
    assert torch.equal(draw.uniform(like), draw.uniform(like.to(memory_format=torch.channels_last)))


def test_seeds_images_draws_and_streams_are_independent() -> None:
    like = torch.empty(1, 1, 8, 8)
    draws = [
        Draw(s, torch.tensor([i]), n).uniform(like, t) for s in (0, 1) for i in (0, 1) for n in (0, 1) for t in (0, 1)
    ]
    for a in range(len(draws)):
        for b in range(a):
            assert abs(float(torch.corrcoef(torch.stack([draws[a].flatten(), draws[b].flatten()]))[0, 1])) < 0.5


def test_moments() -> None:
    like = torch.empty(500, 1, 10, 10)
    uniform = Draw(3, torch.arange(500)).uniform(like)
    assert float(uniform.min()) >= 0
    assert float(uniform.max()) < 1
    assert float(uniform.mean()) == pytest.approx(0.5, abs=0.005)
    normal = Draw(3, torch.arange(500)).normal(like)
    assert torch.isfinite(normal).all()
    assert float(normal.mean()) == pytest.approx(0, abs=0.02)
    assert float(normal.std()) == pytest.approx(1, abs=0.02)
    assert float((normal.abs() > 1.96).double().mean()) == pytest.approx(0.05, abs=0.005)
