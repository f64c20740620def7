"""Random numbers per image: a function of the seed and the image's index, whatever batch the image is in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

# The increment and the two multipliers of SplitMix64 (Steele et al., OOPSLA 2014), as signed 64-bit numbers.
_INCREMENT = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


@dataclass(frozen=True, eq=False)
class Draw:
    """One random draw for every image of a batch, a pure function of the seed and the image's index.

    An image gets the same numbers alone, in any batch, in any shard and on any device, so images can be dropped from a
    batch without changing the others. Counter-based: SplitMix64, https://doi.org/10.1145/2714064.2660195.

    Args:
        seed: Any integer.
        indices: Indices of the images in the data set, ``(N,)``.
        number: Which draw this is: the number of the restart or trial.

    Example:
        >>> both = Draw(0, torch.tensor([5, 9])).uniform(torch.empty(2, 3, 4, 4))
        >>> alone = Draw(0, torch.tensor([9])).uniform(torch.empty(1, 3, 4, 4))
        >>> torch.equal(both[1:], alone)
        True
    """

    seed: int
    indices: Tensor
    number: int = 0

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Uniform numbers in [0, 1) with the shape, type and device of ``like``; streams are independent."""
        place = torch.arange(1, like[0].numel() + 1, device=like.device)
        bits = _mix(self._keys(like.device, stream)[:, None] + place * _INCREMENT)
        return _shift_right(bits, 40).to(like.dtype).mul_(2**-24).view(like.shape)

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Standard normal numbers with the shape, type and device of ``like``; streams are independent."""
        radius = (1 - self.uniform(like, 2 * stream)).log_().mul_(-2).sqrt_()
        return (self.uniform(like, 2 * stream + 1) * (2 * math.pi)).cos_().mul_(radius)

    def _keys(self, device: torch.device, stream: int) -> Tensor:
        key = self.indices.to(device, torch.int64)
        for part in (self.seed, self.number, stream):
            key = _mix(key * _INCREMENT + _signed(part))
        return key


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's finaliser, element by element."""
    z = _shift_right(z, 30).bitwise_xor_(z).mul_(_FIRST)
    z = _shift_right(z, 27).bitwise_xor_(z).mul_(_SECOND)
    return _shift_right(z, 31).bitwise_xor_(z)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    # torch's shift of an int64 copies the sign bit; a hash needs zeros there.
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """The signed 64-bit number with the same bits."""
    return (number + 2**63) % 2**64 - 2**63
