"""The data set and the default threat of each named model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from empir_plugin._entry_points import find
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.quantized.robustbench import zoo_datasets
from empir_plugin.zoo.registry import find_builder

_DEFAULT_THREAT = "Linf:8/255"
_THREATS: Mapping[str, str] = MappingProxyType({"mnist": "Linf:0.3", "imagenet": "Linf:4/255"})


def dataset_of(model: str) -> str:
    """The data set a named model classifies; of several that RobustBench has a model for, the first.

    Example:
        >>> dataset_of("empir-mnist"), dataset_of("Standard"), dataset_of("Standard_R50")
        ('mnist', 'cifar10', 'imagenet')
    """
    builder = find_builder(model)
    return next(iter(zoo_datasets(model)), "cifar10") if builder is None else builder.dataset


def default_threat(model: str, dataset: str | None = None) -> str:
    """The default threat of a named model, as text.

    It is the threat on the model's card; for a model without a card, that of RobustBench's leaderboard of its data set.

    Args:
        model: Its id; case, ``-`` and ``_`` make no difference.
        dataset: Data set of a model without a card; that of :func:`dataset_of` by default.

    Example:
        >>> default_threat("EMPIR_mnist"), default_threat("Standard_R50", "imagenet")
        ('Linf:0.3', 'Linf:4/255')
    """
    card = find(cards(), model) if model else None
    return _THREATS.get(dataset or dataset_of(model), _DEFAULT_THREAT) if card is None else card.threat
