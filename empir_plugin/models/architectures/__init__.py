"""The networks of EMPIR's release, by name."""

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from torch import nn

from empir_plugin.models.architectures.alexnet import AlexNet as AlexNet
from empir_plugin.models.architectures.cifarconv import CIFARConv as CIFARConv
from empir_plugin.models.architectures.mnistconv import MNISTConv as MNISTConv

ARCHITECTURES: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "mnistconv": MNISTConv,
        "cifarconv": CIFARConv,
        "cifarconv-table3": partial(CIFARConv, table3=True),
        "alexnet": AlexNet,
    }
)
"""Constructors by name; each takes a ``Precision``, and ``scale`` and ``num_classes`` as keywords."""
