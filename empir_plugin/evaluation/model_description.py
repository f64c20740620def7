"""What decides a network's function, written down: version 2 of the identity of models.

A description lists every module of a network in order: its name in the tree, its class, and the settings that decide
what it computes in evaluation mode. It does not depend on ``repr``, on training or evaluation mode, on the device, on
memory layout or on ``inplace``, nor on attributes that a library attaches for its own use. Weights are not part of it:
:func:`empir_plugin.evaluation.identity.model_fingerprint` adds them.

Which settings count:

- For layers of ``torch.nn``: those of the table below, and for classes derived from them as well.
- For classes of this package: those of a second table. Only their qualified name counts, not their module.
- For any other class: its ``__constants__``, its public attributes, and the private ones that its own code names, if
  their values are plain: numbers, texts, None, enums, dtypes, named functions and classes, tensors and arrays (by their
  hash), networks that are no submodules (with their weights), and tuples, lists, sets, mappings, dataclasses and public
  attributes of objects that consist of these.

A module with forward hooks or forward pre-hooks, or a ``forward`` of its own instead of its class's, is also described
by these: by their plain value if they have one, else by the name of their code.

It cannot see what closures, lambdas and methods hold, module globals, hooks that are set for all modules at once, the
code of a forward pass, or what a library attaches under a private name.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.modules import batchnorm, conv, dropout, instancenorm, padding, pooling

from empir_plugin.errors import InputError
from empir_plugin.models.layers import is_special

INFRASTRUCTURE = frozenset(vars(nn.Module()))
"""Attributes every network has: weights and submodules, which are covered elsewhere, and torch's own bookkeeping."""

HOOKS = "_forward_pre_hooks", "_forward_hooks"
"""Those among them that can change an output."""

_PACKAGE = __name__.partition(".")[0]
_DEPTH = 8

_CONVOLUTION = "in_channels out_channels kernel_size stride padding padding_mode dilation groups output_padding"
_NORM = "num_features eps affine track_running_stats"
_MAX_POOL = "kernel_size stride padding dilation ceil_mode return_indices"
_AVG_POOL = "kernel_size stride padding ceil_mode count_include_pad divisor_override"

_TORCH_LAYERS: Mapping[type[nn.Module], str] = MappingProxyType(
    {
        conv._ConvNd: _CONVOLUTION,
        nn.Linear: "in_features out_features",
        nn.Bilinear: "in1_features in2_features out_features",
        nn.Identity: "",
        nn.Embedding: "num_embeddings embedding_dim padding_idx max_norm norm_type",
        batchnorm._BatchNorm: _NORM,
        instancenorm._InstanceNorm: _NORM,
        nn.LayerNorm: "normalized_shape eps elementwise_affine",
        nn.GroupNorm: "num_groups num_channels eps affine",
        nn.LocalResponseNorm: "size alpha beta k",
        pooling._MaxPoolNd: _MAX_POOL,
        pooling._AvgPoolNd: _AVG_POOL,
        pooling._LPPoolNd: "norm_type kernel_size stride ceil_mode",
        pooling._AdaptiveAvgPoolNd: "output_size",
        pooling._AdaptiveMaxPoolNd: "output_size return_indices",
        padding._ConstantPadNd: "padding value",
        padding._ReflectionPadNd: "padding",
        padding._ReplicationPadNd: "padding",
        padding._CircularPadNd: "padding",
        nn.Flatten: "start_dim end_dim",
        nn.Unflatten: "dim unflattened_size",
        nn.Upsample: "size scale_factor mode align_corners recompute_scale_factor",
        nn.PixelShuffle: "upscale_factor",
        nn.PixelUnshuffle: "downscale_factor",
        nn.ChannelShuffle: "groups",
        nn.ReLU: "",
        nn.Hardtanh: "min_val max_val",
        nn.LeakyReLU: "negative_slope",
        nn.PReLU: "num_parameters",
        nn.RReLU: "lower upper",
        nn.ELU: "alpha",
        nn.CELU: "alpha",
        nn.SELU: "",
        nn.GELU: "approximate",
        nn.SiLU: "",
        nn.Mish: "",
        nn.Sigmoid: "",
        nn.LogSigmoid: "",
        nn.Hardsigmoid: "",
        nn.Hardswish: "",
        nn.Tanh: "",
        nn.Tanhshrink: "",
        nn.Softplus: "beta threshold",
        nn.Softshrink: "lambd",
        nn.Hardshrink: "lambd",
        nn.Softsign: "",
        nn.Threshold: "threshold value",
        nn.GLU: "dim",
        nn.Softmax: "dim",
        nn.Softmin: "dim",
        nn.Softmax2d: "",
        nn.LogSoftmax: "dim",
        dropout._DropoutNd: "",  # Does nothing in evaluation mode.
        nn.Sequential: "",
        nn.ModuleList: "",
        nn.ModuleDict: "",
        nn.ParameterList: "",
        nn.ParameterDict: "",
    }
)
"""Settings of layers of ``torch.nn`` that decide what they compute in evaluation mode; a base class for all its own."""

_PACKAGE_LAYERS: Mapping[str, str] = MappingProxyType(
    {
        "QuantizedLayer": "weight_quantizer activation_quantizer",
        "QuantStdConv2d": "eps",
        "QuantStdConv2dSame": "eps same_pad",
        "QuantScaledStdConv2d": "eps scale",
        "QuantScaledStdConv2dSame": "eps scale same_pad",
        "Ensemble": "rule",
        "Discretized": "activation_quantizer",
        "Normalize": "",  # Its mean and deviation are buffers.
        "UntiedBias": "",
        "MNISTConv": "",
        "MNISTSmall": "",
        "CIFARConv": "",
        "AlexNet": "",
        "FCN": "",
        "IntegerModel": "",
        "ModelWrapper": "",
        "IntegerLayer": "precision grid op",
        "Codes": "grid",
        "PoolCodes": "args kwargs",
        "AddInto": "relu",
        "AddAndRound": "relu grid",
    }
)
"""Settings of this package's modules, by qualified name."""

_NEVER = frozenset(
    {
        "training",
        "inplace",
        "weights_loaded",
        "default_cfg",
        "pretrained_cfg",
        "pretrained_cfg_overlay",
        "pretrained_model_args",
        "feature_info",
        "grad_checkpointing",
        "fused_attn",
    }
)
"""Attributes that no class is described by: modes, and what libraries attach for their own use."""

_ONLY_IN_TRAINING: Mapping[type[nn.Module], str] = MappingProxyType(
    {batchnorm._NormBase: "momentum", dropout._DropoutNd: "p"}
)


def describe_model(model: nn.Module) -> str:
    """Every module of a network with its class and settings, as JSON text.

    Example:
        >>> describe_model(nn.Flatten())
        '[["", "torch.nn.Flatten", {"end_dim": "-1", "start_dim": "1"}]]'
    """
    return _describe_modules(model, frozenset())


def _describe_modules(model: nn.Module, known: frozenset[int]) -> str:
    modules = list(model.named_modules(remove_duplicate=False))  # One ReLU used twice is the same function as two.
    known |= {id(module) for _, module in modules}
    rows = [[name, _name(type(module)), _settings(module, known)] for name, module in modules]
    return json.dumps(rows, sort_keys=True)


def _settings(module: nn.Module, known: frozenset[int]) -> dict[str, str]:
    return {**_class_settings(module, known), **_attached_code(module)}


def _attached_code(module: nn.Module) -> dict[str, str]:
    """Hooks of one module, and a ``forward`` that is an attribute; nothing for most modules."""
    hooks = {key: list(vars(module)[key].values()) for key in HOOKS}
    texts = {key.strip("_"): f"[{', '.join(map(_code_text, each))}]" for key, each in hooks.items() if each}
    own = vars(module).get("forward") if not isinstance(module, GraphModule) else None
    return texts if own is None else {**texts, "forward": _code_text(own)}


def _code_text(value: Any) -> str:
    """A callable as text: its plain value, or the name of its code, which does not say what it holds."""
    code = getattr(value, "__func__", value)
    return describe_plain(value) or _name(code if hasattr(code, "__qualname__") else type(code))


def _class_settings(module: nn.Module, known: frozenset[int]) -> dict[str, str]:
    if isinstance(module, GraphModule):  # Its attributes are torch's own; what it computes is in its code.
        return {"code": module.code}
    names = _table_of(type(module))
    if names is not None:
        values = {name: getattr(module, name) for name in names if hasattr(module, name)}
        return {name: describe_plain(value, known) or _name(type(value)) for name, value in values.items()}
    texts = {name: describe_plain(value, known) for name, value in _own_attributes(module).items()}
    return {name: text for name, text in texts.items() if text is not None}


def _table_of(cls: type[nn.Module]) -> list[str] | None:
    """The settings of a class that the tables cover; None for any other class."""
    layer = next((names for base in cls.__mro__ if (names := _TORCH_LAYERS.get(base)) is not None), None)
    if _is_own(cls) and any(base.__qualname__ in _PACKAGE_LAYERS for base in cls.__mro__ if _is_own(base)):
        own = (_PACKAGE_LAYERS.get(base.__qualname__, "") for base in cls.__mro__ if _is_own(base))
        return " ".join((layer or "", *own)).split()
    return layer.split() if layer is not None and cls.__module__.startswith("torch.nn.") else None


def _is_own(code: Any) -> bool:
    return str(code.__module__).partition(".")[0] == _PACKAGE


def _own_attributes(module: nn.Module) -> dict[str, object]:
    """The constants and attributes of a module that are its own, and not what a library attached for its own use."""
    constants = {name: getattr(module, name, None) for name in getattr(module, "__constants__", ())}
    unused = {name for base, name in _ONLY_IN_TRAINING.items() if isinstance(module, base)} | _NEVER
    found = {**constants, **vars(module)}
    private = _names_in_code(type(module)) - INFRASTRUCTURE
    return {
        name: value
        for name, value in found.items()
        if name not in unused and (not name.startswith("_") or name in private)
    }


@functools.cache
def _names_in_code(cls: type[nn.Module]) -> frozenset[str]:
    """The names that the code of a class uses, and that of its bases that are not torch's.

    Not the setters of properties: published identities are without their names.
    """
    return names_in_code((base for base in cls.__mro__ if not base.__module__.startswith("torch.nn.")), "fget")


def names_in_code(classes: Iterable[type], *accessors: str) -> frozenset[str]:
    """The names that methods and properties of classes use, and functions inside of them.

    Args:
        classes: Each for itself, without its bases.
        accessors: Which functions of a property count: ``"fget"``, ``"fset"``.

    Example:
        >>> {"start_dim", "end_dim"} <= names_in_code([nn.Flatten])
        True
    """
    values = [value for each in classes for value in vars(each).values()]
    functions = [getattr(value, "__func__", value) for value in values]
    functions += [getattr(value, name) for value in values if isinstance(value, property) for name in accessors]
    pending = [function.__code__ for function in functions if isinstance(function, FunctionType)]
    names: set[str] = set()
    while pending:
        code = pending.pop()
        names.update(code.co_names)
        pending += [each for each in code.co_consts if isinstance(each, CodeType)]
    return frozenset(names)


def _name(code: Any) -> str:
    """The name of a class or function; it does not change when code moves within this package or ``torch.nn``."""
    if _is_own(code):
        return f"{_PACKAGE}.{code.__qualname__}"
    if getattr(nn, code.__qualname__, None) is code:
        return f"torch.nn.{code.__qualname__}"
    return f"{code.__module__}.{code.__qualname__}"


def describe_plain(value: object, known: frozenset[int] = frozenset(), depth: int = _DEPTH) -> str | None:
    """A plain value as text that is the same in every process; None for a value that is not plain.

    Args:
        value: The value.
        known: The ids of modules that are described elsewhere.
        depth: How deep values may be nested.

    Example:
        >>> describe_plain([1, "a"]), describe_plain(lambda: 1)
        ("(1, 'a')", None)
    """
    if depth == 0:
        return None
    if isinstance(value, Enum):
        return f"{_name(type(value))}.{value.name}"
    if isinstance(value, np.generic):
        return repr(value.item())
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        return repr(value)
    if isinstance(value, torch.dtype):
        return str(value)
    if isinstance(value, Tensor):
        return describe_tensor(value)
    if isinstance(value, np.ndarray):
        return None if value.dtype == object else describe_array(value)
    if isinstance(value, nn.Module):
        return "a module described elsewhere" if id(value) in known else _module_text(value, known)
    return _compound_text(value, known, depth - 1)


def _module_text(module: nn.Module, known: frozenset[int]) -> str:
    """A network that is no submodule, with its weights."""
    digest = hashlib.sha256(_describe_modules(module, known).encode())
    add_tensors(digest, {**dict(module.named_buffers()), **dict(module.named_parameters())})
    return f"{_name(type(module))}(sha256:{digest.hexdigest()})"


def _compound_text(value: object, known: frozenset[int], depth: int) -> str | None:
    if isinstance(value, (tuple, list)):
        return _join("", (describe_plain(item, known, depth) for item in value))
    if isinstance(value, Mapping):
        pairs = [(describe_plain(key, known, depth), describe_plain(item, known, depth)) for key, item in value.items()]
        return _join("mapping", sorted(f"{key}: {item}" for key, item in pairs)) if _all_plain(pairs) else None
    if isinstance(value, (set, frozenset)):
        members = [describe_plain(item, known, depth) for item in value]
        return None if None in members else _join("set", sorted(map(str, members)))
    if isinstance(value, functools.partial):
        return _join(
            "partial", (describe_plain(part, known, depth) for part in (value.func, value.args, value.keywords))
        )
    if isinstance(value, (type, FunctionType, BuiltinFunctionType)):
        return _code_name(value)
    if is_dataclass(value):
        items = {item.name: describe_plain(getattr(value, item.name), known, depth) for item in fields(value)}
        return _join(_name(type(value)), (text and f"{name}={text}" for name, text in items.items()))
    attributes = {key: item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
    if not attributes or isinstance(value, ModuleType):
        return None
    texts = ((key, describe_plain(item, known, depth)) for key, item in sorted(attributes.items()))
    return _join(_name(type(value)), (text and f"{key}={text}" for key, text in texts))


def _join(name: str, parts: Iterable[str | None]) -> str | None:
    texts: list[str] = []
    for part in parts:
        if part is None:  # The rest may be large.
            return None
        texts.append(part)
    return f"{name}({', '.join(texts)})"


def _all_plain(pairs: Iterable[tuple[str | None, str | None]]) -> bool:
    return all(text is not None for pair in pairs for text in pair)


def _code_name(value: Any) -> str | None:
    """The name of a function or class; None if the name does not say which it is."""
    if "<" in value.__qualname__ or getattr(value, "__closure__", None):
        return None
    return _name(value)


_NUMPY_TYPES: Mapping[torch.dtype, str] = MappingProxyType(
    {torch.float32: "<f4", torch.float64: "<f8", torch.int64: "<i8", torch.uint8: "|u1", torch.bool: "|b1"}
)


def add_tensors(digest: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add tensors to a hash: names, types, shapes and values, wherever and however they lie in memory.

    Args:
        digest: Of :mod:`hashlib`.
        tensors: By name; their order does not matter.
    """
    for name, tensor in sorted(tensors.items()):
        if inner := _inner_tensors(name, tensor):
            digest.update(f"{name}|{type(tensor).__qualname__}|{tuple(tensor.shape)}|".encode())
            add_tensors(digest, inner)
            continue
        flat = tensor.detach().cpu().contiguous()
        digest.update(f"{name}|{_NUMPY_TYPES.get(flat.dtype, flat.dtype)}|{tuple(flat.shape)}|".encode())
        digest.update(flat.reshape(-1).view(torch.uint8).numpy().data)


def _inner_tensors(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The plain tensors inside a special one, such as a quantized weight of torchao; none if it is plain itself.

    Raises:
        InputError: If it is of a subclass that does not name them.
    """
    if tensor.is_quantized:
        return {f"{name}.{part}": value for part, value in _of_quantized(tensor.detach()).items()}
    if tensor.layout != torch.strided:
        return {f"{name}.{tensor.layout}": tensor.detach().to_dense()}
    if not is_special(tensor):
        return {}
    flatten = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        raise InputError(
            f"{name or 'a tensor'} is a {type(tensor).__qualname__}, which does not tell what it contains: give the "
            "subclass a __tensor_flatten__, or dequantize the model first"
        )
    return {f"{name}.{part}": getattr(tensor, part) for part in flatten()[0]}


def _of_quantized(tensor: Tensor) -> dict[str, Tensor]:
    """Codes, scale and zero of a tensor of torch's own quantized types."""
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        scale, zero = torch.tensor(tensor.q_scale()), torch.tensor(tensor.q_zero_point())
    else:
        scale, zero = tensor.q_per_channel_scales(), tensor.q_per_channel_zero_points()
    return {"codes": tensor.int_repr(), "scale": scale, "zero": zero}


def describe_tensor(tensor: Tensor) -> str:
    """A tensor as text, by the hash of its values.

    Example:
        >>> describe_tensor(torch.zeros(2)) == describe_tensor(torch.ones(2))
        False
    """
    digest = hashlib.sha256()
    add_tensors(digest, {"": tensor})
    return f"Tensor(sha256:{digest.hexdigest()})"


def describe_array(array: np.ndarray[Any, Any]) -> str:
    """An array of numbers as text, by the hash of its values.

    Example:
        >>> describe_array(np.zeros(2))[:17]
        'ndarray(<f8, (2,)'
    """
    return f"ndarray({array.dtype.str}, {array.shape}, sha256:{hashlib.sha256(array.tobytes()).hexdigest()})"
