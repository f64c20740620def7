"""Networks of any architecture by name, and EMPIR ensembles of them.

The names are those of timm, and of the networks of RobustBench and torchvision that timm does not have.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from difflib import get_close_matches
from importlib import import_module
from inspect import signature
from typing import Any

from torch import Tensor, nn

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin.errors import InputError, cause
from empir_plugin.models.activations import Activations
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import INNER, Layers
from empir_plugin.models.ensemble import Ensemble, Rule
from empir_plugin.models.quantize import Precision, Scale
from empir_plugin.zoo.checkpoints import refuse_other_sources, without_pickles
from empir_plugin.zoo.quantized.robustbench import family_names, find_family, find_zoo_network

with silence_harmless_warnings():
    import timm

Architecture = str | Callable[..., nn.Module]
"""A name, ``package.module:callable``, or a function called with ``num_classes`` as keyword."""

_REFERENCE = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*(?:\.\w+)*)")


def network(architecture: Architecture, *, num_classes: int, **settings: Any) -> nn.Module:
    """A full-precision network with random weights, unless the settings ask timm for others.

    Its ``default_cfg`` holds the size of its images, where this is known.

    Args:
        architecture: A name of timm, such as ``"resnet18"``; RobustBench's ``"ResNet-18"``, ``"PreActResNet-18"``,
            ``"WideResNet-28-10"`` and ``"DMWideResNet-28-10-silu"`` in any size, or the id of one of its models, as in
            ``"Carmon2019Unlabeled"``; torchvision's ``"alexnet"``; ``package.module:callable``; or a function.
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
    if is_reference(architecture):
        return _from_reference(architecture, num_classes, settings)
    refuse_other_sources(architecture, settings)
    with without_pickles():
        return _by_name(architecture, num_classes, settings)


def _by_name(architecture: str, num_classes: int, settings: Mapping[str, Any]) -> nn.Module:
    if timm.is_model(architecture):
        return _with_image_size(timm.create_model(architecture, num_classes=num_classes, **settings), settings)
    if (build := find_family(architecture)) is not None:
        return build(num_classes=num_classes, **settings)
    if architecture.lower() == "alexnet":
        return _alexnet(num_classes=num_classes, **settings)
    if (of_zoo := find_zoo_network(architecture, num_classes)) is not None:
        if settings:
            raise InputError(f"the network of {architecture} takes no settings, got {', '.join(settings)}")
        return of_zoo()
    raise InputError(f"no architecture {architecture!r} in timm or RobustBench: {_advice(architecture)}")


def _advice(name: str) -> str:
    known = {each.lower(): each for each in (*timm.list_models(), *family_names())}
    close = get_close_matches(name.lower(), known, n=1)
    return f"did you mean {known[close[0]]!r}?" if close else "timm.list_models() has the names"


def is_reference(architecture: Architecture) -> bool:
    """Whether a text names an object of a module, as ``package.module:callable``.

    Example:
        >>> is_reference("torchvision.models:resnet18"), is_reference("resnet18"), is_reference("C:/weights.pt")
        (True, False, False)
    """
    return isinstance(architecture, str) and _REFERENCE.fullmatch(architecture) is not None


def is_architecture(text: str) -> bool:
    """Whether a text is the name of an architecture of :func:`network`, other than the id of a model of RobustBench.

    Example:
        >>> is_architecture("resnet18"), is_architecture("ResNet-18"), is_architecture("cifarconv")
        (True, True, True)
        >>> is_architecture("empir-cifar")
        False
    """
    own = text in ARCHITECTURES or text.lower() == "alexnet"
    return own or timm.is_model(text) or find_family(text) is not None


def _from_reference(text: str, num_classes: int, settings: Mapping[str, Any]) -> nn.Module:
    """The network that ``package.module:callable`` returns, or a copy of the network it names.

    It is called with the settings, and with ``num_classes`` if it takes that keyword.
    """
    made = _imported(text)
    if isinstance(made, nn.Module):
        if settings:
            raise InputError(f"{text} is a network already, and takes no settings, got {', '.join(settings)}")
        return deepcopy(made)
    if not callable(made):
        raise InputError(f"{text} must be a function or class that returns a torch.nn.Module, got {made!r}")
    try:
        parameters = signature(made).parameters.values()
        takes_classes = any(each.name == "num_classes" or each.kind is each.VAR_KEYWORD for each in parameters)
        model = made(**({"num_classes": num_classes} if takes_classes else {}), **settings)
    except Exception as error:  # the caller's own code, which may fail in any way
        given = ", ".join(f"{key}={value!r}" for key, value in settings.items()) or "no settings"
        raise InputError(f"{text} cannot be called with {given} ({cause(error)}): see --model-args") from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{text} must return a torch.nn.Module, got a {type(model).__name__}: wrap it in one")
    return model


def _imported(text: str) -> Any:
    module, _, name = text.partition(":")
    try:
        found: Any = import_module(module)
    except Exception as error:  # importing runs the module
        cure = "check its spelling, run from its folder, or install it"
        raise InputError(f"module {module} of {text} cannot be imported ({cause(error)}): {cure}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, vars(found), n=1)
            advice = f"did you mean {close[0]!r}?" if close else "check its spelling"
            raise InputError(f"{module} has no {part!r} ({text}): {advice}")
        found = getattr(found, part)
    return found


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


def _alexnet(**settings: Any) -> nn.Module:
    from torchvision.models import alexnet

    return _with_config(alexnet(**settings), {"input_size": (3, 224, 224)})
