"""Networks by name: timm's, and those of RobustBench and torchvision that timm does not have."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from torch import nn

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin.errors import InputError

with silence_harmless_warnings():
    import timm

Architecture = str | Callable[..., nn.Module]
"""A name, or what is called with ``num_classes`` as keyword."""

_CIFAR_SIZE = (3, 32, 32)
_WIDE_RESNET = re.compile(r"wide_?resnet_?([0-9]+)_([0-9]+)")
_PREACT_RESNET = re.compile(r"preact_?resnet_?([0-9]+)")
_PREACT_BLOCKS: Mapping[int, list[int]] = MappingProxyType({18: [2, 2, 2, 2], 34: [3, 4, 6, 3]})
"""Blocks in each stage. The deeper ones cannot be built: RobustBench's bottleneck refuses what its network passes."""


def network(architecture: Architecture, *, num_classes: int, **settings: Any) -> nn.Module:
    """A full-precision network with random weights, unless the settings ask timm for others.

    Its ``default_cfg`` tells the size of its images, where that is known.

    Args:
        architecture: A name of timm, such as ``"resnet18"``; RobustBench's ``"WideResNet-28-10"`` (any depth and width
            it can have) and ``"PreActResNet-18"``; torchvision's ``"alexnet"``; or a function.
        num_classes: K.
        **settings: For the architecture, such as ``img_size=32`` for a transformer of timm.

    Raises:
        InputError: If the name is not known.

    Example:
        >>> network("resnet18", num_classes=10).fc.out_features
        10
    """
    if not isinstance(architecture, str):
        return architecture(num_classes=num_classes, **settings)
    if timm.is_model(architecture):
        return _sized(timm.create_model(architecture, num_classes=num_classes, **settings), settings)
    plain = architecture.lower().replace("-", "_")
    if match := _WIDE_RESNET.fullmatch(plain):
        return _wide_resnet(int(match[1]), int(match[2]), num_classes=num_classes, **settings)
    if match := _PREACT_RESNET.fullmatch(plain):
        return _preact_resnet(int(match[1]), num_classes=num_classes, **settings)
    if plain == "alexnet":
        return _alexnet(num_classes=num_classes, **settings)
    close = get_close_matches(plain, timm.list_models(), n=1)
    advice = f"did you mean {close[0]!r}?" if close else "timm.list_models() has the names"
    raise InputError(f"no architecture {architecture!r} in timm or RobustBench: {advice}")


def _with_config(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    setattr(model, "default_cfg", dict(config))  # noqa: B010 - where timm keeps it, unknown to nn.Module's type
    return model


def _sized(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """The network with the size of images in its configuration that the settings ask for: timm leaves it as it was."""
    if settings.get("img_size") is None and settings.get("in_chans") is None:
        return model
    config: Any = model.default_cfg
    channels, *sides = config["input_size"]
    if (size := settings.get("img_size")) is not None:
        sides = [size, size] if isinstance(size, int) else size
    return _with_config(model, {**config, "input_size": (settings.get("in_chans") or channels, *sides)})


def _wide_resnet(depth: int, width: int, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures.wide_resnet import WideResNet

    if depth < 10 or (depth - 4) % 6:
        raise InputError(f"a WideResNet has 6 n + 4 layers, 10 at least, got {depth}: as in WideResNet-28-10")
    return _with_config(WideResNet(depth=depth, widen_factor=width, **settings), {"input_size": _CIFAR_SIZE})


def _preact_resnet(depth: int, **settings: Any) -> nn.Module:
    from robustbench.model_zoo.architectures import resnet

    if depth not in _PREACT_BLOCKS:
        known = " or ".join(str(each) for each in _PREACT_BLOCKS)
        raise InputError(f"RobustBench builds a PreActResNet of {known} layers, got {depth}: name one of them")
    model = resnet.PreActResNet(resnet.PreActBlock, _PREACT_BLOCKS[depth], **settings)
    return _with_config(model, {"input_size": _CIFAR_SIZE})


def _alexnet(**settings: Any) -> nn.Module:
    from torchvision.models import alexnet

    return _with_config(alexnet(**settings), {"input_size": (3, 224, 224)})
