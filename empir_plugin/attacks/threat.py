"""How far an adversary may go."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from fractions import Fraction

from empir_plugin.attacks.norms import Norm, parse_norm
from empir_plugin.errors import InputError

_EPS = re.compile(r"\d+(?:\.\d+)?(?:[eE]-?\d+)?|\d+/[1-9]\d*|inf")


@dataclass(frozen=True)
class Threat:
    """A norm and the largest perturbation an adversary may apply, measured on images in [0, 1].

    Args:
        norm: What is measured.
        eps: The radius, in units of the image: 8/255, never 8. For L2 it may be infinite (an attack without a budget).
        eps_text: How the radius is written, so that 8/255 stays 8/255; found from ``eps`` where it is left out.

    Raises:
        InputError: If ``eps`` lies outside what the norm allows, or the text says another number.

    Example:
        >>> from empir_plugin.attacks.norms import Linf
        >>> str(Threat(Linf(), 8 / 255)), Threat.parse("L2:0.5").eps
        ('Linf:8/255', 0.5)
    """

    norm: Norm
    eps: float
    eps_text: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        largest = self.norm.largest_eps
        if not 0 < self.eps <= largest:
            bounds = f"in (0, {largest:g}]" if math.isfinite(largest) else "above 0"
            raise InputError(f"eps must lie {bounds}, got {self.eps:g}: {_advice(self.eps)}")
        if not self.eps_text:
            object.__setattr__(self, "eps_text", _shortest(self.eps))
        elif _number(self.eps_text) != self.eps:
            raise InputError(f"eps_text must say the same number as eps = {self.eps!r}, got {self.eps_text!r}")

    @classmethod
    def parse(cls, text: str) -> Threat:
        """Read ``"Linf:8/255"`` or ``"L2:0.5"``: norm, colon, radius as a fraction or a decimal number.

        Raises:
            InputError: If the text has another form or names an impossible radius.
        """
        norm, colon, eps = text.partition(":")
        if not colon:
            raise InputError(f"a threat is written 'Linf:8/255' or 'L2:0.5', got {text!r}")
        return cls(parse_norm(norm), _number(eps), eps)

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps_text}"


def _number(text: str) -> float:
    if not _EPS.fullmatch(text):
        raise InputError(f"eps is written as a fraction or a decimal number, 8/255 or 0.3, got {text!r}")
    return float("inf") if text == "inf" else float(Fraction(text))


def _shortest(eps: float) -> str:
    levels = eps * 255
    if math.isfinite(eps) and round(levels) / 255 == eps:
        return min(f"{eps:.12g}", f"{round(levels)}/255", key=lambda text: (_number(text) != eps, len(text)))
    return "inf" if math.isinf(eps) else repr(float(eps))


def _advice(eps: float) -> str:
    if 1 < eps <= 255:
        return f"images are in [0, 1], so write {eps:g}/255"
    return "images are in [0, 1], so write 8/255 or 0.3"
