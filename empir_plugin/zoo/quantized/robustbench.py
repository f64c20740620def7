"""RobustBench's architectures by name: its networks of any size, and the networks of its models by their ids.

RobustBench is imported when such a network is built: https://github.com/RobustBench/robustbench.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any

from torch import nn

from empir_plugin.errors import InputError

_CIFAR_SIZE = (3, 32, 32)


@dataclass(frozen=True)
class _Family:
    """Networks of one kind in any size.

    Args:
        example: Name of one of them.
        pattern: Of their names in lower case, with ``_`` for ``-``; its groups are passed to ``build``.
        build: From the groups and keywords of the architecture to a network.
    """

    example: str
    pattern: re.Pattern[str]
    build: Callable[..., nn.Module]


def find_family(name: str) -> Callable[..., nn.Module] | None:
    """What builds the network of a name, from keywords of the architecture; None if RobustBench has no such family.

    Example:
        >>> find_family("ResNet-18")(num_classes=10).linear.out_features
        10
        >>> find_family("resnet18") is None
        True
    """
    # `resnet18` is timm's, for ImageNet; RobustBench's has its hyphen, as WideResNet-28-10 does.
    for family in _FAMILIES:
        if match := family.pattern.fullmatch(name.lower().replace("-", "_")):
            return partial(_for_cifar, family, match.groups())
    return None


def _for_cifar(family: _Family, numbers: tuple[str, ...], **settings: Any) -> nn.Module:
    model = family.build(*numbers, **settings)
    setattr(model, "default_cfg", {"input_size": _CIFAR_SIZE})  # noqa: B010 - timm's attribute
    return model


def family_names() -> Iterator[str]:
    """One name of each family.

    Example:
        >>> next(family_names())
        'ResNet-18'
    """
    return (family.example for family in _FAMILIES)


def find_zoo_network(name: str, num_classes: int) -> Callable[[], nn.Module] | None:
    """What builds the network of one of RobustBench's models, by the model's id; None if there is no such model.

    Args:
        name: Such as ``"Carmon2019Unlabeled"``.
        num_classes: K; the id may stand for several networks, one for each data set.
    """
    from robustbench.model_zoo.models import model_dicts
    from robustbench.utils import DATASET_CLASSES

    tables = [
        (DATASET_CLASSES.get(dataset), rows) for dataset, threats in model_dicts.items() for rows in threats.values()
    ]
    found = [(classes, rows[name]["model"]) for classes, rows in tables if name in rows]
    if not found:
        return None
    fitting = [build for classes, build in found if classes == num_classes]
    if not fitting:
        known = " or ".join(str(classes) for classes, _ in found)
        raise InputError(f"{name} has {known} classes, got num_classes={num_classes}: pass the data set it is for")
    return fitting[0]


def zoo_datasets(name: str) -> list[str]:
    """The data sets RobustBench has a model of this id for.

    Example:
        >>> zoo_datasets("Carmon2019Unlabeled"), zoo_datasets("no-such-model")
        (['cifar10'], [])
    """
    from robustbench.model_zoo.models import model_dicts

    return [dataset.value for dataset, threats in model_dicts.items() if any(name in rows for rows in threats.values())]


def _resnet(depth: str, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures.resnet import BasicBlock, Bottleneck, ResNet

    block = BasicBlock if depth in ("18", "34") else Bottleneck
    return ResNet(block, _depth("ResNet", _RESNET_BLOCKS, depth), **settings)


def _preact_resnet(depth: str, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures.resnet import PreActBlock, PreActResNet

    return PreActResNet(PreActBlock, _depth("PreActResNet", _PREACT_BLOCKS, depth), **settings)


def _dm_preact_resnet(depth: str, activation: str | None, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures.dm_wide_resnet import DMPreActResNet

    _depth("DMPreActResNet", _PREACT_BLOCKS, depth)
    return DMPreActResNet(depth=int(depth), activation_fn=_activation(activation), **settings)


def _wide_resnet(depth: str, width: str, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    return WideResNet(depth=_wide_depth(depth), widen_factor=int(width), **settings)


def _dm_wide_resnet(depth: str, width: str, activation: str | None, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures.dm_wide_resnet import DMWideResNet

    return DMWideResNet(depth=_wide_depth(depth), width=int(width), activation_fn=_activation(activation), **settings)


def _paf_wide_resnet(depth: str, width: str, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures.paf_wide_resnet import PAF_WideResNet, PSSiLU

    return PAF_WideResNet(PSSiLU(), depth=_wide_depth(depth), widen_factor=int(width), **settings)


def _activation(name: str | None) -> type[nn.Module]:
    from robustbench.model_zoo.architectures.dm_wide_resnet import Swish

    return {"silu": nn.SiLU, "relu": nn.ReLU}.get(name or "", Swish)


def _depth(kind: str, blocks: Mapping[str, list[int]], depth: str) -> list[int]:
    if depth not in blocks:
        raise InputError(f"RobustBench builds a {kind} of {' or '.join(blocks)} layers, got {depth}: name one of them")
    return blocks[depth]


def _wide_depth(text: str) -> int:
    depth = int(text)
    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"a WideResNet has 6 n + 4 layers, 10 at least, got {depth}: as in WideResNet-28-10")
    return depth


_RESNET_BLOCKS: Mapping[str, list[int]] = MappingProxyType(
    {"18": [2, 2, 2, 2], "34": [3, 4, 6, 3], "50": [3, 4, 6, 3], "101": [3, 4, 23, 3], "152": [3, 8, 36, 3]}
)
_PREACT_BLOCKS: Mapping[str, list[int]] = MappingProxyType({"18": [2, 2, 2, 2], "34": [3, 4, 6, 3]})
"""Blocks in each stage. RobustBench cannot build deeper ones: its bottleneck rejects its own network's arguments."""

_ACTIVATION = r"(?:_(silu|swish|relu))?"
_FAMILIES = (
    _Family("ResNet-18", re.compile(r"resnet_(\d+)"), _resnet),
    _Family("PreActResNet-18", re.compile(r"preact_?resnet_?(\d+)"), _preact_resnet),
    _Family("WideResNet-28-10", re.compile(r"wide_?resnet_?(\d+)_(\d+)"), _wide_resnet),
    _Family("DMWideResNet-28-10-silu", re.compile(rf"dm_?wide_?resnet_?(\d+)_(\d+){_ACTIVATION}"), _dm_wide_resnet),
    _Family("DMPreActResNet-18-swish", re.compile(rf"dm_?preact_?resnet_?(\d+){_ACTIVATION}"), _dm_preact_resnet),
    _Family("PAF_WideResNet-28-10", re.compile(r"paf_?wide_?resnet_?(\d+)_(\d+)"), _paf_wide_resnet),
)
"""Those with a size in their name. The activation is Swish by default, as in most of RobustBench's models."""
