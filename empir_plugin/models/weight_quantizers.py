"""Weight quantizers other than DoReFa's: binary weights as in BNN and XNOR-Net, and uniform levels.

BNN's binary weights (Hubara et al., "Binarized Neural Networks", https://arxiv.org/abs/1602.02830) have no scale,
XNOR-Net's (Rastegari et al., https://arxiv.org/abs/1603.05279) one per filter, and DoReFa's one per tensor. Panda et
al., https://arxiv.org/abs/1902.03151, evaluate the first two. Centring the weights and scaling the inputs, as in
XNOR-Net's public code, are not implemented.

Uniform levels are for quantization after training (:mod:`empir_plugin.models.posttraining`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin._files.tables import choice
from empir_plugin.errors import InputError
from empir_plugin.models.backward import ElementwiseFunction, apply
from empir_plugin.models.quantize import WeightQuantizer, in_float32


class OneBit(Enum):
    """One-bit weights: DoReFa's ``mean|w| sign(w)``, BNN's ``sign(w)``, or XNOR-Net's with one mean per filter.

    With BNN and XNOR-Net, one-bit activations are their sign as well, instead of DoReFa's 0 and 1.

    Example:
        >>> OneBit.parse("bnn")
        <OneBit.BNN: 'bnn'>
    """

    DOREFA = "dorefa"
    BNN = "bnn"
    XNOR = "xnor"

    @classmethod
    def parse(cls, value: OneBit | str) -> OneBit:
        """Parse the text form; a member of this class is returned as it is.

        Raises:
            InputError: If the text names no member.
        """
        return choice(cls, "one_bit", value)


class _SignWithin(ElementwiseFunction):
    """Forward: the sign, 1 for zero. Backward: 1 where ``|w| <= 1``, 0 elsewhere."""

    @staticmethod
    def forward(w: Tensor) -> Tensor:
        return torch.where(w < 0, -1.0, 1.0)

    @staticmethod
    def slope(x: Tensor, *args: Any) -> Tensor:
        return (x.abs() <= 1).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (w,) = ctx.saved_tensors
        return grads[0] * (w.abs() <= 1)


@dataclass(frozen=True)
class SignWeightQuantizer:
    """``sign(w)``, 1 for zero, with or without XNOR-Net's scale per filter.

    The gradient of the sign is 1 where ``|w| <= 1`` and 0 elsewhere; the mean is differentiated, as in XNOR-Net. Latent
    weights should be clipped to [-1, 1] after each training step: :func:`clip_latent_`.

    Args:
        per_filter: Multiply each filter, or each row of a linear layer, by the mean of its ``|w|`` (XNOR-Net).

    Example:
        >>> SignWeightQuantizer(per_filter=True)(torch.tensor([[-1.0, 0.5], [0.0, 0.2]]))
        tensor([[-0.7500,  0.7500],
                [ 0.1000,  0.1000]])
    """

    per_filter: bool = False

    @property
    def bits(self) -> int:
        """Always 1."""
        return 1

    def __call__(self, w: Tensor) -> Tensor:
        """Quantize latent weights ``(out, ...)``."""
        w = in_float32(w)
        sign = apply(_SignWithin, w)
        return sign * _means(w) if self.per_filter else sign

    @property
    def steps(self) -> int:
        """The integer of the largest level, 1: levels are -1 and 1."""
        return 1

    def unit(self, quantized: Tensor) -> Tensor:
        """The absolute value of quantized weights: detached, a scalar or one for each filter ``(out, 1, ...)``."""
        sizes = quantized.detach().abs()
        return _largest_of_filters(sizes) if self.per_filter else sizes.amax()

    def codes(self, w: Tensor) -> Tensor:
        """0 for a negative weight and 1 for the others, as uint8 of the same shape."""
        return (w.detach() >= 0).to(torch.uint8)

    def factor(self, w: Tensor) -> Tensor:
        """The factor of the signs, detached: 1, or the mean of each filter ``(out,)``."""
        return _means(in_float32(w)).detach().flatten() if self.per_filter else w.new_ones(())

    def decode(self, codes: Tensor, factor: Tensor) -> Tensor:
        """Quantized weights from their codes, equal to those of :meth:`__call__` bit for bit."""
        return torch.where(codes == 0, -1.0, 1.0) * factor.view(-1, *[1] * (codes.dim() - 1))

    def __str__(self) -> str:
        return "xnor" if self.per_filter else "bnn"


def _means(w: Tensor) -> Tensor:
    """``mean|w|`` of each filter, in a shape that broadcasts with the weights."""
    return w.abs().flatten(1).mean(1).view(-1, *[1] * (w.dim() - 1))


def _largest_of_filters(sizes: Tensor) -> Tensor:
    """The largest number of each filter, in a shape that broadcasts with the weights."""
    return sizes.flatten(1).amax(1).view(-1, *[1] * (sizes.dim() - 1))


@torch.no_grad()
def clip_latent_(model: nn.Module) -> None:
    """Clip the latent weights of BNN and XNOR layers to [-1, 1], as their papers do after every training step.

    Example:
        >>> clip_latent_(nn.Linear(2, 2))
    """
    for module in model.modules():
        if isinstance(getattr(module, "weight_quantizer", None), SignWeightQuantizer):
            weight: Any = module.weight
            weight.clamp_(-1, 1)


@dataclass(frozen=True)
class UniformWeightQuantizer:
    """Round to the nearest of ``2**bits - 1`` equally spaced levels from ``-max|w|`` to ``max|w|``; one of them is 0.

    It is ``max|w| round(m w / max|w|) / m`` with ``m = 2**(bits - 1) - 1``, ties to even. The maximum runs over the
    whole tensor. The gradient is the identity (straight-through).

    Args:
        bits: 2 to 8; one bit would leave only zero.

    Raises:
        InputError: If the number of bits is not in 2..8.

    Example:
        >>> UniformWeightQuantizer(3)(torch.tensor([-0.6, -0.29, 0.05, 0.35]))
        tensor([-0.6000, -0.2000,  0.0000,  0.4000])
    """

    bits: int

    def __post_init__(self) -> None:
        if not isinstance(self.bits, int) or not 2 <= self.bits <= 8:
            raise InputError(f"a uniform grid with zero in it has 2 to 8 bits, got {self.bits!r}")

    @property
    def steps(self) -> int:
        """The integer of the largest level: levels are the integers from ``-steps`` to ``steps``, over ``steps``."""
        return 2 ** (self.bits - 1) - 1

    def unit(self, quantized: Tensor) -> Tensor:
        """The largest level that quantized weights can have: a detached scalar tensor."""
        return quantized.detach().abs().amax()

    def __call__(self, w: Tensor) -> Tensor:
        """Quantize latent weights of any shape."""
        w = in_float32(w)
        levels = self._signed_codes(w.detach()) / self.steps * self.factor(w)
        return levels + (w - w.detach())

    def codes(self, w: Tensor) -> Tensor:
        """The codes 0 .. ``2**bits - 2`` of the quantized weights, as uint8 of the same shape."""
        return (self._signed_codes(in_float32(w.detach())) + self.steps).to(torch.uint8)

    def factor(self, w: Tensor) -> Tensor:
        """The largest level, ``max|w|``: a detached scalar tensor."""
        return in_float32(w.detach()).abs().amax()

    def decode(self, codes: Tensor, factor: Tensor) -> Tensor:
        """Quantized weights from their codes, equal to those of :meth:`__call__` bit for bit."""
        return (codes.to(torch.float32) - self.steps) / self.steps * factor

    def _signed_codes(self, w: Tensor) -> Tensor:
        largest = self.factor(w).clamp_min(torch.finfo(w.dtype).tiny)
        return torch.round(w / largest * self.steps)

    def __str__(self) -> str:
        return "uniform"


AnyWeightQuantizer = WeightQuantizer | SignWeightQuantizer | UniformWeightQuantizer
"""The quantizer that a quantized layer applies to its latent weights."""
