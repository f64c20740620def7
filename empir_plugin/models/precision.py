"""The precision of a network: bits of its weights and activations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from empir_plugin.errors import InputError

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
