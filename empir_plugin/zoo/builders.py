"""Build named models from their cards; this package's entry points refer to the builders at the end."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.resources import as_file, files
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.packing import check_types, load_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.zoo.card import RULES, ModelCard, NetworkCard, cards
from empir_plugin.zoo.quantized.architectures import network


@dataclass(frozen=True)
class ModelBuilder:
    """The value of an entry point of the group ``robustbench.models``, in this package or in any other.

    Args:
        build: Called with ``num_classes`` as keyword; returns a network from images ``(N, C, H, W)`` in [0, 1] to
            logits ``(N, K)``. Without weights, it sets ``weights_loaded = False`` on the network.
        dataset: The data set the model classifies, such as ``"cifar10"``.
        threats: Threat models as RobustBench writes them, such as ``("Linf",)``.
        num_classes: K.

    Example:
        >>> builder = ModelBuilder(lambda num_classes: nn.Flatten(), dataset="cifar10", threats=("Linf",))
        >>> builder(num_classes=10)
        Flatten(start_dim=1, end_dim=-1)
    """

    build: Callable[..., nn.Module]
    dataset: str
    threats: tuple[str, ...] = ("Linf",)
    num_classes: int = 10

    def __call__(self, *, num_classes: int) -> nn.Module:
        """Build the network."""
        return self.build(num_classes=num_classes)


def build_model(card: ModelCard, *, num_classes: int | None = None) -> nn.Module:
    """Build a named model, with its weights if the package ships them, in evaluation mode.

    A model without weights is built as well, so that a checkpoint can be loaded into it; a warning is given, and
    ``weights_loaded`` is False until a state dict is loaded.

    Raises:
        InputError: If ``num_classes`` is not the model's.
        WeightsError: If a weight file is damaged.

    Example:
        >>> build_model(cards()["cifarconv-w4a2"]).weights_loaded
        True
    """
    if num_classes not in (None, card.num_classes):
        raise InputError(f"{card.name} has {card.num_classes} classes, got num_classes={num_classes}")
    networks = [_network(each, card.num_classes) for each in card.networks]
    model = networks[0] if len(networks) == 1 else Ensemble(networks, RULES[card.rule])
    _track_weights(model, card)
    return model.eval()


def _network(card: NetworkCard, num_classes: int) -> nn.Module:
    model = _build_converted(card, num_classes) if card.is_converted else _build_defined(card, num_classes)
    if card.weights:
        with as_file(files("empir_plugin.zoo") / "weights" / card.weights) as path:
            load_packed(model, path, expected_sha256=card.sha256)
    return model


def _build_defined(card: NetworkCard, num_classes: int) -> nn.Module:
    return ARCHITECTURES[card.architecture](card.precision, scale=card.scale, num_classes=num_classes)


def _build_converted(card: NetworkCard, num_classes: int) -> nn.Module:
    model = network(card.architecture, num_classes=num_classes)
    if not card.precision.is_full:
        quantize_(model, card.precision, scale=card.scale, activations=card.activations, layers=card.layers)
    return model


def count_parameters(card: NetworkCard, num_classes: int) -> int:
    """Number of parameters of a network in full precision, counted without allocating any.

    Example:
        >>> count_parameters(cards()["cifarconv-fp"].networks[0], 10)
        116704
    """
    whole = replace(card, precision=Precision())
    with torch.device("meta"):
        model = (_build_converted if card.is_converted else _build_defined)(whole, num_classes)
    return sum(parameter.numel() for parameter in model.parameters())


def _track_weights(model: nn.Module, card: ModelCard) -> None:
    setattr(model, "weights_loaded", card.has_weights)  # noqa: B010 - a module attribute unknown to nn.Module's type
    for each in dict.fromkeys((model, *(model.members if isinstance(model, Ensemble) else ()))):
        each._register_load_state_dict_pre_hook(refuse_other_types, with_module=True)
    model.register_load_state_dict_post_hook(_on_weights_loaded)
    if not card.has_weights:
        warnings.warn(f"{card.name} has no weights: {card.help}", stacklevel=3)


def refuse_other_types(model: nn.Module, state: Mapping[str, Tensor], prefix: str, *args: object) -> None:
    """Refuse to load codes of a quantized file as weights: a hook for ``load_state_dict``.

    Raises:
        WeightsError: If a tensor has another kind of numbers than the model's.
    """
    check_types(model, {key.removeprefix(prefix): value for key, value in state.items()}, "the state dict")


def _on_weights_loaded(model: nn.Module, incompatible: Any) -> None:
    if not incompatible.missing_keys:
        setattr(model, "weights_loaded", True)  # noqa: B010


def builder(name: str) -> ModelBuilder:
    """The builder of a model by the name of its card, for an entry point."""
    card = cards()[name]

    def build(*, num_classes: int) -> nn.Module:
        return build_model(card, num_classes=num_classes)

    return ModelBuilder(build, card.dataset, card.threats, card.num_classes)


empir_mnist = builder("empir-mnist")
mnistconv_fp = builder("mnistconv-fp")
mnistconv_w2a4 = builder("mnistconv-w2a4")
mnistconv_w2a4_b = builder("mnistconv-w2a4-b")
empir_cifar = builder("empir-cifar")
cifarconv_fp = builder("cifarconv-fp")
cifarconv_w4a2 = builder("cifarconv-w4a2")
cifarconv_w2a2 = builder("cifarconv-w2a2")
empir_imagenet = builder("empir-imagenet")
alexnet_fp = builder("alexnet-fp")
alexnet_w2a2 = builder("alexnet-w2a2")
alexnet_w4a4 = builder("alexnet-w4a4")
empir_cifar_at = builder("empir-cifar-at")
cifarconv_at_fp = builder("cifarconv-at-fp")
cifarconv_at_w4a4 = builder("cifarconv-at-w4a4")
cifarconv_at_w4a4_b = builder("cifarconv-at-w4a4-b")
empir_mnist_at = builder("empir-mnist-at")
mnistsmall_at_fp = builder("mnistsmall-at-fp")
mnistsmall_at_w4a4 = builder("mnistsmall-at-w4a4")
mnistsmall_at_w4a4_b = builder("mnistsmall-at-w4a4-b")
empir_wrn_10_1 = builder("empir-wrn-10-1")
wrn_10_1_fp = builder("wrn-10-1-fp")
wrn_10_1_w4a4 = builder("wrn-10-1-w4a4")
wrn_10_1_w2a2 = builder("wrn-10-1-w2a2")
