"""Activation quantizers for signed inputs, and for learned ranges.

DoReFa's own quantizer clips to [0, 1]. In a transformer half of a layer's inputs are negative, and many exceed 1 in
magnitude; a symmetric range, or one of learned width (PACT, Choi et al., https://arxiv.org/abs/1805.06085), keeps them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from empir_plugin._files.tables import choice
from empir_plugin.models.backward import BackwardRule, as_trained
from empir_plugin.models.quantize import (
    FULL_BITS,
    ActivationQuantizer,
    check_bits,
    in_float32,
    quantize_unit,
    round_to_integers,
)


class Activations(Enum):
    """Range to which the inputs of quantized layers are clipped.

    ``AUTO`` chooses between the next two for each layer, by the values of its inputs; ``UNSIGNED`` is DoReFa's [0, 1],
    ``SIGNED`` is [-1, 1], and ``PACT`` is ``AUTO`` with a learned width in place of 1.

    Example:
        >>> Activations.parse("auto")
        <Activations.AUTO: 'auto'>
    """

    AUTO = "auto"
    UNSIGNED = "unsigned"
    SIGNED = "signed"
    PACT = "pact"

    @classmethod
    def parse(cls, value: Activations | str) -> Activations:
        """Parse the text form; a member of this class is returned as it is.

        Raises:
            InputError: If the text names no member.
        """
        return choice(cls, "activations", value)


@dataclass(frozen=True)
class SignedActivationQuantizer:
    """Clip to [-1, 1], then round to ``2**bits`` equally spaced levels, none of which is zero.

    The result is ``2 q((x + 1) / 2) - 1``, where q is the quantizer of [0, 1]. The gradient is 1 on [-1, 1], both ends
    included, and 0 outside.

    Args:
        bits: 1 to 8, or 32 for no quantization.
        clip: The clip of ``(x + 1) / 2`` to [0, 1], with its gradient.

    Raises:
        InputError: If the number of bits is neither in 1..8 nor 32.

    Example:
        >>> SignedActivationQuantizer(2)(torch.tensor([-2.0, -0.3, 0.3, 2.0]))
        tensor([-1.0000, -0.3333,  0.3333,  1.0000])
    """

    bits: int
    clip: BackwardRule = as_trained

    def __post_init__(self) -> None:
        check_bits("bits", self.bits)

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize activations of any shape."""
        if self.bits == FULL_BITS:
            return x
        return 2 * quantize_unit(self.clip((in_float32(x) + 1) / 2), self.bits) - 1

    @property
    def steps(self) -> int:
        """The integer of the level 1: levels are the odd integers from ``-steps`` to ``steps``, over ``steps``."""
        return 2**self.bits - 1

    def integers(self, x: Tensor) -> Tensor:
        """The integers of the levels, as floats: :meth:`__call__` times :attr:`steps`, with its gradient."""
        return 2 * round_to_integers(self.clip((in_float32(x) + 1) / 2), self.steps) - self.steps

    def __str__(self) -> str:
        return "signed"


@dataclass(frozen=True)
class SignActivationQuantizer:
    """The sign of an activation, 1 for zero: binary networks (Hubara et al., https://arxiv.org/abs/1602.02830).

    The gradient is 1 on [-1, 1], both ends included, and 0 outside.

    Args:
        clip: The clip of ``(x + 1) / 2`` to [0, 1], of which only the gradient is used.

    Example:
        >>> SignActivationQuantizer()(torch.tensor([-0.1, 0.0, 3.0]))
        tensor([-1.,  1.,  1.])
    """

    clip: BackwardRule = as_trained

    @property
    def bits(self) -> int:
        """Always 1."""
        return 1

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize activations of any shape."""
        x = in_float32(x)
        slope = 2 * self.clip((x + 1) / 2)
        return torch.where(x < 0, -1.0, 1.0) + (slope - slope.detach())

    @property
    def steps(self) -> int:
        """The integer of the level 1, 1: levels are -1 and 1."""
        return 1

    def integers(self, x: Tensor) -> Tensor:
        """The levels themselves, with the gradient of :meth:`__call__`."""
        return self(x)

    def __str__(self) -> str:
        return "sign"


InputQuantizer = ActivationQuantizer | SignedActivationQuantizer | SignActivationQuantizer
"""The quantizer that a quantized layer applies to its input."""


def is_signed(quantizer: InputQuantizer) -> bool:
    """Whether a quantizer keeps the sign of negative inputs."""
    return not isinstance(quantizer, ActivationQuantizer)


def quantize_in_learned_range(quantizer: InputQuantizer, x: Tensor, bound: Tensor) -> Tensor:
    """Quantize on [0, bound] or [-bound, bound]: PACT, https://arxiv.org/abs/1805.06085, Equations 2 and 3.

    Inside the range the gradient goes to the activation. Outside, where the output is plus or minus the bound, it goes
    to the bound, with that sign.

    Args:
        quantizer: The quantizer for a range of width 1.
        x: Activations of any shape.
        bound: A scalar tensor; values of 0 or below count as a tiny positive number.

    Example:
        >>> bound = torch.tensor(2.0, requires_grad=True)
        >>> y = quantize_in_learned_range(ActivationQuantizer(2), torch.tensor([-1.0, 1.0, 5.0]), bound)
        >>> y.detach(), torch.autograd.grad(y.sum(), bound)
        (tensor([0.0000, 1.3333, 2.0000]), (tensor(1.),))
    """
    scaled, width, beyond = _scale_to_range(quantizer, x, bound)
    return width * quantizer(scaled) + beyond


def integers_in_learned_range(quantizer: InputQuantizer, x: Tensor, bound: Tensor) -> Tensor:
    """The integers of the levels of :func:`quantize_in_learned_range`, in units of ``width / steps``, as floats.

    The gradient is that of the levels, in these units.
    """
    scaled, width, beyond = _scale_to_range(quantizer, x, bound)
    return quantizer.integers(scaled) + beyond * (quantizer.steps / width)


def learned_width(bound: Tensor) -> Tensor:
    """Half the width of a learned symmetric range, or the width of one from 0: a detached positive scalar tensor."""
    width = in_float32(bound.detach())
    return width.clamp_min(torch.finfo(width.dtype).tiny)


def _scale_to_range(quantizer: InputQuantizer, x: Tensor, bound: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Activations over the width of the range, the width, and zeros with the gradient of the bound."""
    x, width = in_float32(x), learned_width(bound).to(in_float32(x).dtype)
    scaled = x / width
    beyond = (scaled >= 1).to(x.dtype) - ((scaled <= -1).to(x.dtype) if is_signed(quantizer) else 0)
    return scaled, width, beyond * (bound - bound.detach())
