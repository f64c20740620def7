"""The networks: EMPIR's MNISTconv, CIFARconv and AlexNet, a small one for robust MNIST, and fully connected ones."""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.models.activations import InputQuantizer, SignActivationQuantizer, SignedActivationQuantizer
from empir_plugin.models.layers import QuantConv2d, QuantizedLayer, QuantLinear
from empir_plugin.models.quantize import FULL_BITS, ActivationQuantizer, Precision, Scale, WeightQuantizer
from empir_plugin.models.weight_quantizers import AnyWeightQuantizer, OneBit, SignWeightQuantizer


def conv2d(*args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> nn.Conv2d:
    """A convolution of the given precision; the arguments are those of :class:`torch.nn.Conv2d`."""
    if precision.is_full:
        return nn.Conv2d(*args, **kwargs)
    return QuantConv2d(*args, precision=precision, scale=scale, **kwargs)


def linear(*args: Any, precision: Precision, scale: Scale = "none", **kwargs: Any) -> nn.Linear:
    """A linear layer of the given precision; the arguments are those of :class:`torch.nn.Linear`."""
    if precision.is_full:
        return nn.Linear(*args, **kwargs)
    return QuantLinear(*args, precision=precision, scale=scale, **kwargs)


@torch.no_grad()
def unit_norm_(layer: nn.Conv2d | nn.Linear) -> None:
    """Initialise as the release does: normal weights, every filter or output unit scaled to L2 norm 1, no bias.

    The standard deviation cancels in the scaling; only the release's truncation at two of them has an effect.
    """
    if isinstance(layer, nn.Conv2d):
        nn.init.trunc_normal_(layer.weight, std=1.0, a=-2.0, b=2.0)
    else:
        nn.init.normal_(layer.weight)
    layer.weight /= layer.weight.flatten(1).norm(dim=1).view(-1, *[1] * (layer.weight.dim() - 1)) + 1e-7
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class Normalize(nn.Module):
    """Normalise images in [0, 1]: subtract a mean and divide by a standard deviation per channel."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise images ``(N, C, H, W)``."""
        return (x - self.mean) / self.std


class UntiedBias(nn.Module):
    """One bias for every output position ``(C, H, W)``, as in conv1 of the release's AlexNet."""

    def __init__(self, channels: int, height: int, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, height, width))

    def forward(self, x: Tensor) -> Tensor:
        """Add the bias to features ``(N, C, H, W)``."""
        return x + self.bias


class MNISTConv(nn.Module):
    """MNISTconv (Sen et al., ICLR 2020, Table 3, https://openreview.net/forum?id=HJem3yHKwH), 709,888 parameters.

    In low precision all three convolutions are quantized, so the image is, too. The linear layer stays in full
    precision.

    Args:
        precision: Bits of the three convolutions.
        scale: Scale of their quantized weights; the release has none.

    Example:
        >>> import torch
        >>> MNISTConv(Precision.parse("w2a4"))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, precision: Precision | None = None, *, scale: Scale = "none", num_classes: int = 10) -> None:
        super().__init__()
        bits = precision or Precision()
        self.conv1 = conv2d(1, 64, 8, stride=2, padding=3, bias=False, precision=bits, scale=scale)
        self.conv2 = conv2d(64, 128, 6, stride=2, bias=False, precision=bits, scale=scale)
        self.conv3 = conv2d(128, 128, 5, bias=False, precision=bits, scale=scale)
        self.logits = nn.Linear(128, num_classes, bias=False)
        for layer in (self.conv1, self.conv2, self.conv3, self.logits):
            unit_norm_(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 1, 28, 28)`` in [0, 1]."""
        x = self.conv1(x).relu()  # (N, 64, 14, 14)
        x = self.conv2(x).relu()  # (N, 128, 5, 5)
        x = self.conv3(x).relu()  # (N, 128, 1, 1)
        return self.logits(x.flatten(1))


class MNISTSmall(nn.Module):
    """Two convolutions and two linear layers, 436,202 parameters.

    The network of Wong and Kolter (https://arxiv.org/abs/1711.00851) at twice the width. Robust networks on MNIST
    apply a threshold to every pixel, and a threshold is a bias followed by a ReLU. MNISTconv has no biases, and is far
    less robust after adversarial training within 0.3; 4 bits for the image and the first layer cost some robustness,
    too. So in low precision the first and the last layer stay in full precision, as in DoReFa-Net
    (https://arxiv.org/abs/1606.06160, Section 2.7), and the two between them, with 95 % of the multiplications, are
    quantized.

    Args:
        precision: Bits of the second convolution and of the first linear layer.
        scale: Scale of their quantized weights.

    Example:
        >>> import torch
        >>> MNISTSmall(Precision.parse("w4a4"), scale="max")(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(self, precision: Precision | None = None, *, scale: Scale = "none", num_classes: int = 10) -> None:
        super().__init__()
        bits = precision or Precision()
        self.conv1 = nn.Conv2d(1, 32, 4, stride=2, padding=1)
        self.conv2 = conv2d(32, 64, 4, stride=2, padding=1, precision=bits, scale=scale)
        self.hidden = linear(3136, 128, precision=bits, scale=scale)
        self.logits = nn.Linear(128, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 1, 28, 28)`` in [0, 1]."""
        x = self.conv1(x).relu()  # (N, 32, 14, 14)
        x = self.conv2(x).relu()  # (N, 64, 7, 7)
        x = self.hidden(x.flatten(1)).relu()  # (N, 128)
        return self.logits(x)


class CIFARConv(nn.Module):
    """CIFARconv (Sen et al., ICLR 2020, https://openreview.net/forum?id=HJem3yHKwH).

    The release has 5x5 filters throughout and 32 of them in conv2: 116,704 parameters. The paper's Table 3 prints 8x8
    filters and 64 of them in conv2 and conv3: 433,120 parameters. In both, all convolutions are quantized in low
    precision, so the image is, too. The two linear layers, with no activation between them, stay in full precision.

    Args:
        precision: Bits of the three convolutions.
        scale: Scale of their quantized weights; the release has none.
        table3: Build the network of the paper's Table 3 instead of the released one.

    Example:
        >>> import torch
        >>> CIFARConv(Precision.parse("w4a2"))(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        precision: Precision | None = None,
        *,
        scale: Scale = "none",
        table3: bool = False,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        bits = precision or Precision()
        width, kernel = (64, 8) if table3 else (32, 5)
        # TensorFlow's SAME padding puts the odd pixel of an even filter at the end.
        before, after = (kernel - 1) // 2, kernel // 2
        self.pad = nn.ZeroPad2d((before, after, before, after))
        self.conv1 = conv2d(3, 32, 5, padding=2, bias=False, precision=bits, scale=scale)
        self.conv2 = conv2d(32, width, kernel, bias=False, precision=bits, scale=scale)
        self.conv3 = conv2d(width, 64, kernel, bias=False, precision=bits, scale=scale)
        self.ip1 = nn.Linear(576, 64, bias=False)
        self.logits = nn.Linear(64, num_classes, bias=False)
        for layer in (self.conv1, self.conv2, self.conv3, self.ip1, self.logits):
            unit_norm_(layer)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 3, 32, 32)`` in [0, 1]."""
        x = F.max_pool2d(self.conv1(x), 3, 2).relu()  # (N, 32, 15, 15)
        x = F.avg_pool2d(self.conv2(self.pad(x)).relu(), 3, 2)  # (N, 32, 7, 7)
        x = F.avg_pool2d(self.conv3(self.pad(x)).relu(), 3, 2)  # (N, 64, 3, 3)
        return self.logits(self.ip1(x.flatten(1)))


_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def _batch_norm(channels: int, dims: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]) -> nn.Module:
    # TensorFlow's momentum 0.99 is PyTorch's 0.01.
    return dims(channels, eps=1e-3, momentum=0.01)


class AlexNet(nn.Module):
    """AlexNet as released with EMPIR (Sen et al., ICLR 2020), 61,265,256 parameters.

    It differs from the usual AlexNet: an untied bias after conv1, grouped conv2, conv4 and conv5, batch normalisation
    before pooling. In low precision conv2 to conv5, ip1 and ip2 are quantized; conv1 and the last layer are not.

    The release normalises BGR images with means in RGB order. This network takes RGB images in [0, 1] and normalises
    them with the usual ImageNet statistics.

    Args:
        precision: Bits of the quantized layers.
        scale: Scale of their quantized weights; the release has none.

    Example:
        >>> sum(p.numel() for p in AlexNet().parameters())
        61265256
    """

    def __init__(self, precision: Precision | None = None, *, scale: Scale = "none", num_classes: int = 1000) -> None:
        super().__init__()
        bits = precision or Precision()
        conv1 = nn.Conv2d(3, 96, 12, stride=4, bias=False)
        conv2 = conv2d(96, 256, 5, padding=2, groups=2, bias=False, precision=bits, scale=scale)
        conv3 = conv2d(256, 384, 3, padding=1, bias=False, precision=bits, scale=scale)
        conv4 = conv2d(384, 384, 3, padding=1, groups=2, bias=False, precision=bits, scale=scale)
        conv5 = conv2d(384, 256, 3, padding=1, groups=2, bias=False, precision=bits, scale=scale)
        ip1 = linear(9216, 4096, precision=bits, scale=scale)
        ip2 = linear(4096, 4096, bias=False, precision=bits, scale=scale)
        logits = nn.Linear(4096, num_classes)
        self.normalize = Normalize(_MEAN, _STD)
        self.features = nn.Sequential(
            OrderedDict(
                conv1=conv1,  # (N, 96, 54, 54)
                bias1=UntiedBias(96, 54, 54),
                relu1=nn.ReLU(),
                conv2=conv2,
                bn1=_batch_norm(256, nn.BatchNorm2d),
                pool1=nn.MaxPool2d(3, 2, ceil_mode=True),  # (N, 256, 27, 27)
                relu2=nn.ReLU(),
                conv3=conv3,
                bn2=_batch_norm(384, nn.BatchNorm2d),
                pool2=nn.MaxPool2d(3, 2, padding=1),  # (N, 384, 14, 14)
                relu3=nn.ReLU(),
                conv4=conv4,
                bn3=_batch_norm(384, nn.BatchNorm2d),
                relu4=nn.ReLU(),
                conv5=conv5,
                bn4=_batch_norm(256, nn.BatchNorm2d),
                pool3=nn.MaxPool2d(3, 2),  # (N, 256, 6, 6)
                relu5=nn.ReLU(),
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                ip1=ip1,
                bn5=_batch_norm(4096, nn.BatchNorm1d),
                relu6=nn.ReLU(),
                ip2=ip2,
                bn6=_batch_norm(4096, nn.BatchNorm1d),
                relu7=nn.ReLU(),
                logits=logits,
            )
        )
        for layer in (conv1, conv3, ip1, ip2, logits):
            unit_norm_(layer)
        for layer in (conv2, conv4, conv5):
            nn.init.kaiming_normal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits ``(N, K)`` of images ``(N, 3, 224, 224)`` in [0, 1]."""
        return self.classifier(self.features(self.normalize(x)).flatten(1))


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
