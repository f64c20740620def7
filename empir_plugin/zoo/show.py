"""Tables of the named models, and the data set and default threat of each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.resources import files
from types import MappingProxyType

from empir_plugin._entry_points import find
from empir_plugin.zoo.builders import ModelBuilder, count_parameters
from empir_plugin.zoo.card import ModelCard, cards
from empir_plugin.zoo.quantized.build import FAMILIES, PRECISIONS, curated_networks
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


def rows(builders: Mapping[str, ModelBuilder]) -> Iterator[tuple[str, ...]]:
    """One row per model: name, data set, precision, clean accuracy (%), parameters (millions), weights (kB).

    This package's models come first, in the order of their cards.
    """
    for name in sorted(builders, key=[*cards(), *sorted(builders)].index):
        card = cards().get(name)
        if card is None:
            yield name, builders[name].dataset, "?", "", "", "another package's"
        else:
            yield name, card.dataset, card.precisions, _clean(card), _parameters(card), _size(card)


def named_rows() -> Iterator[tuple[str, ...]]:
    """The same for the predefined quantized networks, which have no weights.

    Example:
        >>> next(named_rows())
        ('dorefa-w1a2-resnet18', 'cifar10, cifar100, imagenet', 'w1a2', '', '', 'none')
    """
    for name, family in curated_networks().items():
        yield name, ", ".join(builder.dataset for builder in family), name.split("-")[1], "", "", "none"


def named_summary() -> str:
    """One line in place of all of :func:`named_rows`."""
    precisions = ", ".join(str(precision) for precision in PRECISIONS)
    names = f"dorefa-<precision>-<architecture>, {precisions} x {len(FAMILIES)} architectures"
    return f"and {len(curated_networks())} networks without weights, for custom_checkpoint= ({names}): empir list --all"


def _clean(card: ModelCard) -> str:
    return "" if card.clean_accuracy is None else f"{card.clean_accuracy:.2f}"


def _parameters(card: ModelCard) -> str:
    return f"{sum(count_parameters(network, card.num_classes) for network in card.networks) / 1e6:,.3f}"


def _size(card: ModelCard) -> str:
    if not card.has_weights:
        return "none"
    folder = files("empir_plugin.zoo").joinpath("weights")
    return f"{sum(len(folder.joinpath(network.weights).read_bytes()) for network in card.networks) / 1000:,.0f}"
