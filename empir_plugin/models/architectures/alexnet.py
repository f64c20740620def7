"""AlexNet of EMPIR's release."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from empir_plugin.models.architectures.blocks import Normalize, UntiedBias, conv2d, linear, unit_norm_
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale

_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


def _batch_norm(channels: int, dims: type[nn.BatchNorm1d] | type[nn.BatchNorm2d]) -> nn.Module:
    # TensorFlow's momentum 0.99 is PyTorch's 0.01.
    return dims(channels, eps=1e-3, momentum=0.01)


class AlexNet(nn.Module):
    """AlexNet as released with EMPIR (Sen et al., ICLR 2020), 61,265,256 parameters.

    It differs from the common one: an untied bias after conv1, grouped conv2, conv4 and conv5, batch normalisation
    before pooling. In low precision conv2 to conv5, ip1 and ip2 are quantized; conv1 and the last layer are not.

    The release normalises blue-green-red images with means in red-green-blue order. This network takes red-green-blue
    images of [0, 1] and normalises them with the usual ImageNet statistics.

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
