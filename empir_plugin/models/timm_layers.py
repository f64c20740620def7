"""timm's own convolutions (https://github.com/huggingface/pytorch-image-models) on k-bit weights and inputs.

Layers become one of these by :func:`~empir_plugin.models.convert.quantize_`. Where timm standardises the weights of a
filter, it is the latent weights that are quantized, and their k-bit values that are standardised: what is computed
with are k-bit numbers up to a factor and an offset for each filter, and storage takes k bits.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from empir_plugin._compat.quiet import harmless_warnings_silenced
from empir_plugin.models.layers import QuantizedLayer

with harmless_warnings_silenced():
    from timm.layers.conv2d_same import Conv2dSame
    from timm.layers.padding import pad_same
    from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d, StdConv2dSame


class QuantConv2dSame(QuantizedLayer, Conv2dSame):
    """A convolution with TensorFlow's SAME padding; the padding is zero, whatever the levels are."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x = _padded_same(self, self.quantized_input(x))
        return self._conv_forward(x, self.quantized_weight(), self.bias)


def _padded_same(layer: nn.Conv2d, x: Tensor) -> Tensor:
    return pad_same(x, list(layer.kernel_size), list(layer.stride), list(layer.dilation))


def _standardized(weight: Tensor, eps: float, gain: Tensor | None = None) -> Tensor:
    """Weights ``(out, ...)`` with mean 0 and variance 1 in each filter, times ``gain`` ``(out,)``."""
    rows = weight.reshape(1, len(weight), -1)  # to a batch norm, each filter is a channel
    rows = functional.batch_norm(rows, None, None, weight=gain, training=True, momentum=0.0, eps=eps)
    return rows.reshape_as(weight)


class QuantStdConv2d(QuantizedLayer, StdConv2d):
    """A weight-standardised convolution, https://arxiv.org/abs/1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        return self._conv_forward(self.quantized_input(x), _standardized(self.quantized_weight(), self.eps), self.bias)


class QuantStdConv2dSame(QuantizedLayer, StdConv2dSame):
    """A weight-standardised convolution with TensorFlow's SAME padding, https://arxiv.org/abs/1903.10520."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x = self.quantized_input(x)
        padded = _padded_same(self, x) if self.same_pad else x
        return self._conv_forward(padded, _standardized(self.quantized_weight(), self.eps), self.bias)


class QuantScaledStdConv2d(QuantizedLayer, ScaledStdConv2d):
    """A convolution with scaled weight standardisation, https://arxiv.org/abs/2101.08692."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        weight = _standardized(self.quantized_weight(), self.eps, (self.gain * self.scale).view(-1))
        return self._conv_forward(self.quantized_input(x), weight, self.bias)


class QuantScaledStdConv2dSame(QuantizedLayer, ScaledStdConv2dSame):
    """A convolution with scaled weight standardisation and TensorFlow's SAME padding."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve images ``(N, C, H, W)``."""
        x = self.quantized_input(x)
        padded = _padded_same(self, x) if self.same_pad else x
        weight = _standardized(self.quantized_weight(), self.eps, (self.gain * self.scale).view(-1))
        return self._conv_forward(padded, weight, self.bias)
