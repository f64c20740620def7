"""Fully connected networks of the input discretization paper: full precision, BNN and XNOR."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.models.activations import InputQuantizer, SignActivationQuantizer, SignedActivationQuantizer
from empir_plugin.models.architectures.blocks import linear
from empir_plugin.models.layers import QuantizedLayer
from empir_plugin.models.precision import FULL_BITS, Precision
from empir_plugin.models.quantize import ActivationQuantizer, Scale, WeightQuantizer
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer, OneBit, SignWeightQuantizer


class FCN(nn.Module):
    """Four hidden layers between 784 pixels and the classes: Panda et al., https://arxiv.org/abs/1902.03151, Section 3.

    FCN1 has 6144 units in each hidden layer, FCN2 has 600: 118,173,706 and 1,561,210 parameters. The paper gives no
    further details; the rest follows the BNN code it cites (itayhubara/BinaryNet.pytorch): a linear layer, batch
    normalisation and hard tanh, with image and last layer in full precision. There is no dropout after the last hidden
    layer; biases and a normalisation of the image would have no effect before batch normalisation. The full-precision
    network is the same one without signs.

    In low precision the four hidden layers have quantized weights and, from the second on, quantized inputs. One-bit
    weights are those of ``one_bit``, one-bit inputs are signs; inputs of more bits lie in [-1, 1]. The filter scales of
    an XNOR network come before batch normalisation: they change its training, but hardly its function.

    Args:
        precision: Bits of the hidden layers; ``w1a1`` is what the papers call BNN and XNOR.
        width: Number of units in each hidden layer.
        one_bit: Definition of one-bit weights.
        scale: Scale of weights of more bits.

    Example:
        >>> import torch
        >>> FCN(Precision.parse("w1a1")).eval()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        precision: Precision | None = None,
        *,
        width: int = 600,
        one_bit: OneBit | str = OneBit.BNN,
        scale: Scale = "none",
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        bits, kind = precision or Precision(), OneBit.parse(one_bit)
        pairs = list(pairwise([784, width, width, width, width]))
        self.hidden = nn.ModuleList([linear(*pair, bias=False, precision=bits) for pair in pairs])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in pairs])
        self.logits = nn.Linear(width, num_classes)
        for index, layer in enumerate(self.hidden):
            if isinstance(layer, QuantizedLayer):
                inputs = _inputs(bits.activation_bits if index else FULL_BITS)
                layer.use_quantizers_(_weights(bits.weight_bits, kind, scale), inputs)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 1, 28, 28)`` in [0, 1]."""
        x = x.flatten(1)
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            x = F.hardtanh(norm(layer(x)))
        return self.logits(x)


def _weights(bits: int, one_bit: OneBit, scale: Scale) -> AnyWeightQuantizer:
    if bits > 1 or one_bit is OneBit.DOREFA:
        return WeightQuantizer(bits, scale)
    return SignWeightQuantizer(per_filter=one_bit is OneBit.XNOR)


def _inputs(bits: int) -> InputQuantizer:
    if bits == FULL_BITS:
        return ActivationQuantizer(FULL_BITS)
    return SignActivationQuantizer() if bits == 1 else SignedActivationQuantizer(bits)
