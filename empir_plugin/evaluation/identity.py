"""Names for values and networks: the same in every process, and another one for whatever computes something else."""

from __future__ import annotations

import functools
import hashlib
import platform
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
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
from empir_plugin.models.layers import quantized_layers

_DEPTH = 12
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_IRRELEVANT = frozenset({"training", "weights_loaded", "default_cfg", "pretrained_cfg", "baked_weight"})
"""Attributes and buffers of networks that tell of their origin or their mode, not of what they compute."""

_INFRASTRUCTURE = frozenset(vars(nn.Module()))
"""Attributes every network has: its weights and parts, which are named elsewhere, and torch's own bookkeeping."""

_HOOKS = "_forward_pre_hooks", "_forward_hooks"
"""Of these, what can change an output."""

_NUMPY_TYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float32: "<f4", torch.float64: "<f8", torch.int64: "<i8", torch.uint8: "|u1", torch.bool: "|b1"}
)


def describe(value: object, depth: int = _DEPTH) -> str:
    """Text that names a value by all that decides what it does: type, settings, and content of tensors and networks.

    Unlike ``repr`` it never shows a memory address and never leaves weights out.

    Raises:
        InputError: If something in it has no name that means the same in another process, as a lambda has none.

    Example:
        >>> from empir_plugin.attacks.gradient import fgsm
        >>> describe(fgsm().step_size)
        'StepOfEps(ratio=1.0)'
    """
    if depth == 0:
        raise InputError(f"a {type(value).__name__} lies too deep to be described, or holds itself: flatten it")
    if value is None or isinstance(value, (bool, int, float, str, bytes, np.generic)):
        return repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return f"ndarray({value.dtype.str}, {value.shape}, sha256:{hashlib.sha256(value.tobytes()).hexdigest()})"
    if isinstance(value, (torch.device, torch.dtype, Path)):
        return str(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    if isinstance(value, Tensor):
        digest = hashlib.sha256()
        _add_tensors(digest, {"": value})
        return f"Tensor(sha256:{digest.hexdigest()})"
    if isinstance(value, nn.Module):
        hashes = f"sha256:{model_fingerprint(value)}, settings:{settings_fingerprint(value)[:16]}"
        return f"{type(value).__qualname__}({hashes})"
    return _describe_compound(value, depth - 1)


def _describe_compound(value: object, depth: int) -> str:
    name = type(value).__qualname__
    if isinstance(value, Mapping):
        return _joined(name, (f"{describe(k, depth)}: {describe(v, depth)}" for k, v in value.items()))
    if isinstance(value, (tuple, list)):
        return _joined("" if type(value) is tuple else name, (describe(item, depth) for item in value))
    if isinstance(value, (set, frozenset)):
        return _joined(name, sorted(describe(item, depth) for item in value))
    if isinstance(value, functools.partial):
        return _joined(name, (describe(part, depth) for part in (value.func, value.args, value.keywords)))
    if isinstance(value, types.MethodType):
        return _joined(name, (describe(part, depth) for part in (value.__func__, value.__self__)))
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return _describe_code(value)
    return _joined(name, (f"{key}={describe(item, depth)}" for key, item in _attributes(value)))


def _joined(name: str, parts: Iterable[str]) -> str:
    return f"{name}({', '.join(parts)})"


def _describe_code(value: Any) -> str:
    if "<" in value.__qualname__ or getattr(value, "__closure__", None):
        raise InputError(
            f"{value.__qualname__} has no name that means the same in another process: "
            "use a function of a module, or a frozen dataclass with __call__"
        )
    return f"{value.__module__}.{value.__qualname__}"


def _attributes(value: object) -> list[tuple[str, object]]:
    if is_dataclass(value):
        return [(item.name, getattr(value, item.name)) for item in fields(value)]
    if not hasattr(value, "__dict__"):
        raise InputError(f"a {type(value).__qualname__} cannot be described: use numbers, texts and frozen dataclasses")
    return sorted(vars(value).items())


def model_fingerprint(model: nn.Module) -> str:
    """SHA-256 over the text and the weights of a network, as hexadecimal text: its name in records.

    Quantized layers count with their quantized weights: what they compute with, whatever latent weights lie behind.
    Buffers outside of the state, such as a normalisation's, count as well.

    Example:
        >>> len(model_fingerprint(nn.Linear(2, 2)))
        64
    """
    quantized = {f"{name}.weight".lstrip("."): layer.quantized_weight() for name, layer in quantized_layers(model)}
    state = {name: item for name, item in model.state_dict().items() if isinstance(item, Tensor)}
    digest = hashlib.sha256(_ADDRESS.sub("", repr(model)).encode())
    _add_tensors(digest, {**_relevant(dict(model.named_buffers())), **state, **quantized})
    return digest.hexdigest()


def settings_fingerprint(model: nn.Module) -> str:
    """SHA-256 over what a network's text does not show: attributes and hooks of its modules, the code of traced ones.

    The rule of an ensemble is one, or a temperature. It changes with the names inside a library, so it decides whether
    a stored result may be used again, and is no part of a published name.

    Raises:
        InputError: If one of them has no name that means the same in another process.

    Example:
        >>> settings_fingerprint(nn.Flatten(1)) == settings_fingerprint(nn.Flatten(2))
        False
    """
    digest = hashlib.sha256()
    for name, module in model.named_modules():
        settings = [(key, describe(item)) for key, item in sorted(_settings(module).items())]
        digest.update(f"|{name}|{type(module).__qualname__}|{settings}".encode())
    return digest.hexdigest()


def _settings(module: nn.Module) -> dict[str, object]:
    if isinstance(module, GraphModule):  # its attributes are torch's, and all that it does is in its code
        return {"code": module.code}
    hooks = {key: list(vars(module)[key].values()) for key in _HOOKS if vars(module)[key]}
    own = {key: item for key, item in vars(module).items() if key not in _INFRASTRUCTURE}
    return {**_relevant(own), **hooks}


T = TypeVar("T")


def _relevant(attributes: Mapping[str, T]) -> dict[str, T]:
    return {name: item for name, item in attributes.items() if name.rpartition(".")[2] not in _IRRELEVANT}


def state_fingerprint(model: nn.Module) -> str:
    """SHA-256 over what a network may not change while it is evaluated: parameters, buffers and mode.

    Example:
        >>> state_fingerprint(nn.ReLU()) == state_fingerprint(nn.ReLU().eval())
        False
    """
    modes = "".join("1" if module.training else "0" for module in model.modules())
    digest = hashlib.sha256(modes.encode())
    _add_tensors(digest, {**dict(model.named_buffers()), **dict(model.named_parameters())})
    return digest.hexdigest()


def _add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in sorted(tensors.items()):
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{_NUMPY_TYPES.get(flat.dtype, flat.dtype)}|{tuple(flat.shape)}|".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)


_PACKAGES = ("empir-plugin", "torch", "torchvision", "timm", "robustbench", "pyautoattack", "autoattack", "numpy")


def now() -> str:
    """The time of day, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; those not installed are left out."""
    installed = {package: number for package in _PACKAGES if (number := _version(package))}
    return {"python": platform.python_version(), **installed}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def code_sha256() -> str:
    """SHA-256 over the sources of this package: which code made a result, also between releases."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(f"{path.relative_to(root).as_posix()}|".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def data_table(data: ImageSet) -> dict[str, object]:
    """What a result says of the images it is about.

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
