"""Input discretization: fewer levels for every pixel, as a part of the network.

Source: Panda et al., "Discretization based solutions for secure machine learning against adversarial attacks",
https://arxiv.org/abs/1902.03151, Section 3.1: an 8-bit pixel is replaced by its integer quotient by
``2**(8 - bits)``. The paper does not say which number the network then gets; :class:`Levels` has three options.

Attacks perturb the raw image, before the discretization, with straight-through gradients. The paper's figures are
consistent with images perturbed after it, so that a second discretization removed most of the perturbation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

import torch
from torch import Tensor, nn

from empir_plugin._files.tables import choice
from empir_plugin.errors import InputError
from empir_plugin.models.backward import BackwardRule, as_trained
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.quantize import in_float32, quantize_unit


class Levels(Enum):
    """The number in [0, 1] that represents a pixel of ``bits`` bits.

    ``FLOOR`` is ``code / (2**bits - 1)`` of the quotient, so black stays 0 and white 1; ``CENTER`` the middle of the
    8-bit values that share a quotient, ``(code + 1/2) / 2**bits``; ``ROUND`` the nearest of the levels of ``FLOOR``.

    Example:
        >>> Levels.parse("center")
        <Levels.CENTER: 'center'>
    """

    FLOOR = "floor"
    CENTER = "center"
    ROUND = "round"

    @classmethod
    def parse(cls, value: Levels | str) -> Levels:
        """Parse the text form; a member of this class is returned as it is.

        Raises:
            InputError: If the text names no member.
        """
        return choice(cls, "levels", value)


def _quotient(x: Tensor, bits: int) -> Tensor:
    """Integer quotient of the nearest 8-bit value of each pixel by ``2**(8 - bits)``."""
    return torch.floor(torch.round(x * 255) / 2 ** (8 - bits))


_VALUES: Mapping[str, Callable[[Tensor, int], Tensor]] = MappingProxyType(
    {
        "floor": lambda x, bits: _quotient(x, bits) / (2**bits - 1),
        "center": lambda x, bits: (_quotient(x, bits) + 0.5) / 2**bits,
        "round": quantize_unit,
    }
)


@dataclass(frozen=True)
class InputDiscretizer:
    """Clip images to [0, 1], then reduce every pixel to ``2**bits`` levels.

    The gradient passes straight through: it is 1 on [0, 1], both ends included, and 0 outside.

    Args:
        bits: 1 to 8.
        levels: The numbers that represent the levels.
        clip: The clip with its gradient; only attacks use another one than the default.

    Raises:
        InputError: If the number of bits is not in 1..8.

    Example:
        >>> x = torch.tensor([0, 63, 64, 255]) / 255
        >>> InputDiscretizer(2)(x), InputDiscretizer(2, Levels.CENTER)(x)
        (tensor([0.0000, 0.0000, 0.3333, 1.0000]), tensor([0.1250, 0.1250, 0.3750, 0.8750]))
    """

    bits: int
    levels: Levels = Levels.FLOOR
    clip: BackwardRule = as_trained

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 1 <= self.bits <= 8:
            raise InputError(f"bits of a pixel must be a whole number from 1 to 8, got {self.bits!r}")

    def __call__(self, x: Tensor) -> Tensor:
        """Discretize images of any shape."""
        clipped = self.clip(in_float32(x))
        values = _VALUES[self.levels.value](clipped.detach(), self.bits)
        return (values + (clipped - clipped.detach())).to(x.dtype)


class Discretized(nn.Module):
    """A network that discretizes its images first.

    The discretization has no parameters. State dicts have the network's own names with the prefix ``network.``; load
    weights of the bare network into ``.network``.

    Args:
        network: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``, of any library.
        bits: Bits of every pixel, 1 to 8.
        levels: See :class:`Levels`.

    Raises:
        InputError: If the number of bits or the levels are invalid, or the network is an ensemble, whose members
            attacks could then no longer reach; see :func:`discretized`.

    Example:
        >>> Discretized(nn.Flatten(), 1)(torch.tensor([[[[0.4, 0.6]]]]))
        tensor([[0., 1.]])
    """

    def __init__(self, network: nn.Module, bits: int, levels: Levels | str = Levels.FLOOR) -> None:
        super().__init__()
        if isinstance(network, Ensemble):
            raise InputError("an ensemble must stay one to be attacked as one: call discretized(ensemble, ...) instead")
        self.activation_quantizer = InputDiscretizer(bits, Levels.parse(levels))
        self.network = network
        self.weights_loaded = getattr(network, "weights_loaded", True)

    def extra_repr(self) -> str:
        """Bits and levels, which determine the function of the network."""
        return f"bits={self.activation_quantizer.bits}, levels={self.activation_quantizer.levels.value}"

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``."""
        return self.network(self.activation_quantizer(x))


def discretized(model: nn.Module, bits: int, levels: Levels | str = Levels.FLOOR) -> nn.Module:
    """Put a discretization before a network, or before each member of an ensemble, which is equivalent.

    Args:
        model: It is not copied. An ensemble is not changed: the members and rule are shared with a new one.
        bits: Bits of every pixel, 1 to 8.
        levels: See :class:`Levels`.

    Raises:
        InputError: If the number of bits or the levels are invalid.

    Example:
        >>> [type(member).__name__ for member in discretized(Ensemble([nn.Flatten(), nn.Flatten()]), 2).members]
        ['Discretized', 'Discretized']
    """
    if not isinstance(model, Ensemble):
        return Discretized(model, bits, levels).train(model.training)
    ensemble = Ensemble([discretized(member, bits, levels) for member in model.members], model.rule).train(
        model.training
    )
    if hasattr(model, "weights_loaded"):
        setattr(ensemble, "weights_loaded", model.weights_loaded)  # noqa: B010 - an attribute unknown to nn.Module's type
    return ensemble
