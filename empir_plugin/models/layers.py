"""Convolutions and linear layers that quantize their input and their weights.

The *input* of a layer is quantized, not the output of the activation before it, as in EMPIR's release. The operands of
every quantized layer then have k bits, whatever pooling, residual sum or non-linearity comes before.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.models.activations import InputQuantizer, quantize_in_learned_range
from empir_plugin.models.backward import BackwardRule
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import ActivationQuantizer, Scale, WeightQuantizer
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer


class QuantizedLayer(nn.Module):
    """Base of quantized layers: latent float weights, two quantizers and, for evaluation, weights quantized in advance.

    The state dict holds the latent weights under the names of the full-precision layer, so weights load strictly from
    one into the other, both ways. Only a learned range has a name of its own, ``activation_bound``; a state dict
    without it still loads, and does not change it.
    """

    weight: Tensor
    weight_quantizer: AnyWeightQuantizer
    activation_quantizer: InputQuantizer
    activation_bound: nn.Parameter | None
    baked_weight: Tensor | None

    def _set_quantizers(self, precision: Precision, scale: Scale) -> None:
        weights = WeightQuantizer(precision.weight_bits, scale)
        self.use_quantizers_(weights, ActivationQuantizer(precision.activation_bits))

    def use_quantizers_(
        self, weights: AnyWeightQuantizer, activations: InputQuantizer, bound: float | None = None
    ) -> None:
        """Set the quantizers.

        Args:
            weights: Quantizer of the latent weights.
            activations: Quantizer of the input.
            bound: Start of a learned range of the input; by default none is learned.
        """
        self.weight_quantizer, self.activation_quantizer = weights, activations
        learned = None if bound is None else nn.Parameter(self.weight.new_tensor(bound))
        self.register_parameter("activation_bound", learned)
        self.register_buffer("baked_weight", None, persistent=False)

    @property
    def precision(self) -> Precision:
        """Bits of this layer's weights and input."""
        return Precision(self.weight_quantizer.bits, self.activation_quantizer.bits)

    def quantized_weight(self) -> Tensor:
        """The quantized weights, of the latent weights' shape; the baked ones only in evaluation mode."""
        # A new network is in training mode and may be baked then; its latent weights must still get gradients.
        if self.baked_weight is None or self.training:
            return self.weight_quantizer(self.weight)
        return self.baked_weight

    def quantized_input(self, input: Tensor) -> Tensor:
        """The quantized input, of the same shape."""
        if self.activation_bound is None:
            return self.activation_quantizer(input)
        return quantize_in_learned_range(self.activation_quantizer, input, self.activation_bound)

    def bake_(self) -> None:
        """Quantize the weights once, for evaluation mode; training mode or loading weights undoes it."""
        with torch.no_grad():
            self.baked_weight = self.weight_quantizer(self.weight).detach().clone()

    def train(self, mode: bool = True) -> Any:
        """Set the mode; training mode drops baked weights, as the latent weights are about to change."""
        if mode:
            self.baked_weight = None
        return super().train(mode)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        if self.activation_bound is not None:
            state_dict.setdefault(f"{prefix}activation_bound", self.activation_bound.detach())
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self.baked_weight = None

    def extra_repr(self) -> str:
        """The parent's description, the precision, and any quantizers other than EMPIR's."""
        # Published hashes cover this text: it must stay the same for EMPIR's quantizers.
        text = f"{super().extra_repr()}, precision={self.precision}"
        if not isinstance(self.weight_quantizer, WeightQuantizer):
            text += f", weights={self.weight_quantizer}"
        if not isinstance(self.activation_quantizer, ActivationQuantizer):
            text += f", activations={self.activation_quantizer}"
        return text if self.activation_bound is None else f"{text}, range=learned"


class QuantConv2d(QuantizedLayer, nn.Conv2d):
    """A 2-d convolution on k-bit weights and k-bit inputs.

    Args:
        precision: Bits of the weights and of the input.
        scale: See :class:`~empir_plugin.models.quantize.WeightQuantizer`.

    The other arguments are those of :class:`torch.nn.Conv2d`.

    Example:
        >>> layer = QuantConv2d(3, 8, 5, bias=False, precision=Precision.parse("w2a4"))
        >>> layer(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 8, 28, 28])
    """

    def __init__(self, *args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_quantizers(precision, scale)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        return self._conv_forward(self.quantized_input(input), self.quantized_weight(), self.bias)


class QuantLinear(QuantizedLayer, nn.Linear):
    """A linear layer on k-bit weights and k-bit inputs; the bias stays in floating point.

    Args:
        precision: Bits of the weights and of the input.
        scale: See :class:`~empir_plugin.models.quantize.WeightQuantizer`.

    The other arguments are those of :class:`torch.nn.Linear`.

    Example:
        >>> QuantLinear(4, 2, precision=Precision.parse("w4a4"))(torch.rand(3, 4)).shape
        torch.Size([3, 2])
    """

    def __init__(self, *args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._set_quantizers(precision, scale)

    def forward(self, input: Tensor) -> Tensor:
        """Map features ``(..., in_features)``."""
        return nn.functional.linear(self.quantized_input(input), self.quantized_weight(), self.bias)


def quantized_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """The quantized layers of a model with their names, in order of registration."""
    return ((name, layer) for name, layer in model.named_modules() if isinstance(layer, QuantizedLayer))


def bake_(model: nn.Module) -> None:
    """Quantize every quantized layer's weights once, for evaluation."""
    for _, layer in quantized_layers(model):
        layer.bake_()


@contextmanager
def use_backward_rule(model: nn.Module, rule: BackwardRule) -> Iterator[None]:
    """Give every quantizer of activations or images another gradient; outputs stay the same, bit for bit.

    Tensors computed inside the context keep the rule when they are differentiated later.

    Example:
        >>> from empir_plugin.models.backward import identity
        >>> layer, x = QuantLinear(1, 1, precision=Precision.parse("w2a2")), torch.tensor([[2.0]], requires_grad=True)
        >>> with use_backward_rule(layer, identity):
        ...     y = layer(x)
        >>> torch.autograd.grad(y.abs().sum(), x)
        (tensor([[1.]]),)
    """
    modules: list[tuple[Any, Any]] = [
        (module, getattr(module, "activation_quantizer", None)) for module in model.modules()
    ]
    found = [(module, quantizer) for module, quantizer in modules if hasattr(quantizer, "clip")]
    try:
        for module, quantizer in found:
            module.activation_quantizer = replace(quantizer, clip=rule)
        yield
    finally:
        for module, quantizer in found:
            module.activation_quantizer = quantizer


def is_full_precision(model: nn.Module) -> bool:
    """Whether no layer of the model is quantized."""
    return all(layer.precision.is_full for _, layer in quantized_layers(model))
