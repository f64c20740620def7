"""Fewer levels for every pixel, inside of the network: input discretization.

Source: Panda et al., "Discretization based solutions for secure machine learning against adversarial attacks",
https://arxiv.org/abs/1902.03151, Section 3.1: an 8-bit pixel is replaced by its quotient by ``2**(8 - bits)``, without
remainder. Which number the network is then given is not said; :class:`Levels` has three answers.

Attacks move the raw image, in front of the discretization, and see through it as if it were not there. The paper's
figures fit images that were perturbed after it, so that a second discretization took most of the perturbation away.
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
    """Which number in [0, 1] stands for a pixel of ``bits`` bits.

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
        """Read the text form; a member of this class stays what it is.

        Raises:
            InputError: If the text is another one.
        """
        return choice(cls, "levels", value)


def _quotient(x: Tensor, bits: int) -> Tensor:
    """The 8-bit value nearest to each pixel, divided by ``2**(8 - bits)`` without remainder."""
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
    """Clip images to [0, 1], then leave ``2**bits`` levels of every pixel.

    The gradient passes straight through: it is 1 on [0, 1], both ends included, and 0 outside.

    Args:
        bits: 1 to 8.
        levels: The numbers that stand for the levels.
        clip: The clip, with the gradient behind it; only an attacker has a reason to choose another.

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

    The discretization has no parameters. State dicts have the network's own names behind ``network.``; weights of the
    bare network load into ``.network``.

    Args:
        network: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``, of any library.
        bits: Of every pixel, 1 to 8.
        levels: See :class:`Levels`.

    Raises:
        InputError: If the number of bits or the levels are impossible, or the network is an ensemble: attacks on its
            members would no longer find them, see :func:`discretized`.

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
        """Bits and levels: they decide what the network computes, so its text has to tell."""
        return f"bits={self.activation_quantizer.bits}, levels={self.activation_quantizer.levels.value}"

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, C, H, W)``."""
        return self.network(self.activation_quantizer(x))


def discretized(model: nn.Module, bits: int, levels: Levels | str = Levels.FLOOR) -> nn.Module:
    """A network behind a discretization, or an ensemble whose members all are: the same as one in front of it.

    Args:
        model: It is not copied; an ensemble is left as it is and a new one has its members and rule.
        bits: Of every pixel, 1 to 8.
        levels: See :class:`Levels`.

    Raises:
        InputError: If the number of bits or the levels are impossible.

    Example:
        >>> [type(member).__name__ for member in discretized(Ensemble([nn.Flatten(), nn.Flatten()]), 2).members]
        ['Discretized', 'Discretized']
    """
    if not isinstance(model, Ensemble):
        return Discretized(model, bits, levels).train(model.training)
    made = Ensemble([discretized(member, bits, levels) for member in model.members], model.rule).train(model.training)
    if hasattr(model, "weights_loaded"):
        setattr(made, "weights_loaded", model.weights_loaded)  # noqa: B010 - an attribute unknown to nn.Module's type
    return made
