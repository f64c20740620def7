"""The mu-law for trained weights, which enlarges small weights most: a published defence that masks gradients.

Source: Song et al., "Improving adversarial robustness in weight-quantized neural networks",
https://arxiv.org/abs/2012.14965, Equation 3a, with mu = 255 for the last layer of an MNIST network and the last three
of one for CIFAR-10. Its slope at 0 is ``mu / ln(1 + mu)``, 46 for that mu: logits grow, the softmax saturates, and the
gradient of the cross-entropy vanishes. Attacks on the logits themselves are unaffected. It is included as a defence to
evaluate, and as one that an audit for gradient masking must detect.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from enum import Enum
from fnmatch import fnmatchcase
from types import MappingProxyType

import torch
from torch import Tensor, nn

from empir_plugin._files.tables import choice
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantizedLayer, refuse_script

MU = 255.0
"""The value in the paper, and in telephony."""


class Beyond(Enum):
    """How to treat weights outside [-1, 1], where the law is not defined and the paper gives no rule.

    ``REFUSE`` the layer with an error, ``CLAMP`` its weights to [-1, 1] first, or ``SCALE`` them by their largest
    absolute value first, and back afterwards.

    Example:
        >>> Beyond.parse("scale")
        <Beyond.SCALE: 'scale'>
    """

    REFUSE = "refuse"
    CLAMP = "clamp"
    SCALE = "scale"

    @classmethod
    def parse(cls, value: Beyond | str) -> Beyond:
        """Parse the text form; a member of this class is returned as it is.

        Raises:
            InputError: If the text names no member.
        """
        return choice(cls, "beyond", value)


def mu_law(w: Tensor, mu: float = MU) -> Tensor:
    """``sgn(w) ln(1 + mu |w|) / ln(1 + mu)``, Equation 3a of the paper.

    Args:
        w: Any shape, in [-1, 1].
        mu: Above 0; larger values are further from the identity.

    Raises:
        InputError: If mu is not above 0, or a number lies outside [-1, 1].

    Example:
        >>> mu_law(torch.tensor([-1.0, 0.0, 1 / 17]), mu=255)
        tensor([-1.0000,  0.0000,  0.5000])
    """
    _check_mu(mu)
    largest = w.abs().max().item() if w.numel() else 0.0
    if not largest <= 1:
        raise InputError(f"the mu-law is for numbers in [-1, 1], got one of size {largest:g}: scale or clamp them")
    return w.sign() * torch.log1p(mu * w.abs()) / math.log1p(mu)


def _check_mu(mu: float) -> None:
    if not 0 < mu < math.inf:
        raise InputError(f"mu must be a number above 0, got {mu!r}")


def _map_clamped(w: Tensor, mu: float) -> Tensor:
    return mu_law(w.clamp(-1, 1), mu)


def _map_scaled(w: Tensor, mu: float) -> Tensor:
    largest = w.abs().max().clamp_min(1)
    return largest * mu_law(w / largest, mu)


_MAPPINGS: Mapping[Beyond, Callable[[Tensor, float], Tensor]] = MappingProxyType(
    {Beyond.REFUSE: mu_law, Beyond.CLAMP: _map_clamped, Beyond.SCALE: _map_scaled}
)


@torch.no_grad()
def mu_law_(
    model: nn.Module,
    layers: int | Collection[str] = 1,
    *,
    mu: float = MU,
    beyond: Beyond | str = Beyond.REFUSE,
) -> tuple[str, ...]:
    """Map the trained weights of some convolutions and linear layers by the mu-law, in place; biases stay the same.

    The paper maps the last layer on MNIST (``layers=1``), and on CIFAR-10 the last three: two convolutions and a linear
    layer. In a quantized layer, the latent weights are mapped and then quantized.

    Args:
        model: A trained network, or an ensemble, whose members are all mapped. It is not changed if there is an error.
        layers: How many, counted from the one registered last; or names, in which ``*`` matches anything.
        mu: Above 0.
        beyond: See :class:`Beyond`.

    Returns:
        Names of the mapped layers, in order of registration.

    Raises:
        InputError: If mu is not above 0, there are no such layers, weights lie outside [-1, 1], or they are recomputed
            from other parameters.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> mu_law_(network)
        ('3',)
    """
    refuse_script(model)
    _check_mu(mu)
    mapping, chosen = _MAPPINGS[Beyond.parse(beyond)], _select(model, layers)
    try:
        mapped = [mapping(layer.get_parameter("weight"), mu) for layer in chosen.values()]
    except InputError as error:
        raise InputError(f"{error}, with beyond='scale' or 'clamp'") from error
    for layer, weight in zip(chosen.values(), mapped, strict=True):
        layer.get_parameter("weight").copy_(weight)
        if isinstance(layer, QuantizedLayer) and layer.baked_weight is not None:
            layer.bake_()
    return tuple(chosen)


def _select(model: nn.Module, layers: int | Collection[str]) -> dict[str, nn.Module]:
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Conv2d, nn.Linear))}
    chosen = _last(model, found, layers) if isinstance(layers, int) else _named(found, layers)
    for name, layer in chosen.items():
        if "weight" not in layer._parameters:
            raise InputError(
                f"{name or type(model).__name__} cannot be mapped (its weight is recomputed from other parameters): "
                "make it a plain weight first, such as with torch.nn.utils.prune.remove, or name others with layers="
            )
    return chosen


def _named(found: Mapping[str, nn.Module], layers: Collection[str]) -> dict[str, nn.Module]:
    patterns = (layers,) if isinstance(layers, str) else layers
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise InputError(f"layers names {pattern!r}, but the network's layers are {', '.join(found) or 'none'}")
    return {name: layer for name, layer in found.items() if any(fnmatchcase(name, each) for each in patterns)}


def _last(model: nn.Module, found: Mapping[str, nn.Module], count: int) -> dict[str, nn.Module]:
    """The last layers of a network, or of every member of an ensemble."""
    names = list(found)
    members = range(len(model.members)) if isinstance(model, Ensemble) else ()
    groups = [[name for name in names if f"{name}.".startswith(f"members.{i}.")] for i in members] or [names]
    for group in groups:
        if not group:
            raise InputError("nothing to map: no convolution or linear layer in the network")
        if not 1 <= count <= len(group):
            raise InputError(f"layers must be 1 to {len(group)}, the number of layers of the network, got {count}")
    return {name: found[name] for group in groups for name in group[-count:]}
