"""Build quantized networks without weights, and the predefined ones: ``dorefa-<precision>-<architecture>``.

Networks are built when they are loaded. Networks for CIFAR-10 and CIFAR-100 take images in [0, 1] without
normalisation, as RobustBench's do; those for ImageNet normalise them as their architecture's published weights need it.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from empir_plugin._files.tables import loads
from empir_plugin.errors import InputError
from empir_plugin.models.activations import Activations
from empir_plugin.models.architectures.networks import Normalize
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import INNER, Layers
from empir_plugin.models.layers import QuantizedLayer, quantized_layers
from empir_plugin.models.packing import latent_weights
from empir_plugin.models.quantize import FULL_BITS, Precision, Scale
from empir_plugin.zoo.builders import ModelBuilder, refuse_other_types
from empir_plugin.zoo.quantized.architectures import Architecture, network

Channels = tuple[float, ...]


@dataclass(frozen=True)
class QuantizedCard:
    """A named quantized network without weights.

    Args:
        name: Model id.
        architecture: See :func:`~empir_plugin.zoo.quantized.architectures.network`.
        precision: Bits of its quantized layers.
        dataset: The data set it classifies.
        num_classes: K.
        threats: RobustBench's threat models it is registered for.
        mean: Mean of each channel of images in [0, 1], for their normalisation; None for none.
        std: Standard deviation of each channel.
        scale: See :func:`~empir_plugin.models.convert.quantize_.quantize_`.
        activations: Likewise.
        layers: Likewise.
        settings: Further keywords of the architecture.
    """

    name: str
    architecture: Architecture
    precision: Precision
    dataset: str
    num_classes: int
    threats: tuple[str, ...] = ("Linf",)
    mean: Channels | None = None
    std: Channels | None = None
    scale: Scale = "max"
    activations: Activations | str = Activations.AUTO
    layers: Layers | str = INNER
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def builder(self) -> ModelBuilder:
        """The builder to register."""
        return ModelBuilder(partial(build_quantized, self), self.dataset, self.threats, self.num_classes)


def build_quantized(card: QuantizedCard, *, num_classes: int | None = None) -> nn.Module:
    """Build a quantized network with random weights, in evaluation mode.

    The names in its state dict are those of the architecture, so checkpoints of the full-precision network load
    strictly. A warning says that it has no weights; another one follows if full-precision weights are loaded.

    Raises:
        InputError: If ``num_classes`` is not the network's, or the network cannot be quantized.
    """
    if num_classes not in (None, card.num_classes):
        raise InputError(f"{card.name} has {card.num_classes} classes, got num_classes={num_classes}")
    model = network(card.architecture, num_classes=card.num_classes, **card.settings)
    if card.mean is not None:
        normalize_images_(model, card.mean, card.std or (1.0,) * len(card.mean))
    quantize_(model, card.precision, scale=card.scale, activations=card.activations, layers=card.layers)
    setattr(model, "weights_loaded", False)  # noqa: B010 - a module attribute unknown to nn.Module's type
    model._register_load_state_dict_pre_hook(refuse_other_types, with_module=True)
    model.register_load_state_dict_post_hook(partial(_on_weights_loaded, f"{card.name} ({card.precision})"))
    warnings.warn(f"{card.name} comes without weights: pass custom_checkpoint=, or train it", stacklevel=3)
    return model.eval()


def normalize_images_(model: nn.Module, mean: Channels, std: Channels) -> None:
    """Add the normalisation of images in [0, 1] to a network, in place; the names in its state dict stay the same.

    The normalisation is a submodule without parameters, applied by a forward pre-hook.

    Raises:
        InputError: If the network is a ``Sequential``, which would apply the submodule a second time.

    Example:
        >>> import torch
        >>> class Two(nn.Module):
        ...     def forward(self, x):
        ...         return 2 * x
        >>> normalize_images_(two := Two(), (0.5,), (0.25,))
        >>> two(torch.ones(1, 1, 1, 1)).item(), list(two.state_dict())
        (4.0, [])
    """
    if isinstance(model, nn.Sequential):
        raise InputError("a Sequential cannot be given a normalisation: put one at its beginning yourself")
    model.add_module("normalize_images", Normalize(mean, std))
    model.register_forward_pre_hook(_normalize, with_kwargs=True)


def _normalize(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], Any]:
    normalize = model.get_submodule("normalize_images")
    if args:
        return (normalize(args[0]), *args[1:]), kwargs
    name = next(each for each in (*inspect.signature(model.forward).parameters, *kwargs) if each in kwargs)
    return (), {**kwargs, name: normalize(kwargs[name])}


def _on_weights_loaded(name: str, model: nn.Module, incompatible: Any) -> None:
    if incompatible.missing_keys:
        return
    after_training = _has_full_precision_weights(model)
    setattr(model, "weights_loaded", True)  # noqa: B010
    setattr(model, "quantized_after_training", after_training)  # noqa: B010
    if after_training:
        warnings.warn(
            f"{name} was given weights of full precision: unless they were trained at this precision, the network is "
            "quantized after training, and less accurate than one trained quantized",
            stacklevel=4,
        )


def _has_full_precision_weights(model: nn.Module) -> bool:
    """Whether quantized layers hold more information than codes and scale, which is all that packed files keep."""
    return any(_has_latent_weights(layer) for _, layer in quantized_layers(model))


@torch.no_grad()
def _has_latent_weights(layer: QuantizedLayer) -> bool:
    if layer.precision.weight_bits == FULL_BITS:
        return False
    from_codes = latent_weights(layer.weight_quantizer, layer.weight_quantizer(layer.weight))
    return not torch.allclose(from_codes, layer.weight, rtol=1e-4, atol=1e-6)


THREATS = ("Linf", "L2", "corruptions")
_CIFAR: Mapping[str, int] = MappingProxyType({"cifar10": 10, "cifar100": 100})
_CLASSES: Mapping[str, int] = MappingProxyType({**_CIFAR, "imagenet": 1000})
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Family:
    """One architecture of the predefined networks.

    Args:
        architecture: Its name, which is part of the names of the networks.
        datasets: The data sets there is a network for.
        for_cifar: Another architecture for the small images of CIFAR.
        cifar: Keywords of the architecture for them.
        mean: Normalisation of the images of ImageNet.
        std: Likewise.
    """

    architecture: str
    datasets: tuple[str, ...] = tuple(_CLASSES)
    for_cifar: str = ""
    cifar: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    mean: Channels = _IMAGENET_MEAN
    std: Channels = _IMAGENET_STD

    def card(self, precision: Precision, dataset: str) -> QuantizedCard:
        """The network of a precision for a data set."""
        name, about = f"dorefa-{precision}-{self.architecture}", (precision, dataset, _CLASSES[dataset], THREATS)
        if dataset in _CIFAR:
            return QuantizedCard(name, self.for_cifar or self.architecture, *about, settings=self.cifar)
        return QuantizedCard(name, self.architecture, *about, mean=self.mean, std=self.std)


def _read_families() -> tuple[tuple[Precision, ...], tuple[Family, ...]]:
    table = loads(files(__package__ or "").joinpath("families.toml").read_text("utf-8"))
    lists = {"datasets", "mean", "std"}
    rows: list[dict[str, Any]] = [
        {key: tuple(value) if key in lists else value for key, value in row.items()} for row in table["families"]
    ]
    return tuple(Precision.parse(text) for text in table["precisions"]), tuple(Family(**row) for row in rows)


PRECISIONS, FAMILIES = _read_families()


@cache
def curated_networks() -> Mapping[str, tuple[ModelBuilder, ...]]:
    """The builders of the predefined networks by name, one for each data set.

    Example:
        >>> [builder.dataset for builder in curated_networks()["dorefa-w4a4-resnet18"]]
        ['cifar10', 'cifar100', 'imagenet']
    """
    named = {f"dorefa-{precision}-{family.architecture}": (family, precision) for family, precision in _pairs()}
    return MappingProxyType(
        {
            name: tuple(family.card(precision, dataset).builder() for dataset in family.datasets)
            for name, (family, precision) in named.items()
        }
    )


def settings_for(architecture: str, dataset: str) -> Mapping[str, Any]:
    """Keywords of a predefined architecture for the images of a data set; empty for other architectures.

    Example:
        >>> settings_for("vit_tiny_patch16_224", "cifar10")["img_size"], dict(settings_for("resnet18", "cifar10"))
        (32, {})
    """
    found = next((family.cifar for family in FAMILIES if family.architecture == architecture), None)
    return found if found is not None and dataset in _CIFAR else MappingProxyType({})


def _pairs() -> list[tuple[Family, Precision]]:
    return [(family, precision) for family in FAMILIES for precision in PRECISIONS]
