"""Identity of what a result depends on: hashes of networks, texts of settings, and versions of code, packages and data.

Names are the same in every process, and differ for whatever computes something else.
"""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime, timezone
from enum import Enum
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.evaluation.model_description import (
    HOOKS,
    INFRASTRUCTURE,
    add_tensors,
    describe_array,
    describe_model,
    describe_tensor,
    names_in_code,
)
from empir_plugin.models.layers import QuantizedLayer, quantized_layers

_DEPTH = 12
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_NORM_WITHOUT_BIAS = re.compile(r"^(?!.*RMSNorm)(.*affine=(True|False))(?=, track_running_stats=|\)?$)", re.MULTILINE)
"""Normalization as older releases of torch write it: newer ones go on with whether it has a bias."""

_IRRELEVANT = frozenset(
    {
        "training",
        "weights_loaded",
        "default_cfg",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "_model_args",
        "_baked",
    }
)
"""Attributes and buffers of networks that belong to their origin or their mode, and do not decide what they compute."""

IDENTITY = 2
"""Current version of the identity of models; results that state none have version 1."""


def describe(value: object, depth: int = _DEPTH) -> str:
    """A value as text, with everything that decides what it does: type, settings, tensors and networks.

    Unlike ``repr`` it never shows a memory address and never leaves out weights.

    Raises:
        InputError: If a part of it has no name that is valid in another process, such as a lambda.

    Example:
        >>> from empir_plugin.attacks.gradient import fgsm
        >>> describe(fgsm().step_size)
        'StepOfEps(ratio=1.0)'
    """
    if depth == 0:
        raise InputError(f"a {type(value).__name__} is nested too deep to be described, or contains itself: flatten it")
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic)):
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return describe_array(value)
    if isinstance(value, (torch.device, torch.dtype, Path)):
        return str(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, Tensor):
        return describe_tensor(value)
    if isinstance(value, nn.Module):
        hashes = f"sha256:{model_fingerprint(value)}, settings:{settings_fingerprint(value)[:16]}"
        return f"{type(value).__qualname__}({hashes})"
    return _describe_compound(value, depth - 1)


def _describe_compound(value: object, depth: int) -> str:
    name = type(value).__qualname__
    if isinstance(value, Mapping):
        return _join(name, (f"{describe(k, depth)}: {describe(v, depth)}" for k, v in value.items()))
    if isinstance(value, (tuple, list)):
        return _join("" if type(value) is tuple else name, (describe(item, depth) for item in value))
    if isinstance(value, (set, frozenset)):
        return _join(name, sorted(describe(item, depth) for item in value))
    if isinstance(value, functools.partial):
        return _join(name, (describe(part, depth) for part in (value.func, value.args, value.keywords)))
    if isinstance(value, types.MethodType):
        return _join(name, (describe(part, depth) for part in (value.__func__, value.__self__)))
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return _describe_code(value)
    return _join(name, (f"{key}={describe(item, depth)}" for key, item in _attributes(value)))


def _join(name: str, parts: Iterable[str]) -> str:
    return f"{name}({', '.join(parts)})"


def _describe_code(value: Any) -> str:
    if "<" in value.__qualname__ or getattr(value, "__closure__", None):
        raise InputError(
            f"{value.__qualname__} has no name that is valid in another process: "
            "use a function of a module, or a frozen dataclass with __call__"
        )
    return f"{value.__module__}.{value.__qualname__}"


def _attributes(value: object) -> list[tuple[str, object]]:
    if is_dataclass(value):
        return [(item.name, getattr(value, item.name)) for item in fields(value)]
    if not hasattr(value, "__dict__"):
        raise InputError(f"a {type(value).__qualname__} cannot be described: use numbers, texts and frozen dataclasses")
    return sorted(vars(value).items())


def model_fingerprint(model: nn.Module, version: int = IDENTITY) -> str:
    """SHA-256 of what a network computes, as hexadecimal text: its identity in records, audits and overhead files.

    Version 2 covers a description of every module (see :mod:`empir_plugin.evaluation.model_description`, which also
    says what it cannot see) and all parameters and buffers. Version 1 covers the text ``repr`` gives in place of the
    description, as torch 2.13 and later write it; it serves only to check files that state no version. In both,
    quantized layers count with their
    quantized weights, whatever latent weights are behind them, and buffers count whether they are in the state dict or
    not.

    Args:
        model: The network; its device, mode and memory layout do not matter.
        version: Of the identity, 1 or 2.

    Raises:
        InputError: If the version is unknown.

    Example:
        >>> model_fingerprint(nn.Flatten(1)) == model_fingerprint(nn.Flatten(2))
        False
    """
    if type(version) is not int or version not in _FINGERPRINTS:
        known = " or ".join(map(str, _FINGERPRINTS))
        raise InputError(f"the identity of a model has version {known}, got {version!r}: use the release that wrote it")
    return _FINGERPRINTS[version](model)


def _fingerprint_v1(model: nn.Module) -> str:
    quantized = {f"{name}.weight".lstrip("."): layer.quantized_weight() for name, layer in quantized_layers(model)}
    state = {name: item for name, item in model.state_dict().items() if isinstance(item, Tensor)}
    text = _NORM_WITHOUT_BIAS.sub(r"\1, bias=\2", _ADDRESS.sub("", repr(model)))
    digest = hashlib.sha256(text.encode())
    add_tensors(digest, {**_relevant(dict(model.named_buffers())), **state, **quantized})
    return digest.hexdigest()


def _fingerprint_v2(model: nn.Module) -> str:
    buffers = _relevant(dict(model.named_buffers(remove_duplicate=False)))
    digest = hashlib.sha256(f"model identity 2|{describe_model(model)}|".encode())
    add_tensors(digest, {**buffers, **dict(_tensors_in(model.state_dict())), **_quantized_weights(model)})
    return digest.hexdigest()


def _tensors_in(state: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of a state dict, also those in a tuple or mapping, as torch packs quantized weights."""
    for key, value in state.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, (tuple, list)):
            yield from _tensors_in({str(i): item for i, item in enumerate(value)}, f"{prefix}{key}.")
        elif isinstance(value, Mapping):
            yield from _tensors_in(value, f"{prefix}{key}.")


@torch.no_grad()
def _quantized_weights(model: nn.Module) -> dict[str, Tensor]:
    return {
        f"{name}.weight".lstrip("."): _quantized_weight(layer)
        for name, layer in model.named_modules(remove_duplicate=False)
        if isinstance(layer, QuantizedLayer) and hasattr(layer, "weight_quantizer")  # An IntegerLayer has integers.
    }


def _quantized_weight(layer: QuantizedLayer) -> Tensor:
    if layer.baked_weight is not None:
        return layer.baked_weight
    # A mean over the weights rounds in another way on another device or in another memory layout.
    return layer.weight_quantizer(layer.weight.detach().cpu().contiguous())


_FINGERPRINTS: Mapping[int, Callable[[nn.Module], str]] = MappingProxyType({1: _fingerprint_v1, 2: _fingerprint_v2})


@dataclass(frozen=True)
class ModelIdentity:
    """The hash of a model in a file, and the version of the identity it is of.

    Args:
        sha256: Of the model.
        version: Of the identity; 1 in files that state none.

    Example:
        >>> model = nn.Flatten()
        >>> old, new = (ModelIdentity(model_fingerprint(model, version), version) for version in (1, 2))
        >>> old == new, old.is_same(new, lambda version: model_fingerprint(model, version))
        (False, True)
    """

    sha256: object
    version: object = 1

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> ModelIdentity:
        """The identity in the ``model`` of a record or an audit."""
        return cls(table.get("sha256"), table.get("identity", 1))

    def is_same(self, other: ModelIdentity, fingerprint: Callable[[Any], str]) -> bool:
        """Whether both are of one model.

        Args:
            other: Another identity.
            fingerprint: Hash of the model that both should be of, in a given version; used where the versions differ.
        """
        if self.version == other.version:
            return self.sha256 == other.sha256
        return all(identity.sha256 == fingerprint(identity.version) for identity in (self, other))


def model_table(model: nn.Module, name: str) -> dict[str, object]:
    """What a record or an audit states of the model: ``name``, ``sha256`` and ``identity``.

    Example:
        >>> model_table(nn.Flatten(), "toy")["identity"]
        2
    """
    return {"name": name, "sha256": model_fingerprint(model), "identity": IDENTITY}


def settings_fingerprint(model: nn.Module) -> str:
    """SHA-256 over all attributes and hooks of a network's modules, private ones included, and the code of traced ones.

    It changes with private names inside a library. So it decides whether a cached result may be used again, and is not
    part of a published identity. If all classes of the network are torch's or this package's, attributes that none of
    their code names are left out: another library has attached them for its own use.

    Raises:
        InputError: If one of them has no name that is valid in another process.

    Example:
        >>> settings_fingerprint(nn.Flatten(1)) == settings_fingerprint(nn.Flatten(2))
        False
    """
    digest, known = hashlib.sha256(), _names_in_trusted_code(model)
    for name, module in model.named_modules():
        settings = [(key, describe(item)) for key, item in sorted(_settings(module, known).items())]
        digest.update(f"|{name}|{type(module).__qualname__}|{settings}".encode())
    return digest.hexdigest()


def _settings(module: nn.Module, known: Set[str] | None) -> dict[str, object]:
    if isinstance(module, GraphModule):  # Its attributes are torch's own; what it computes is in its code.
        return {"code": module.code}
    hooks = {key: list(vars(module)[key].values()) for key in HOOKS if vars(module)[key]}
    own = {key: item for key, item in vars(module).items() if key not in INFRASTRUCTURE}
    used = (
        own if known is None else {key: item for key, item in own.items() if key in known or _is_on_class(module, key)}
    )
    return {**_relevant(used), **hooks}


def _is_on_class(module: nn.Module, name: str) -> bool:
    """Whether an attribute stands before one of the class, such as a ``forward``."""
    return hasattr(type(module), name)


def _names_in_trusted_code(model: nn.Module) -> Set[str] | None:
    """Every name in the code of a network's classes; None if one is not torch's or this package's, or has hooks.

    Foreign code may read an attribute in ways that cannot be found, such as by a name it puts together.
    """
    classes = {base for module in model.modules() for base in type(module).__mro__ if base is not object}
    trusted = all(str(each.__module__).partition(".")[0] in _TRUSTED for each in classes)
    if not trusted or any(vars(module)[key] for module in model.modules() for key in HOOKS):
        return None
    return names_in_code(classes, "fget", "fset")


_TRUSTED = frozenset({"torch", "empir_plugin", "typing", "abc"})


T = TypeVar("T")


def _relevant(attributes: Mapping[str, T]) -> dict[str, T]:
    return {name: item for name, item in attributes.items() if name.rpartition(".")[2] not in _IRRELEVANT}


def state_fingerprint(model: nn.Module) -> str:
    """SHA-256 over what must not change during an evaluation: parameters, buffers and mode.

    Example:
        >>> state_fingerprint(nn.ReLU()) == state_fingerprint(nn.ReLU().eval())
        False
    """
    modes = "".join("1" if module.training else "0" for module in model.modules())
    digest = hashlib.sha256(modes.encode())
    add_tensors(digest, {**dict(model.named_buffers()), **dict(model.named_parameters())})
    return digest.hexdigest()


_PACKAGES = ("empir-plugin", "torch", "torchvision", "timm", "robustbench", "pyautoattack", "autoattack", "numpy")


def now() -> str:
    """The time of day, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that a result depends on."""
    installed = {package: number for package in _PACKAGES if (number := _version(package))}
    return {"python": platform.python_version(), **installed}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def code_sha256() -> str:
    """SHA-256 over the source files of this package: which code computed a result, also between releases."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(f"{path.relative_to(root).as_posix()}|".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def data_table(data: ImageSet) -> dict[str, object]:
    """What a record states of its images: ``name``, ``split``, ``source``, ``n`` and ``sha256``.

    Example:
        >>> from empir_plugin.data.image_set import load_images
        >>> data_table(load_images("mnist").first(2))["n"]
        2
    """
    return {
        "name": data.name,
        "split": data.split,
        "source": data.source,
        "n": len(data),
        "sha256": data.fingerprint,
    }
