"""The full-precision network a model's overhead is relative to."""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import is_full_precision, quantized_layers
from empir_plugin.models.precision import FULL_BITS
from empir_plugin.models.quantize import ActivationQuantizer, WeightQuantizer


@dataclass(frozen=True)
class Baseline:
    """One full-precision network.

    Args:
        network: In floating point throughout.
        description: Which network it is, for people to read.
    """

    network: nn.Module
    description: str


def members_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The members of an ensemble; of any other model, the model.

    Raises:
        InputError: If an ensemble is hidden inside the model.

    Example:
        >>> len(members_of(Ensemble([nn.Flatten(), nn.Flatten()])))
        2
    """
    if isinstance(model, Ensemble):
        return tuple(model.members)
    if any(isinstance(module, Ensemble) for module in model.modules()):
        raise InputError("an ensemble inside another module has no overhead of its own here: pass the ensemble itself")
    return (model,)


def baseline_of(model: nn.Module) -> Baseline:
    """What a model is compared with.

    An ensemble: its first full-precision member, or, if it has none, the float twin of its member with most parameters.
    Any other model: its float twin.

    Raises:
        InputError: If an ensemble is hidden inside the model.

    Example:
        >>> baseline_of(nn.Linear(2, 2)).description
        'the model itself, which is in full precision'
    """
    members = members_of(model)
    full = [index for index, member in enumerate(members) if is_full_precision(member)]
    if not isinstance(model, Ensemble):
        known = "the model itself, which is in full precision" if full else "the same network in full precision"
        return Baseline(float_twin(model), known)
    if full:
        return Baseline(float_twin(members[full[0]]), f"member {full[0]} of the ensemble, its full-precision one")
    sizes = [sum(parameter.numel() for parameter in member.parameters()) for member in members]
    largest = sizes.index(max(sizes))
    return Baseline(
        float_twin(members[largest]),
        f"member {largest} of the ensemble, its largest, in full precision (no member is)",
    )


def float_twin(network: nn.Module) -> nn.Module:
    """A copy of a network in which no layer quantizes its weights, or clips and quantizes its input.

    Example:
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.precision import Precision
        >>> float_twin(QuantLinear(2, 2, precision=Precision.parse("w2a2"))).precision.is_full
        True
    """
    twin = copy.deepcopy(network)
    for _, layer in quantized_layers(twin):
        layer.use_quantizers_(WeightQuantizer(FULL_BITS), ActivationQuantizer(FULL_BITS))
    return twin
