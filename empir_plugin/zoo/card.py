"""Model cards: what a named model is, where its weights are, and what it is known to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from empir_plugin import _toml
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import MaxVote, MeanProbability, Rule
from empir_plugin.models.precision import Precision
from empir_plugin.models.quantize import Scale

RULES: Mapping[str, Rule] = MappingProxyType({"max_vote": MaxVote(), "mean_probability": MeanProbability()})
"""Decision rules by the name cards use."""


@dataclass(frozen=True)
class NetworkCard:
    """One network.

    Args:
        name: Model id.
        architecture: Key of :data:`empir_plugin.models.architectures.ARCHITECTURES`.
        precision: Bits of its quantized layers.
        scale: Scale of its quantized weights.
        weights: File in the package's ``zoo/weights``; empty if none is shipped.
        sha256: Of that file.
    """

    name: str
    architecture: str
    precision: Precision
    scale: Scale = "none"
    weights: str = ""
    sha256: str = ""


@dataclass(frozen=True)
class ModelCard:
    """A model that has a name: one network, or an ensemble of several.

    Args:
        name: Model id, as ``load_model`` takes it.
        summary: What it is, in a line.
        dataset: The data set it classifies.
        threats: RobustBench's threat models it is registered for.
        threat: What ``empir evaluate`` uses unless told otherwise, as text.
        networks: The members in order; one for a model that is no ensemble.
        rule: How members decide together: a key of :data:`RULES`.
        num_classes: K.
        record: Run record in ``leaderboard/runs`` that ``clean_accuracy`` comes from; empty if there is none.
        clean_accuracy: Percent of the full official test set; None if never measured.
        help: What to do to get weights, for a model that ships none.
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
        if self.rule not in RULES:
            raise InputError(f"rule of {self.name} must be one of {', '.join(RULES)}, got {self.rule!r}")

    @property
    def has_weights(self) -> bool:
        """Whether weights of every member travel with the package."""
        return all(network.weights for network in self.networks)

    @property
    def precisions(self) -> str:
        """The members' precisions, such as ``"w4a2 + w2a2 + fp"``."""
        return " + ".join(str(network.precision) for network in self.networks)


@cache
def cards() -> Mapping[str, ModelCard]:
    """All cards of this package by model id, in order of their files.

    Example:
        >>> cards()["empir-cifar"].precisions
        'w4a2 + w2a2 + fp'
    """
    folder = files("empir_plugin.zoo").joinpath("cards")
    texts = (file.read_text(encoding="utf-8") for file in sorted(folder.iterdir(), key=lambda file: file.name))
    tables = [_toml.loads(text) for text in texts]
    found = [card for table in tables for card in _cards(table)]
    return MappingProxyType({card.name: card for card in found})


def _cards(table: Mapping[str, Any]) -> list[ModelCard]:
    """One file describes one family: its networks, and the ensembles of them."""
    family = {key: value for key, value in table.items() if key not in ("networks", "ensembles")}
    family["threats"] = tuple(family["threats"])
    architecture = family.pop("architecture")
    networks: dict[str, NetworkCard] = {}
    singles: list[ModelCard] = []
    for row in table["networks"]:
        own = {key: row.pop(key) for key in ("name", "precision", "scale", "weights", "sha256") if key in row}
        network = NetworkCard(architecture=architecture, **{**own, "precision": Precision.parse(own["precision"])})
        networks[network.name] = network
        singles.append(ModelCard(name=network.name, networks=(network,), **{**family, **row}))
    ensembles = [
        ModelCard(**{**family, **row, "networks": tuple(networks[name] for name in row["networks"])})
        for row in table["ensembles"]
    ]
    return ensembles + singles
