"""Which layers can be quantized, and which have weights that nothing here quantizes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from torch import nn

from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.timm_layers import (
    QuantConv2dSame,
    QuantScaledStdConv2d,
    QuantScaledStdConv2dSame,
    QuantStdConv2d,
    QuantStdConv2dSame,
)

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
"""The quantized class of each class of layers. Subclasses do not count: what their forward pass does is not known."""

_WHOLE: Mapping[type[nn.Module], str] = MappingProxyType(
    {
        nn.MultiheadAttention: "it applies its weights without calling its layers",
        nn.TransformerEncoderLayer: "its fast path applies weights without calling its layers",
        nn.RNNBase: "a recurrent layer applies its weights inside of one kernel",
    }
)
"""Modules that compute with the weights of their children behind the children's back."""

_WITH_WEIGHTS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NOT_MULTIPLIED = (nn.Embedding, nn.EmbeddingBag, nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def quantize_layer_class_(layer: nn.Module) -> QuantizedLayer:
    """Turn a layer into the quantized layer of its class, in place: parameters, hooks and references stay.

    It needs quantizers before it is called: :meth:`~empir_plugin.models.layers.QuantizedLayer.use_quantizers_`.
    """
    layer.__class__ = QUANTIZED[type(layer)]
    return cast("QuantizedLayer", layer)


def whole_unsupported(module: nn.Module) -> str:
    """Why a module cannot be quantized together with everything inside of it; empty if it can."""
    return next((reason for kind, reason in _WHOLE.items() if isinstance(module, kind)), "")


def unsupported(module: nn.Module) -> str:
    """Why a module's own weights cannot be quantized; empty if they can, or if it has none to multiply with."""
    if whole := whole_unsupported(module):
        return whole
    if type(module) in QUANTIZED:
        return "" if "weight" in module._parameters else "its weight is recomputed from other parameters"
    if isinstance(module, _NOT_MULTIPLIED) or not _multiplies(module):
        return ""
    return f"{type(module).__name__} has no quantized counterpart here"


def _multiplies(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    return isinstance(module, (*_WITH_WEIGHTS, nn.Linear, nn.Bilinear)) or (weight is not None and weight.dim() > 1)
