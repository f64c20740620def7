"""Quantized networks that have a name from the start: ``dorefa-<precision>-<architecture>``.

They come without weights. Nothing is built before a model is asked for.

Networks for CIFAR-10 and CIFAR-100 take images of [0, 1] as they are, as RobustBench's do; those for ImageNet normalise
them as their architecture's published weights need it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

from empir_plugin.models.precision import Precision
from empir_plugin.zoo.builders import ModelBuilder
from empir_plugin.zoo.quantized_build import Channels, QuantizedCard

PRECISIONS = tuple(Precision.parse(text) for text in ("w1a2", "w2a2", "w2a4", "w4a4", "w8a8"))
THREATS = ("Linf", "L2", "corruptions")
_CIFAR: Mapping[str, int] = MappingProxyType({"cifar10": 10, "cifar100": 100})
_IMAGENET: Mapping[str, int] = MappingProxyType({"imagenet": 1000})
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class _Family:
    """One architecture, and what it needs for the small images of CIFAR."""

    architecture: str
    classes: Mapping[str, int] = field(default_factory=lambda: MappingProxyType({**_CIFAR, **_IMAGENET}))
    cifar: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    mean: Channels = _IMAGENET_MEAN
    std: Channels = _IMAGENET_STD

    def card(self, precision: Precision, dataset: str) -> QuantizedCard:
        name, classes = f"dorefa-{precision}-{self.architecture}", self.classes[dataset]
        of = (name, self.architecture, precision, dataset, classes, THREATS)
        return (
            QuantizedCard(*of, settings=self.cifar)
            if dataset in _CIFAR
            else QuantizedCard(*of, mean=self.mean, std=self.std)
        )


_VIT: Mapping[str, Any] = MappingProxyType(
    {"cifar": {"img_size": 32, "patch_size": 4}, "mean": (0.5,) * 3, "std": (0.5,) * 3}
)
FAMILIES = (
    _Family("resnet18"),
    _Family("resnet34"),
    _Family("resnet50"),
    _Family("wide_resnet_16_4", classes=_CIFAR),
    _Family("wide_resnet_28_10", classes=_CIFAR),
    _Family("preact_resnet18", classes=_CIFAR),
    _Family("mobilenetv2_100"),
    _Family("mobilenetv3_small_100"),
    _Family("mobilenetv3_large_100"),
    _Family("efficientnet_b0"),
    _Family("convnext_atto"),
    _Family("convnext_tiny"),
    _Family("vit_tiny_patch16_224", **_VIT),
    _Family("vit_small_patch16_224", **_VIT),
    _Family("swin_tiny_patch4_window7_224", cifar={"img_size": 32, "window_size": 4}),
    _Family("alexnet", classes=_IMAGENET),
)


@cache
def curated() -> Mapping[str, tuple[ModelBuilder, ...]]:
    """The builders of each name, one for each data set.

    Example:
        >>> [builder.dataset for builder in curated()["dorefa-w4a4-resnet18"]]
        ['cifar10', 'cifar100', 'imagenet']
    """
    named = {f"dorefa-{precision}-{family.architecture}": (family, precision) for family, precision in _pairs()}
    return MappingProxyType(
        {
            name: tuple(family.card(precision, dataset).builder() for dataset in family.classes)
            for name, (family, precision) in named.items()
        }
    )


def settings_for(architecture: str, dataset: str) -> Mapping[str, Any]:
    """What an architecture with names here is built with for the images of a data set; nothing for any other.

    Example:
        >>> settings_for("vit_tiny_patch16_224", "cifar10")["img_size"], dict(settings_for("resnet18", "cifar10"))
        (32, {})
    """
    found = next((family.cifar for family in FAMILIES if family.architecture == architecture), None)
    return found if found is not None and dataset in _CIFAR else MappingProxyType({})


def _pairs() -> list[tuple[_Family, Precision]]:
    return [(family, precision) for family in FAMILIES for precision in PRECISIONS]
