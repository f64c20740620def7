"""Surrogates that look through the clips of quantized layers."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from empir_plugin.attacks.surrogates import Model, Surrogate, View
from empir_plugin.errors import InputError
from empir_plugin.models.backward import BackwardRule
from empir_plugin.models.layers import differentiated_by, quantized_layers


@dataclass(frozen=True)
class Through:
    """Any surrogate, differentiated by another rule through the model's activation quantizers.

    Logits and decisions keep their bits, only gradients change (BPDA, https://arxiv.org/abs/1802.00420).

    Args:
        surrogate: What is looked at.
        rule: The gradient of the clip to [0, 1] in front of every rounding.

    Raises:
        InputError: When called with a model in which nothing is quantized.

    Example:
        >>> import torch
        >>> from empir_plugin.attacks.surrogates import plain
        >>> from empir_plugin.models.backward import identity
        >>> from empir_plugin.models.layers import QuantLinear
        >>> from empir_plugin.models.precision import Precision
        >>> model = nn.Sequential(nn.Flatten(), QuantLinear(2, 2, precision=Precision.parse("w2a2")))
        >>> print(Through(plain, identity), Through(plain, identity)(model, torch.rand(4, 1, 1, 2)).logits.shape)
        plain/identity torch.Size([4, 2])
    """

    surrogate: Surrogate
    rule: BackwardRule

    def __call__(self, model: Model, x: Tensor) -> View:
        """Look at images ``(N, C, H, W)``."""
        if not isinstance(model, nn.Module) or next(quantized_layers(model), None) is None:
            raise InputError(
                f"the surrogate {self} changes gradients of quantized layers, but {type(model).__name__} has none: "
                f"attack it with {self.surrogate}"
            )
        with differentiated_by(model, self.rule):
            return self.surrogate(model, x)

    def __str__(self) -> str:
        return f"{self.surrogate}/{self.rule}"
