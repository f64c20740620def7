"""Model cards: architecture, weights and measured accuracy of each named model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from empir_plugin._files import tables
from empir_plugin._files.names import check_name
from empir_plugin._files.tables import build, check_keys, tables_of
from empir_plugin.errors import InputError
from empir_plugin.models.activations import Activations
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert.select import INNER, Layers
from empir_plugin.models.ensemble import MaxVote, MeanLogits, MeanProbability, Rule
from empir_plugin.models.quantize import Precision, Scale

RULES: Mapping[str, Rule] = MappingProxyType(
    {"max_vote": MaxVote(), "mean_probability": MeanProbability(), "mean_logits": MeanLogits()}
)
"""Decision rules by the name cards use."""


@dataclass(frozen=True)
class NetworkCard:
    """One network of a model.

    Args:
        name: Model id.
        architecture: Key of :data:`empir_plugin.models.architectures.ARCHITECTURES`, or a name for
            :func:`~empir_plugin.zoo.quantized.architectures.network`, which is then converted.
        precision: Bits of its quantized layers.
        scale: Scale of its quantized weights.
        activations: Range of the inputs of a converted network's layers. Weight files say which inputs are signed; only
            the card says whether a range is learned.
        layers: Which layers of a converted network are quantized, see
            :func:`~empir_plugin.models.convert.quantize_.quantize_`.
        weights: File in the package's ``zoo/weights``; empty if none is shipped.
        sha256: Of that file.
        parameters: Number of parameters, which lists show without building the network.

    Raises:
        InputError: If a name is not plain, or an architecture that is not converted has settings of a conversion.
    """

    name: str
    architecture: str
    precision: Precision
    scale: Scale = "none"
    activations: Activations = Activations.UNSIGNED
    layers: Layers | str = INNER
    weights: str = ""
    sha256: str = ""
    parameters: int = 0

    def __post_init__(self) -> None:
        check_name("a network", self.name)
        if self.weights:
            check_name("a weight file", self.weights)
        if not self.is_converted and (self.activations, self.layers) != (Activations.UNSIGNED, INNER):
            raise InputError(
                f"{self.name} is not converted, but defined with quantized layers: leave out activations and layers"
            )

    @property
    def is_converted(self) -> bool:
        """Whether the network is built in full precision and then converted."""
        return self.architecture not in ARCHITECTURES


@dataclass(frozen=True)
class ModelCard:
    """A named model: one network, or an ensemble of several.

    Args:
        name: Model id, as ``load_model`` takes it.
        summary: Description in one line.
        dataset: The data set it classifies.
        threats: RobustBench's threat models it is registered for.
        threat: Default threat of ``empir evaluate``, as text.
        networks: The members in order; a single one if the model is not an ensemble.
        rule: How members decide together: a key of :data:`RULES`.
        num_classes: K.
        record: Run record in ``leaderboard/runs`` with the clean accuracy; empty if there is none.
        clean_accuracy: In percent, on the full official test set; None if not measured.
        help: How to get weights, for a model that ships none.
    """

    name: str
    summary: str
    dataset: str
    threats: tuple[str, ...]
    threat: str
    networks: tuple[NetworkCard, ...]
    rule: str = "max_vote"
    num_classes: int = 10
    record: str = ""
    clean_accuracy: float | None = None
    help: str = ""

    def __post_init__(self) -> None:
        check_name("a model", self.name)
        if self.rule not in RULES:
            raise InputError(f"rule of {self.name} must be one of {', '.join(RULES)}, got {self.rule!r}")

    @property
    def has_weights(self) -> bool:
        """Whether the package ships weights of every member."""
        return all(network.weights for network in self.networks)

    @property
    def precisions(self) -> str:
        """The members' precisions, such as ``"w4a2 + w2a2 + fp"``."""
        return " + ".join(str(network.precision) for network in self.networks)


@cache
def cards() -> Mapping[str, ModelCard]:
    """All cards of this package by model id, in the order of their files.

    Example:
        >>> cards()["empir-cifar"].precisions
        'w4a2 + w2a2 + fp'
    """
    folder = files("empir_plugin.zoo").joinpath("cards")
    texts = (file.read_text(encoding="utf-8") for file in sorted(folder.iterdir(), key=lambda file: file.name))
    parsed = [tables.loads(text) for text in texts]
    found = [card for table in parsed for card in family_cards(table)]
    return MappingProxyType({card.name: card for card in found})


def family_cards(table: Mapping[str, Any]) -> list[ModelCard]:
    """The cards of one file, which describes one family: its networks, and ensembles of them.

    Raises:
        InputError: If a value is invalid.
    """
    check_keys(table, required={"architecture", "networks"}, known=table, where="a family of cards")
    architecture = table["architecture"]
    shared = {key: value for key, value in table.items() if key not in ("architecture", "networks", "ensembles")}
    networks: dict[str, NetworkCard] = {}
    singles: list[ModelCard] = []
    for row in tables_of(table["networks"], "[[networks]]"):
        where = f"network {row.get('name', '?')!r}"
        own = {key: value for key, value in row.items() if key in _NETWORK_KEYS}
        network = build(NetworkCard, {**own, "architecture": architecture}, where)
        settings = {**shared, **{key: value for key, value in row.items() if key not in _NETWORK_KEYS}}
        singles.append(build(ModelCard, settings, where, name=network.name, networks=(network,)))
        networks[network.name] = network
    ensembles = tables_of(table.get("ensembles", []), "[[ensembles]]")
    return [_ensemble({**shared, **row}, networks) for row in ensembles] + singles


_NETWORK_KEYS = frozenset(item.name for item in fields(NetworkCard)) - {"architecture"}


def _ensemble(table: Mapping[str, Any], networks: Mapping[str, NetworkCard]) -> ModelCard:
    where = f"ensemble {table.get('name', '?')!r}"
    settings = dict(table)
    names = settings.pop("networks", [])
    if not isinstance(names, list) or not all(name in networks for name in names):
        raise InputError(f"networks of {where} must be a list of names among {', '.join(networks)}, got {names!r}")
    return build(ModelCard, settings, where, networks=tuple(networks[name] for name in names))
