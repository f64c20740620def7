"""The layers that can be quantized: quantized classes of torch.nn's and timm's layers, and reasons for the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.quantize import in_float32

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
"""The quantized class of each class of layers. Subclasses do not count, as their forward pass may differ."""

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
    layer.__class__ = QUANTIZED[type(layer)]
    return cast("QuantizedLayer", layer)


@contextmanager
def undo_on_error(layers: Iterable[nn.Module]) -> Iterator[None]:
    """Turn layers back into what they were if their conversion fails inside the block."""
    before = [(layer, type(layer), {*vars(layer)}, {*layer._parameters}) for layer in layers]
    try:
        yield
    except BaseException:
        for layer, kind, attributes, parameters in before:
            layer.__class__ = kind
            for name in {*vars(layer)} - attributes:
                delattr(layer, name)
            for name in {*layer._parameters} - parameters:
                delattr(layer, name)
        raise


def unsupported_whole_reason(module: nn.Module) -> str:
    """Why a module and everything inside it cannot be quantized; empty if they can."""
    return next((reason for kind, reason in _WHOLE.items() if isinstance(module, kind)), "")


def unsupported_reason(module: nn.Module) -> str:
    """Why a module's own weights cannot be quantized; empty if they can, or if it multiplies with none."""
    if whole := unsupported_whole_reason(module):
        return whole
    if type(module) in QUANTIZED:
        return _unsupported_weight_reason(module)
    if isinstance(module, _NOT_MULTIPLIED) or not _multiplies(module):
        return ""
    return f"{type(module).__name__} has no quantized counterpart here"


def _unsupported_weight_reason(layer: nn.Module) -> str:
    weight = layer._parameters.get("weight")
    if weight is None:
        return "its weight is recomputed from other parameters"
    return "" if weight.dtype in _TYPES else f"its weight is {weight.dtype}, which has no quantizer"


def _multiplies(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return isinstance(module, (*_WITH_WEIGHTS, nn.Linear, nn.Bilinear)) or (weight is not None and weight.dim() > 1)
