"""Network architectures by name: those of EMPIR's release and of two other papers."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from empir_plugin.models.architectures.networks import FCN as FCN
from empir_plugin.models.architectures.networks import AlexNet as AlexNet
from empir_plugin.models.architectures.networks import CIFARConv as CIFARConv
from empir_plugin.models.architectures.networks import MNISTConv as MNISTConv
from empir_plugin.models.architectures.networks import MNISTSmall as MNISTSmall

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "mnistconv": MNISTConv,
        "mnistsmall": MNISTSmall,
        "cifarconv": CIFARConv,
        "cifarconv-table3": partial(CIFARConv, table3=True),
        "alexnet": AlexNet,
        "fcn1": partial(FCN, width=6144),
        "fcn1-xnor": partial(FCN, width=6144, one_bit="xnor"),
        "fcn2": FCN,
        "fcn2-xnor": partial(FCN, one_bit="xnor"),
    }
)
"""Constructors by name; each takes a ``Precision``, and ``scale`` and ``num_classes`` as keywords."""
