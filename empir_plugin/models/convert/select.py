"""Select the layers of a network to quantize, and give a reason for each of the others."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from empir_plugin.errors import InputError
from empir_plugin.models.convert.layers import quantized_class, unsupported_reason, unsupported_whole_reason
from empir_plugin.models.convert.probe import end_layers
from empir_plugin.models.convert.report import KeptLayer
from empir_plugin.models.layers import QuantizedLayer


@dataclass(frozen=True)
class LayerSelection:
    """Kinds of layers to quantize in addition to those that always are.

    Args:
        first: The layer that takes the images: the one named in the network's ``default_cfg`` (timm); else all layers
            that see the images in a trial; without images for it, the layer registered first.
        last: The layer or layers that give the logits, found in the same way.
        depthwise: Convolutions with one filter per channel: they have few weights, and accuracy suffers at few bits.
        squeeze_excite: The layers that weigh channels, for which the same holds.

    Example:
        >>> LayerSelection(last=True)
        LayerSelection(first=False, last=True, depthwise=False, squeeze_excite=False)
    """

    first: bool = False
    last: bool = False
    depthwise: bool = False
    squeeze_excite: bool = False


INNER = LayerSelection()
ALL = LayerSelection(first=True, last=True, depthwise=True, squeeze_excite=True)

Layers = LayerSelection | Collection[str]
"""Kinds of layers, or names of layers in the network, in which ``*`` matches anything."""


@dataclass(frozen=True)
class Plan:
    """Which layers of a network to quantize.

    Args:
        chosen: Layers to quantize, by name.
        kept: Layers that stay in full precision on purpose.
        refused: Layers that were asked for and cannot be quantized.
    """

    chosen: Mapping[str, nn.Module]
    kept: tuple[KeptLayer, ...]
    refused: tuple[KeptLayer, ...]

    def by_name(self, model: nn.Module) -> dict[str, nn.Module]:
        """All of these layers."""
        return {**self.chosen, **{x.name: model.get_submodule(x.name) for x in (*self.kept, *self.refused)}}


def plan(model: nn.Module, layers: Layers | str, images: Tensor | None = None) -> Plan:
    """Choose the layers of a network to quantize; the network is not changed.

    Args:
        model: The network.
        layers: Kinds or names of layers.
        images: Images ``(N, C, H, W)`` for a trial that finds its first and last layers.

    Raises:
        InputError: If the network is quantized already, or a name matches no layer.
    """
    found = dict(_layers(model))
    quantized = next((name for name, layer in found.items() if isinstance(layer, QuantizedLayer)), None)
    if quantized is not None:
        raise InputError(f"{quantized or type(model).__name__} is quantized already: build the network anew")
    why_kept = _why_kept(model, found, layers, images)
    kept = {name: reason for name in found if (reason := why_kept[name])}
    refused = {
        name: reason for name, layer in found.items() if name not in kept and (reason := unsupported_reason(layer))
    }
    chosen = {name: layer for name, layer in found.items() if name not in kept and name not in refused}
    return Plan(chosen, *(tuple(kept_layer(n, found[n], r) for n, r in each.items()) for each in (kept, refused)))


def refuse_uncalled(selected: Plan, called: Collection[str]) -> Plan:
    """Move the chosen layers that the network does not call to the refused ones."""
    reason = "the network never calls it, and may apply its weights by itself"
    uncalled = tuple(kept_layer(name, layer, reason) for name, layer in selected.chosen.items() if name not in called)
    chosen = {name: layer for name, layer in selected.chosen.items() if name in called}
    return replace(selected, chosen=chosen, refused=(*selected.refused, *uncalled))


def refuse_applied_outside(model: nn.Module, selected: Plan, weights: Collection[str]) -> Plan:
    """Move the chosen layers whose weights the network also applies without calling them to the refused ones.

    Args:
        model: The network.
        selected: Its chosen layers.
        weights: Names of the parameters that are multiplied outside the layers.
    """
    reason = "the network also applies its weights without calling it"
    outside = {id(model.get_parameter(name)) for name in weights}
    found = {name: layer for name, layer in selected.chosen.items() if id(layer.get_parameter("weight")) in outside}
    chosen = {name: layer for name, layer in selected.chosen.items() if name not in found}
    refused = tuple(kept_layer(name, layer, reason) for name, layer in found.items())
    return replace(selected, chosen=chosen, refused=(*selected.refused, *refused))


def parameters_in_no_layer(model: nn.Module, selected: Plan) -> dict[str, nn.Parameter]:
    """All parameters but the weights of layers: biases, normalisations, embeddings, learned queries."""
    kept = [model.get_submodule(layer.name) for layer in (*selected.kept, *selected.refused)]
    weights = {id(weight) for layer in (*selected.chosen.values(), *kept) for weight in _weights(layer)}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) not in weights}


def kept_layer(name: str, layer: nn.Module, reason: str) -> KeptLayer:
    """The report on a layer that stays in full precision."""
    return KeptLayer(name, type(layer).__name__, sum(weight.numel() for weight in _weights(layer)), reason)


def _weights(layer: nn.Module) -> list[nn.Parameter]:
    weight = layer._parameters.get("weight")
    candidates = [*layer.parameters()] if weight is None else [weight]
    return [each for each in candidates if not is_lazy(each) and (each is weight or each.dim() > 1)]


def _layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules that multiply with weights; one that does not call its children counts as a whole."""
    inside: list[str] = []
    for name, module in model.named_modules():
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        if unsupported_whole_reason(module):
            inside.append(name)
        if isinstance(module, QuantizedLayer) or quantized_class(module) or unsupported_reason(module):
            yield name, module


def _why_kept(
    model: nn.Module, found: Mapping[str, nn.Module], layers: Layers | str, images: Tensor | None
) -> Mapping[str, str]:
    if isinstance(layers, str):
        layers = _parse_layers(layers)
    if not isinstance(layers, LayerSelection):
        return _match_names(found, layers)
    first, last = ({}, {}) if layers.first and layers.last else _ends(model, found, images)
    reasons: dict[str, str] = {}
    for name, layer in found.items():
        checks = {
            first.get(name, ""): name in first and not layers.first,
            last.get(name, ""): name in last and not layers.last,
            "depthwise": _is_depthwise(layer) and not layers.depthwise,
            "squeeze-excite": _in_squeeze_excite(model, name) and not layers.squeeze_excite,
        }
        reasons[name] = next((reason for reason, holds in checks.items() if holds), "")
    return reasons


def _parse_layers(text: str) -> Layers:
    return {"inner": INNER, "all": ALL}.get(text, (text,))


def _match_names(found: Mapping[str, nn.Module], patterns: Collection[str]) -> Mapping[str, str]:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in found):
            raise InputError(f"layers names {pattern!r}, but the network's layers are {', '.join(found) or 'none'}")
    matches = {name for name in found if any(fnmatchcase(name, pattern) for pattern in patterns)}
    return {name: "" if name in matches else "not among layers=" for name in found}


def _ends(
    model: nn.Module, found: Mapping[str, nn.Module], images: Tensor | None
) -> tuple[Mapping[str, str], Mapping[str, str]]:
    """The layers at the beginning and at the end of a network, with the reason why they are."""
    named = _named_ends(model, "first_conv"), _named_ends(model, "classifier")
    tried: tuple[Collection[str], Collection[str]] = ((), ())
    if images is not None and not all(named):
        tried = end_layers(model, found, images[:2])
    first, last = (
        dict.fromkeys(names, f"{end} layer") if names else _tried_ends(end, trial, registered)
        for end, names, trial, registered in zip(
            ("first", "last"), named, tried, (list(found)[:1], list(found)[-1:]), strict=True
        )
    )
    return first, last


def _named_ends(model: nn.Module, key: str) -> Collection[str]:
    """The layers that a network's configuration names; none if it names none."""
    config: Any = getattr(model, "default_cfg", None)
    named = config.get(key) if isinstance(config, Mapping) else None
    return (named,) if isinstance(named, str) and named else tuple(named or ())


def _tried_ends(end: str, tried: Collection[str], registered: list[str]) -> Mapping[str, str]:
    if not tried or list(tried) == registered:
        return dict.fromkeys(registered, f"{end} layer")
    return dict.fromkeys(tried, "sees the images" if end == "first" else "gives the logits")


def _is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1


def _in_squeeze_excite(model: nn.Module, name: str) -> bool:
    parts = name.split(".")
    outer = [model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts))]
    kinds = [type(module).__name__.lower() for module in outer]
    return "se" in parts[:-1] or any("squeezeexcit" in kind or "semodule" in kind for kind in kinds)
