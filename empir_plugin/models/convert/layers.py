"""The layers that can be quantized: quantized classes of torch.nn's and timm's layers, and reasons for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parameter import is_lazy

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear, describe_kind, is_special
from empir_plugin.models.quantize import in_float32, is_half

with silence_harmless_warnings():
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.padding import pad_same
    from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame


class QuantConv2dSame(QuantizedLayer, Conv2dSame):
    """A convolution with TensorFlow's SAME padding; it pads with zeros, even if zero is not a level of the input."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x, weight, bias = self.operands(x)
        return self.in_own_type(self._conv_forward(_pad_same(self, x), weight, bias))


def _pad_same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return pad_same(x, list(layer.kernel_size), list(layer.stride), list(layer.dilation))


def _standardize(weight: Tensor, eps: float, gain: Tensor | None = None) -> Tensor:
    """Weights ``(out, ...)`` with mean 0 and variance 1 in each filter, times ``gain`` ``(out,)``."""
    rows = weight.reshape(1, len(weight), -1)  # for batch_norm, each filter is a channel
    rows = functional.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=eps)
    return rows.reshape_as(weight)


class QuantStdConv2d(QuantizedLayer, StdConv2d):
    """A weight-standardised convolution, https://arxiv.org/abs/1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x, weight, bias = self.operands(x)
        return self.in_own_type(self._conv_forward(x, _standardize(weight, self.eps), bias))


class QuantStdConv2dSame(QuantizedLayer, StdConv2dSame):
    """A weight-standardised convolution with TensorFlow's SAME padding, https://arxiv.org/abs/1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x, weight, bias = self.operands(x)
        padded = _pad_same(self, x) if self.same_pad else x
        return self.in_own_type(self._conv_forward(padded, _standardize(weight, self.eps), bias))


class QuantScaledStdConv2d(QuantizedLayer, ScaledStdConv2d):
    """A convolution with scaled weight standardisation, https://arxiv.org/abs/2101.08692."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x, weight, bias = self.operands(x)
        weight = _standardize(weight, self.eps, in_float32(self.gain * self.scale).view(-1))
        return self.in_own_type(self._conv_forward(x, weight, bias))


class QuantScaledStdConv2dSame(QuantizedLayer, ScaledStdConv2dSame):
    """A convolution with scaled weight standardisation and TensorFlow's SAME padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x, weight, bias = self.operands(x)
        padded = _pad_same(self, x) if self.same_pad else x
        weight = _standardize(weight, self.eps, in_float32(self.gain * self.scale).view(-1))
        return self.in_own_type(self._conv_forward(padded, weight, bias))


_QUANTIZED = (
    QuantConv2d,
    QuantLinear,
    QuantConv2dSame,
    QuantStdConv2d,
    QuantStdConv2dSame,
    QuantScaledStdConv2d,
    QuantScaledStdConv2dSame,
)
QUANTIZED: Mapping[type[nn.Module], type[QuantizedLayer]] = MappingProxyType(
    {each.__bases__[1]: each for each in _QUANTIZED}
)
"""The quantized class of each class of layers; see :func:`quantized_class` for classes that compute as one of them."""

_WHOLE: Mapping[type[nn.Module], str] = MappingProxyType(
    {
        nn.MultiheadAttention: "it applies its weights without calling its layers",
        nn.TransformerEncoderLayer: "its fast path applies weights without calling its layers",
        nn.RNNBase: "a recurrent layer applies its weights inside of one kernel",
    }
)
"""Modules that use the weights of their children without calling them."""

_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WITH_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NOT_MULTIPLIED = (nn.Embedding, nn.EmbeddingBag, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def quantize_layer_class_(layer: nn.Module) -> QuantizedLayer:
    """Turn a layer into its quantized class, in place: parameters, hooks and references stay.

    Set its quantizers before calling it: :meth:`~empir_plugin.models.layers.QuantizedLayer.use_quantizers_`.
    """
    target: Any = quantized_class(layer)
    if not isinstance(layer, target.__bases__[1]):  # Its own class, not one derived from a linear layer.
        rows, columns = layer.get_parameter("weight").shape
        vars(layer).pop("bias", None)
        layer.register_parameter("bias", layer._parameters.get("bias"))
        vars(layer).update(in_features=columns, out_features=rows)
    if (name := _input_name(type(layer))) != _input_name(target):
        layer.register_forward_pre_hook(TakeByName(name), with_kwargs=True)
    layer.__class__ = target
    return cast("QuantizedLayer", layer)


def _input_name(kind: type[nn.Module]) -> str:
    """The keyword by which layers of a class can be given their input."""
    return next(name for name in signature(kind.forward).parameters if name != "self")


@dataclass(frozen=True)
class TakeByName:
    """A forward pre-hook: a layer that is given its input by the keyword of its former class gets it by position.

    Args:
        name: The keyword.
    """

    name: str

    def __call__(self, layer: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
        """Positional and keyword arguments for the layer; None if they stay."""
        if args or self.name not in kwargs:
            return None
        return (kwargs[self.name],), {key: value for key, value in kwargs.items() if key != self.name}


def quantized_class(layer: nn.Module) -> type[QuantizedLayer] | None:
    """The quantized class that computes as a layer does, whatever the class of the layer; None if there is none.

    Example:
        >>> class Dense(nn.Linear):
        ...     def forward(self, x):
        ...         return x @ self.weight.T + self.bias
        >>> quantized_class(Dense(3, 2)).__name__
        'QuantLinear'
    """
    kind = type(layer)
    if kind in QUANTIZED:
        return QUANTIZED[kind]
    known = [base for base in kind.__mro__ if base in QUANTIZED]
    weight = layer._parameters.get("weight")
    if isinstance(layer, (QuantizedLayer, *_NOT_MULTIPLIED)) or weight is None or is_lazy(weight):
        return None
    candidates = known or ([nn.Linear] if weight.dim() == 2 else [])
    return next((QUANTIZED[base] for base in candidates if _computes_as(layer, base)), None)


@torch.no_grad()
def _computes_as(layer: nn.Module, base: type[nn.Module]) -> bool:
    """Whether a layer depends on nothing but its own weights, and gives the outputs of a known class in both modes."""
    others = [*layer.children(), *layer.buffers(False), *(x for x in vars(layer).values() if isinstance(x, Tensor))]
    gain = {"gain"} if issubclass(base, (ScaledStdConv2d, ScaledStdConv2dSame)) else set()
    weight = layer.get_parameter("weight")
    if others or not {*layer._parameters} <= {"weight", "bias", *gain} or weight.is_meta or is_special(weight):
        return False
    x, attributes = _trial_input(layer), dict(vars(layer))
    sizes = (1,) if is_half(x) else _TRIAL_SIZES
    try:
        return all(_agree_in_mode(layer, base, size * x, mode) for size in sizes for mode in (True, False))
    except Exception:  # Third-party code on an input that it may not expect; then it is not known to be the same.
        return False
    finally:
        vars(layer).clear()
        vars(layer).update(attributes)


def _agree_in_mode(layer: Any, base: Any, x: Tensor, training: bool) -> bool:
    layer.training = training
    bias = getattr(layer, "bias", None)
    expected = functional.linear(x, layer.weight, bias) if base is nn.Linear else base.forward(layer, x)
    found = type(layer).forward(layer, x)
    tolerance = 100 * torch.finfo(x.dtype).eps
    return found.dtype == expected.dtype and torch.allclose(
        found, expected, rtol=tolerance, atol=tolerance * float(expected.abs().max())
    )


_TRIAL_SIZES = (1, 1e-4, 1e4)
"""Factors of the trial input, since a layer may treat small or large numbers in another way."""


def _trial_input(layer: Any) -> Tensor:
    """Numbers of either sign, some of them large, of a shape that a convolution or linear layer takes."""
    shape: tuple[int, ...] = (3, layer.weight.shape[1])
    if isinstance(layer, nn.Conv2d):
        sides = zip(layer.kernel_size, layer.dilation, layer.stride, strict=True)
        shape = (2, layer.in_channels, *(d * (k - 1) + 2 + 2 * s for k, d, s in sides))
    return 4 * torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(layer.weight)


@contextmanager
def undo_on_error(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Turn layers back into what they were if their conversion fails inside the block."""
    before = [(layer, type(layer), _contents(layer)) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, kind, contents in before:
            layer.__class__ = kind
            for now, then in contents:
                now.clear()
                now.update(then)
        raise


def _contents(layer: nn.Module) -> list[tuple[dict[Any, Any], dict[Any, Any]]]:
    """A layer's attributes, parameters and hooks: the dictionaries themselves, each with a copy."""
    own = vars(layer), layer._parameters, layer._forward_pre_hooks, layer._forward_pre_hooks_with_kwargs
    return [(each, dict(each)) for each in own]


def unsupported_whole_reason(module: nn.Module) -> str:
    """Why a module and everything inside it cannot be quantized; empty if they can."""
    return next((reason for kind, reason in _WHOLE.items() if isinstance(module, kind)), "")


def unsupported_reason(module: nn.Module) -> str:
    """Why a module's own weights cannot be quantized; empty if they can, or if it multiplies with none."""
    if whole := unsupported_whole_reason(module):
        return whole
    if hasattr(module, "_packed_params") and hasattr(module, "_weight_bias"):
        return "torch has quantized it already"
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        return "it has no weights before its first call, so call the network once"
    if quantized_class(module) or (isinstance(module, tuple(QUANTIZED)) and "weight" not in module._parameters):
        return _unsupported_weight_reason(module)
    if isinstance(module, _NOT_MULTIPLIED) or not _multiplies(module):
        return ""
    return f"{type(module).__name__} has no quantized counterpart here"


def _unsupported_weight_reason(layer: nn.Module) -> str:
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is recomputed from other parameters"
    if is_special(weight):
        return f"its weight is {describe_kind(weight)}, which another library may have quantized already"
    return "" if weight.dtype in _TYPES else f"its weight is {weight.dtype}, which has no quantizer"


def _multiplies(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return isinstance(module, (*_WITH_WEIGHTS, nn.Linear, nn.Bilinear)) or (weight is not None and weight.dim() > 1)
