"""DoReFa's quantizers of weights and activations, with their gradients.

Source: Zhou et al., "DoReFa-Net", https://arxiv.org/abs/1606.06160, in the form of the authors' TensorFlow code, which
EMPIR (Sen et al., ICLR 2020, https://openreview.net/forum?id=HJem3yHKwH) uses: weights in [-1, 1] without a scale, a
differentiated maximum, ties rounded to even.

Gradient quantization (DoReFa's G bits) is not implemented: EMPIR does not use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from empir_plugin.errors import InputError
from empir_plugin.models.backward import BackwardRule, ElementwiseFunction, apply, as_trained, clamp_min

FULL_BITS = 32
_QUANTIZED_BITS = range(1, 9)
_TEXT = re.compile(r"w([0-9]{1,3})(?:a([0-9]{1,3}))?")


def check_bits(name: str, bits: int) -> None:
    """Check that a number of bits is supported.

    Raises:
        InputError: If it is neither in 1..8 nor 32.
    """
    if bits not in _QUANTIZED_BITS and bits != FULL_BITS:
        raise InputError(f"{name} must be 1 to 8, or 32 for full precision, got {bits!r}")


@dataclass(frozen=True)
class Precision:
    """Bits per weight and per activation of a network's quantized layers.

    Args:
        weight_bits: 1 to 8, or 32 for weights that stay in floating point.
        activation_bits: 1 to 8, or 32 for activations that stay in floating point.

    Raises:
        InputError: If a number of bits is neither in 1..8 nor 32.

    Example:
        >>> Precision.parse("w2a4")
        Precision(weight_bits=2, activation_bits=4)
        >>> str(Precision(4, 2)), str(Precision())
        ('w4a2', 'fp')
    """

    weight_bits: int = FULL_BITS
    activation_bits: int = FULL_BITS

    def __post_init__(self) -> None:
        for name in ("weight_bits", "activation_bits"):
            check_bits(name, getattr(self, name))

    @classmethod
    def parse(cls, text: str) -> Precision:
        """Parse ``"fp"``, ``"w2a4"`` (2-bit weights, 4-bit activations) or ``"w4"`` (weights only).

        Raises:
            InputError: If the text has another form, or an unsupported number of bits.
        """
        if text == "fp":
            return cls()
        match = _TEXT.fullmatch(text)
        if match is None:
            raise InputError(f"a precision is written 'fp', 'w2a4' or 'w4', got {text!r}")
        return cls(int(match[1]), int(match[2] or FULL_BITS))

    @property
    def is_full(self) -> bool:
        """Whether nothing is quantized."""
        return self.weight_bits == self.activation_bits == FULL_BITS

    def __str__(self) -> str:
        if self.is_full:
            return "fp"
        return f"w{self.weight_bits}a{self.activation_bits}"


Scale = Literal["none", "max", "mean"]


class _RoundToIntegers(ElementwiseFunction):
    """Forward: the integer nearest to ``x * n``, ties to even. Backward: ``n``."""

    @staticmethod
    def forward(x: Tensor, n: int) -> Tensor:
        return (x * n).round_()

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        return torch.ones_like(x) * args[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        ctx.n = inputs[1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0] * ctx.n, None


class _RoundToLevels(ElementwiseFunction):
    """Forward: the nearest of the levels 0, 1/n, ..., 1, ties to even. Backward: the identity."""

    @staticmethod
    def forward(x: Tensor, n: int) -> Tensor:
        return (x * n).round_() / n

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        return torch.ones_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, int], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class _SignTimesMean(ElementwiseFunction):
    """Forward: ``mean|w|`` with the sign of ``w``, positive for zero. Backward: the identity."""

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        mean = w.abs().mean()
        return torch.where(w < 0, -mean, mean)

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        return torch.ones_like(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


def is_half(x: Tensor) -> bool:
    """Whether a tensor has half precision: float16 or bfloat16."""
    return x.dtype in (torch.float16, torch.bfloat16)


def in_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32; other tensors are returned as they are."""
    # Half precision moves values to other levels (0.7 % of them at 2 bits, 21 % at 8): the function would change.
    return x.float() if is_half(x) else x


def quantize_unit(x: Tensor, bits: int) -> Tensor:
    """Round values of [0, 1] to the ``2**bits - 1`` equal steps of DoReFa's ``quantize_k``.

    The gradient is the identity (straight-through).

    Args:
        x: Any shape, in [0, 1].
        bits: 1 to 8.

    Example:
        >>> quantize_unit(torch.tensor([0.0, 0.2, 0.5, 0.9]), 1)
        tensor([0., 0., 0., 1.])
    """
    return apply(_RoundToLevels, in_float32(x), 2**bits - 1)


def round_to_integers(x: Tensor, n: int) -> Tensor:
    """The integers nearest to ``n * x``, ties to even, as floats of any shape; the gradient is ``n``.

    Example:
        >>> round_to_integers(torch.tensor([0.0, 0.2, 0.5, 0.9]), 3)
        tensor([0., 1., 2., 3.])
    """
    return apply(_RoundToIntegers, in_float32(x), n)


def _one(w: Tensor) -> Tensor:
    return w.new_ones(())


def _max_tanh(w: Tensor) -> Tensor:
    return w.tanh().abs().amax()


def _mean_abs(w: Tensor) -> Tensor:
    return w.abs().mean()


_SCALES: Mapping[str, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"none": _one, "max": _max_tanh, "mean": _mean_abs}
)


@dataclass(frozen=True)
class WeightQuantizer:
    """DoReFa's weight quantizer ``2 quantize_k(tanh(w) / (2 max|tanh(w)|) + 1/2) - 1``, Equation 9 of the paper.

    The maximum runs over the whole tensor. The gradient passes straight through the rounding; tanh and the maximum are
    differentiated. One bit is the paper's special case, Equation 7: ``mean|w| sign(w)`` with the identity as gradient.

    Args:
        bits: 1 to 8, or 32 for no quantization.
        scale: Factor of the levels in [-1, 1]: ``"none"`` (DoReFa, EMPIR), ``"max"`` for ``max|tanh(w)|``, which keeps
            the size of the weights, or ``"mean"`` for ``mean|w|`` (Any-Precision). The factor is a constant in the
            gradient. One bit has its own scale.
        detach_max: Treat the maximum as a constant in the gradient, as some other implementations do.

    Raises:
        InputError: If the number of bits is neither in 1..8 nor 32, or the scale is unknown.

    Example:
        >>> WeightQuantizer(2)(torch.tensor([-1.0, -0.2, 0.2, 1.0]))
        tensor([-1.0000, -0.3333,  0.3333,  1.0000])
    """

    bits: int
    scale: Scale = "none"
    detach_max: bool = False

    def __post_init__(self) -> None:
        check_bits("bits", self.bits)
        if self.scale not in _SCALES:
            raise InputError(f"scale must be one of {', '.join(_SCALES)}, got {self.scale!r}")

    def __call__(self, w: Tensor) -> Tensor:
        """Quantize latent weights of any shape."""
        if self.bits == FULL_BITS:
            return w
        w = in_float32(w)
        if self.bits == 1:
            return apply(_SignTimesMean, w)
        levels = 2 * quantize_unit(self._to_unit(w), self.bits) - 1
        return levels if self.scale == "none" else levels * self.factor(w)

    @property
    def steps(self) -> int:
        """The integer of the largest level; the others are odd integers, too, from ``-steps`` on."""
        return 2**self.bits - 1

    def unit(self, quantized: Tensor) -> Tensor:
        """The largest level that quantized weights can have: a detached scalar tensor."""
        return _one(quantized) if self.scale == "none" and self.bits > 1 else quantized.detach().abs().amax()

    def codes(self, w: Tensor) -> Tensor:
        """The codes 0 .. ``2**bits - 1`` of the quantized weights, as uint8 of the same shape."""
        with torch.no_grad():
            if self.bits == 1:
                return (w >= 0).to(torch.uint8)
            n = 2**self.bits - 1
            return torch.round(self._to_unit(in_float32(w)) * n).to(torch.uint8)

    def factor(self, w: Tensor) -> Tensor:
        """The factor of the levels in [-1, 1]: a detached scalar tensor."""
        w = in_float32(w)
        return (_mean_abs(w) if self.bits == 1 else _SCALES[self.scale](w)).detach()

    def decode(self, codes: Tensor, factor: Tensor) -> Tensor:
        """Quantized weights from their codes, equal to those of :meth:`__call__` bit for bit."""
        n = 2**self.bits - 1
        # (2c - n) / n is the same number in exact arithmetic, but not in float32.
        levels = 2 * (codes.to(torch.float32) / n) - 1
        return levels if self.scale == "none" and self.bits > 1 else levels * factor

    def _to_unit(self, w: Tensor) -> Tensor:
        t = w.tanh()
        largest = clamp_min(t.abs().max(), torch.finfo(t.dtype).tiny)
        return t / (largest.detach() if self.detach_max else largest) * 0.5 + 0.5


@dataclass(frozen=True)
class ActivationQuantizer:
    """Clip to [0, 1], then round to ``2**bits`` levels: DoReFa's activation quantizer, Equation 11 of the paper.

    The gradient is 1 on [0, 1], both ends included, and 0 outside.

    Args:
        bits: 1 to 8, or 32 for neither quantization nor clip, as in EMPIR's release.
        clip: The clip with its gradient; only attacks use another one than the default.

    Raises:
        InputError: If the number of bits is neither in 1..8 nor 32.

    Example:
        >>> ActivationQuantizer(2)(torch.tensor([-1.0, 0.3, 0.7, 2.0]))
        tensor([0.0000, 0.3333, 0.6667, 1.0000])
    """

    bits: int
    clip: BackwardRule = as_trained

    def __post_init__(self) -> None:
        check_bits("bits", self.bits)

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize activations of any shape."""
        if self.bits == FULL_BITS:
            return x
        return quantize_unit(self.clip(x), self.bits)

    @property
    def steps(self) -> int:
        """The integer of the level 1: levels are the integers 0 to ``steps``, over ``steps``."""
        return 2**self.bits - 1

    def integers(self, x: Tensor) -> Tensor:
        """The integers of the levels, as floats: :meth:`__call__` times :attr:`steps`, with its gradient."""
        return round_to_integers(self.clip(x), self.steps)
