"""Threat models such as ``Linf:8/255``: the norms Linf and L2 with their balls, and how far an adversary may go."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from empir_plugin.attacks.randomness import Draw
from empir_plugin.errors import InputError


class Norm(Protocol):
    """The interface of a norm; perturbations and gradients are ``(N, C, H, W)``, ``eps`` is in units of the image."""

    @property
    def largest_eps(self) -> float:
        """The largest meaningful radius for images in [0, 1]."""
        ...

    def size(self, delta: Tensor) -> Tensor:
        """Norm of each perturbation, ``(N,)``."""
        ...

    def ascent(self, grad: Tensor) -> Tensor:
        """The unit-norm step of steepest ascent, as a new tensor; zero where the gradient is zero."""
        ...

    def project(self, delta: Tensor, eps: float) -> Tensor:
        """The nearest perturbation in the ball of radius ``eps``."""
        ...

    def random(self, like: Tensor, eps: float, draw: Draw) -> Tensor:
        """Perturbations drawn uniformly from the ball of radius ``eps``, of the shape of ``like``."""
        ...


@dataclass(frozen=True)
class Linf:
    """The Linf norm: the largest absolute change of any pixel.

    Example:
        >>> Linf().project(torch.tensor([[[[-0.5, 0.1]]]]), eps=0.25)
        tensor([[[[-0.2500,  0.1000]]]])
    """

    @property
    def largest_eps(self) -> float:
        """1, as a larger change leaves [0, 1]."""
        return 1.0

    def size(self, delta: Tensor) -> Tensor:
        """Largest absolute change per image, ``(N,)``."""
        return delta.abs().amax((1, 2, 3))

    def ascent(self, grad: Tensor) -> Tensor:
        """The sign of the gradient."""
        return grad.sign()

    def project(self, delta: Tensor, eps: float) -> Tensor:
        """Clip the change of every pixel to ``[-eps, eps]``."""
        return delta.clamp(-eps, eps)

    def random(self, like: Tensor, eps: float, draw: Draw) -> Tensor:
        """The change of every pixel, uniform in ``[-eps, eps]``."""
        return draw.uniform(like).mul_(2).sub_(1).mul_(eps)

    def __str__(self) -> str:
        return "Linf"


@dataclass(frozen=True)
class L2:
    """The L2 norm: the Euclidean length of the change.

    Example:
        >>> L2().project(torch.tensor([[[[3.0, 4.0]]]]), eps=1.0)
        tensor([[[[0.6000, 0.8000]]]])
    """

    @property
    def largest_eps(self) -> float:
        """Infinity, for attacks without a budget."""
        return float("inf")

    def size(self, delta: Tensor) -> Tensor:
        """Euclidean length per image, ``(N,)``."""
        return torch.linalg.vector_norm(delta, dim=(1, 2, 3))

    def ascent(self, grad: Tensor) -> Tensor:
        """The gradient scaled to length 1."""
        # A saturated network's gradient can be 1e-30: its squares underflow, its direction is still useful.
        scaled = grad / _per_image(grad.abs().amax((1, 2, 3))).clamp_min(_tiny(grad))
        return scaled.div_(_per_image(self.size(scaled)).clamp_min(_tiny(grad)))

    def project(self, delta: Tensor, eps: float) -> Tensor:
        """Scale perturbations longer than ``eps`` down to that length."""
        return delta * (eps / _per_image(self.size(delta)).clamp_min(_tiny(delta))).clamp_max(1)

    def random(self, like: Tensor, eps: float, draw: Draw) -> Tensor:
        """A random direction, times a radius such that points are uniform in the ball."""
        direction = self.ascent(draw.normal(like))
        radius = draw.uniform(like[:, :1, :1, :1], stream=2) ** (1 / like[0].numel())
        return direction.mul_(radius * eps)

    def __str__(self) -> str:
        return "L2"


def _per_image(values: Tensor) -> Tensor:
    """One value per image ``(N,)``, shaped to broadcast over ``(N, C, H, W)``."""
    return values.view(-1, 1, 1, 1)


def _tiny(x: Tensor) -> float:
    return torch.finfo(x.dtype).tiny


_NORMS: Mapping[str, Norm] = MappingProxyType({"Linf": Linf(), "L2": L2()})


def parse_norm(text: str) -> Norm:
    """Read ``"Linf"`` or ``"L2"``, in upper or lower case.

    Raises:
        InputError: If the text names another norm.

    Example:
        >>> parse_norm("L2")
        L2()
    """
    norm = next((norm for name, norm in _NORMS.items() if name.lower() == text.lower()), None)
    if norm is None:
        raise InputError(f"a norm is one of {', '.join(_NORMS)}, got {text!r}")
    return norm


@dataclass(frozen=True)
class Threat:
    """A norm and the largest perturbation an adversary may apply, measured on images in [0, 1].

    Args:
        norm: The norm of the perturbation.
        eps: The radius, in units of the image: 8/255, never 8. For L2 it may be infinite (an attack without a budget).
        eps_text: How the radius is written, so that 8/255 stays 8/255; derived from ``eps`` if left out.

    Raises:
        InputError: If ``eps`` lies outside what the norm allows, or ``eps_text`` is another number.

    Example:
        >>> from empir_plugin.attacks.threat import Linf
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
            raise InputError(f"eps must lie {bounds}, got {self.eps:g}: {_hint(self.eps)}")
        if not self.eps_text:
            object.__setattr__(self, "eps_text", _shortest_text(self.eps))
        elif _parse_eps(self.eps_text) != self.eps:
            raise InputError(f"eps_text must be the same number as eps = {self.eps!r}, got {self.eps_text!r}")

    @classmethod
    def parse(cls, text: str) -> Threat:
        """Read ``"Linf:8/255"`` or ``"L2:0.5"``: norm, colon, radius as a fraction or a decimal number.

        Raises:
            InputError: If the text has another form or names an impossible radius.
        """
        norm, colon, eps = text.partition(":")
        if not colon:
            raise InputError(f"a threat is written 'Linf:8/255' or 'L2:0.5', got {text[:_LONGEST]!r}")
        return cls(parse_norm(norm), _parse_eps(eps), eps)

    def __str__(self) -> str:
        return f"{self.norm}:{self.eps_text}"


def check_threat(threat: object) -> None:
    """Check that a threat is one, and not its text or its radius.

    Raises:
        InputError: If it is anything else.

    Example:
        >>> check_threat(Threat.parse("Linf:8/255"))
    """
    if not isinstance(threat, Threat):
        raise InputError(f"threat must be a Threat, got {threat!r}: write Threat.parse('Linf:8/255')")


_DIGITS = "[0-9]{1,40}"
_EPS = re.compile(rf"{_DIGITS}(?:\.{_DIGITS})?(?:[eE]-?[0-9]{{1,3}})?|{_DIGITS}/[1-9][0-9]{{0,39}}|inf")
"""At most 40 digits: a fraction is computed exactly, and that of 1e-99999999 would fill the memory."""


def _parse_eps(text: str) -> float:
    if not _EPS.fullmatch(text):
        shown = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
        raise InputError(f"eps is written as a fraction or a decimal number, 8/255 or 0.3, got {shown!r}")
    try:
        return float("inf") if text == "inf" else float(Fraction(text))
    except OverflowError as error:
        raise InputError(f"eps must be a number that float64 holds, got {text}: write such as 8/255") from error


_LONGEST = 40


def _shortest_text(eps: float) -> str:
    """The shortest text that reads back as the same number."""
    levels = eps * 255
    if math.isfinite(eps) and round(levels) / 255 == eps:
        return min(f"{eps:.12g}", f"{round(levels)}/255", key=lambda text: (_parse_eps(text) != eps, len(text)))
    return "inf" if math.isinf(eps) else repr(float(eps))


def _hint(eps: float) -> str:
    if 1 < eps <= 255:
        return f"images are in [0, 1], so write {eps:g}/255"
    return "images are in [0, 1], so write 8/255 or 0.3"
