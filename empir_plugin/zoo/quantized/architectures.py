"""Networks of any architecture by name, and EMPIR ensembles of them.

The names are those of timm, and of the networks of RobustBench and torchvision that timm does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin.errors import InputError
from empir_plugin.models.activations import Activations
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import INNER, Layers
from empir_plugin.models.ensemble import Ensemble, Rule
from empir_plugin.models.quantize import Precision, Scale
from empir_plugin.zoo.checkpoints import refuse_other_sources, without_pickles

with silence_harmless_warnings():
    import timm

Architecture = str | Callable[..., nn.Module]
"""A name, or a function called with ``num_classes`` as keyword."""

_CIFAR_SIZE = (3, 32, 32)
_WIDE_RESNET = re.compile(r"wide_?resnet_?([0-9]+)_([0-9]+)")
_PREACT_RESNET = re.compile(r"preact_?resnet_?([0-9]+)")
_PREACT_BLOCKS: Mapping[int, list[int]] = MappingProxyType({18: [2, 2, 2, 2], 34: [3, 4, 6, 3]})
"""Blocks in each stage. RobustBench cannot build deeper ones: its bottleneck rejects its own network's arguments."""


def network(architecture: Architecture, *, num_classes: int, **settings: Any) -> nn.Module:
    """A full-precision network with random weights, unless the settings ask timm for others.

    Its ``default_cfg`` holds the size of its images, where this is known.

    Args:
        architecture: A name of timm, such as ``"resnet18"``; RobustBench's ``"WideResNet-28-10"`` (any depth and width
            it can have) and ``"PreActResNet-18"``; torchvision's ``"alexnet"``; or a function.
        num_classes: K.
        **settings: Keywords of the architecture, such as ``img_size=32`` for a transformer of timm; none that names a
            file of weights.

    Raises:
        InputError: If the name is not known, or a setting names a file.

    Example:
        >>> network("resnet18", num_classes=10).fc.out_features
        10
    """
    if not isinstance(architecture, str):
        return architecture(num_classes=num_classes, **settings)
    refuse_other_sources(architecture, settings)
    with without_pickles():
        return _by_name(architecture, num_classes, settings)


def _by_name(architecture: str, num_classes: int, settings: Mapping[str, Any]) -> nn.Module:
    if timm.is_model(architecture):
        return _with_image_size(timm.create_model(architecture, num_classes=num_classes, **settings), settings)
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


def empir(
    architecture: Architecture,
    *,
    precisions: Sequence[Precision | str],
    num_classes: int,
    rule: Rule | None = None,
    scale: Scale = "max",
    activations: Activations | str = Activations.AUTO,
    layers: Layers | str = INNER,
    calibration: Tensor | None = None,
    **settings: Any,
) -> Ensemble:
    """An ensemble of one architecture at several precisions: EMPIR, https://openreview.net/forum?id=HJem3yHKwH.

    Every member has random weights of its own, to be trained or loaded from a state dict.

    Args:
        architecture: A name of timm (``"resnet18"``) or of RobustBench (``"WideResNet-28-10"``, ``"PreActResNet-18"``),
            or a function that takes ``num_classes`` as keyword.
        precisions: Of the members, in order, such as ``["fp", "w4a4", "w2a2"]``.
        num_classes: K.
        rule: How the members decide together; EMPIR's vote by default.
        scale: See :func:`~empir_plugin.models.convert.quantize_.quantize_`, also for the next three.
        activations: Likewise.
        layers: Likewise.
        calibration: Likewise.
        **settings: Keywords of the architecture.

    Raises:
        InputError: If there is no member, or the architecture is not known or cannot be quantized so.

    Example:
        >>> ensemble = empir("resnet18", precisions=["fp", "w4a4", "w2a2"], num_classes=10)
        >>> len(ensemble.members), ensemble.leader
        (3, 0)
    """
    if isinstance(precisions, str):
        raise InputError(f"precisions must be a list such as ['fp', 'w4a4'], got {precisions!r}")
    wanted = [Precision.parse(each) if isinstance(each, str) else each for each in precisions]
    members = [network(architecture, num_classes=num_classes, **settings) for _ in wanted]
    how: dict[str, Any] = {"scale": scale, "activations": activations, "layers": layers, "calibration": calibration}
    for member, precision in zip(members, wanted, strict=True):
        if not precision.is_full:
            quantize_(member, precision, **how)
    return Ensemble(members, rule)


def _with_config(model: nn.Module, config: Mapping[str, Any]) -> nn.Module:
    setattr(model, "default_cfg", dict(config))  # noqa: B010 - timm's attribute, unknown to nn.Module's type
    return model


def _with_image_size(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """The network with the settings' image size in its configuration, which timm does not update."""
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
