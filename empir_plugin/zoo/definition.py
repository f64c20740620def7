"""How a network without a name is built: what the report beside its weights says, and how such files are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import nn

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.activations import Activations
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.packing import load_packed
from empir_plugin.models.quantize import Precision, Scale
from empir_plugin.zoo.card import RULES
from empir_plugin.zoo.quantized.architectures import is_reference, network
from empir_plugin.zoo.quantized.build import Channels, normalize_images_, settings_for

REPORT = JsonKind("a training report", WeightsError)
"""The report beside weights that ``empir train`` and ``empir quantize`` wrote."""

CLASSES: Mapping[str, int] = MappingProxyType({"mnist": 10, "cifar10": 10, "cifar100": 100, "imagenet": 1000})
"""Number of classes of each data set."""


@dataclass(frozen=True)
class NetworkDefinition:
    """How to build a network, apart from its weights.

    Args:
        architecture: A key of :data:`empir_plugin.models.architectures.ARCHITECTURES`, or a name or ``module:callable``
            for :func:`~empir_plugin.zoo.quantized.architectures.network`.
        dataset: The data set it classifies.
        num_classes: K.
        image_shape: ``(C, H, W)``; needed to build a quantized network.
        settings: Keywords of the architecture: values that JSON can hold.
        mean: Mean of each channel of images in [0, 1], for their normalisation; None for none.
        std: Standard deviation of each channel.
        precision: Bits of its quantized layers.
        scale: Scale of their weights.
        activations: Range of their inputs.
        layers: Names of the quantized layers.

    Example:
        >>> definition = NetworkDefinition("cifarconv", precision=Precision(2, 2), scale="none")
        >>> type(definition.build()).__name__
        'CIFARConv'
    """

    architecture: str
    dataset: str = "cifar10"
    num_classes: int = 10
    image_shape: tuple[int, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    mean: Channels | None = None
    std: Channels | None = None
    precision: Precision = field(default_factory=Precision)
    scale: Scale = "max"
    activations: Activations = Activations.AUTO
    layers: tuple[str, ...] = ()

    def full_precision(self) -> nn.Module:
        """The network in full precision, with random weights.

        Raises:
            InputError: If there is no such architecture, or it does not take the settings.
        """
        return self._with_precision(Precision())

    def build(self) -> nn.Module:
        """The network at its precision, with random weights, in evaluation mode.

        Raises:
            InputError: If there is no such architecture, or it cannot be quantized so.
        """
        if self.architecture in ARCHITECTURES:
            return self._with_precision(self.precision).eval()
        model = self.full_precision()
        if not self.precision.is_full:
            # Signs, ranges and statistics found on noise are replaced by those in the file of the weights.
            noise = torch.rand(2, *self.image_shape, generator=torch.Generator().manual_seed(0))
            how = {"scale": self.scale, "activations": self.activations, "layers": self.layers}
            quantize_(model, self.precision, calibration=noise, **how)
        return model.eval()

    def _with_precision(self, precision: Precision) -> nn.Module:
        if self.architecture in ARCHITECTURES:
            scale = {} if precision.is_full else {"scale": self.scale}
            model = ARCHITECTURES[self.architecture](precision, num_classes=self.num_classes, **scale, **self.settings)
        else:
            settings = {**settings_for(self.architecture, self.dataset), **self.settings}
            model = network(self.architecture, num_classes=self.num_classes, **settings)
        if self.mean is not None:
            normalize_images_(model, self.mean, self.std or (1.0,) * len(self.mean))
        return model

    def to_table(self) -> dict[str, Any]:
        """The definition as a mapping that JSON can hold."""
        return {
            "architecture": self.architecture,
            "dataset": self.dataset,
            "num_classes": self.num_classes,
            "image_shape": list(self.image_shape),
            "settings": dict(self.settings),
            "mean": None if self.mean is None else list(self.mean),
            "std": None if self.std is None else list(self.std),
            "precision": str(self.precision),
            "scale": self.scale,
            "activations": self.activations.value,
            "layers": list(self.layers),
        }

    @classmethod
    def parse(cls, table: Mapping[str, Any]) -> NetworkDefinition:
        """The definition in a table of :meth:`to_table`.

        Raises:
            InputError: If a value is not what it must be.
            KeyError: If one is missing.

        Example:
            >>> definition = NetworkDefinition("resnet26", mean=(0.5,), layers=("layer1.0.conv1",))
            >>> NetworkDefinition.parse(definition.to_table()) == definition
            True
        """
        if table["scale"] not in get_args(Scale):
            raise InputError(f"scale must be one of {', '.join(get_args(Scale))}, got {table['scale']!r}")
        return cls(
            architecture=str(table["architecture"]),
            dataset=str(table["dataset"]),
            num_classes=int(table["num_classes"]),
            image_shape=tuple(int(size) for size in table["image_shape"]),
            settings=MappingProxyType(dict(table["settings"])),
            mean=_channels(table["mean"]),
            std=_channels(table["std"]),
            precision=Precision.parse(table["precision"]),
            scale=table["scale"],
            activations=Activations.parse(table["activations"]),
            layers=tuple(str(name) for name in table["layers"]),
        )


def _channels(values: Any) -> Channels | None:
    return None if values is None else tuple(float(value) for value in values)


@dataclass(frozen=True)
class NetworkReport:
    """What the report of one network says: how it is built, and which file holds its weights.

    Args:
        path: The report.
        definition: How the network is built.
        sha256: SHA-256 of the file of its weights.
    """

    path: Path
    definition: NetworkDefinition
    sha256: str

    @property
    def weights(self) -> Path:
        """The packed weights, beside the report."""
        return self.path.with_suffix(".safetensors")

    def load(self, architecture: str = "") -> nn.Module:
        """The network with its weights, in evaluation mode.

        Args:
            architecture: The architecture if the caller named it.

        Raises:
            InputError: If the report names code to run and the caller did not, or another architecture than the caller.
            WeightsError: If the weights are missing, damaged, or those of another network.
        """
        own = self.definition.architecture
        if architecture and architecture != own:
            raise InputError(f"{self.path} describes {own}, got {architecture}: pass the file alone, or its own name")
        if is_reference(own) and not architecture:
            raise InputError(
                f"{self.path} builds its network by running {own}, which only you can ask for: "
                f"name it, {own} --checkpoint {self.weights}"
            )
        model = self.definition.build()
        load_packed(model, self.weights, expected_sha256=self.sha256)
        return model


@dataclass(frozen=True)
class EnsembleReport:
    """What the report of a trained ensemble says.

    Args:
        path: The report.
        members: The reports of its members, in order.
        rule: How they decide together: a key of :data:`empir_plugin.zoo.card.RULES`.
        dataset: The data set it classifies.
        threat: Threat it was selected under, as text; empty if there was none.
    """

    path: Path
    members: tuple[NetworkReport, ...]
    rule: str
    dataset: str
    threat: str = ""

    def load(self, rule: str = "") -> Ensemble:
        """The ensemble with its weights, in evaluation mode.

        Args:
            rule: How its members decide, if not by the rule of the report.

        Raises:
            InputError: See :meth:`NetworkReport.load`.
            WeightsError: See :meth:`NetworkReport.load`.
        """
        return Ensemble([member.load() for member in self.members], RULES[rule or self.rule]).eval()


def network_table(definition: NetworkDefinition) -> dict[str, Any]:
    """The part of a report that :func:`read_report` builds a network from."""
    return {"network": definition.to_table()}


def ensemble_table(members: list[str], rule: str, dataset: str, threat: str) -> dict[str, Any]:
    """The report of an ensemble, for :func:`read_report`.

    Args:
        members: Names of its members; their reports lie beside it.
        rule: See :class:`EnsembleReport`.
        dataset: See :class:`EnsembleReport`.
        threat: See :class:`EnsembleReport`.
    """
    return {"ensemble": {"members": members, "rule": rule, "dataset": dataset, "threat": threat}}


def read_report(path: Path) -> NetworkReport | EnsembleReport:
    """The report of a network or an ensemble that ``empir train`` or ``empir quantize`` wrote.

    Args:
        path: The report, the file of weights beside it, or the folder of both if it holds one network or ensemble.

    Raises:
        WeightsError: If there is none, it is damaged, or it does not say how the network is built.
    """
    if path.is_dir():
        return _report_in_folder(path)
    report = path.with_suffix(".json")
    if not report.is_file():
        cure = f"name its architecture, ARCH --checkpoint {path}" if path.is_file() else "check the path"
        raise WeightsError(f"no report {report}, which says how the network is built: {cure}")
    found = REPORT.read(report, lambda table: _parse(table, report))
    if found is None:
        raise WeightsError(
            f"{report} does not say how a network is built: pass the report that empir train or empir quantize wrote, "
            "or ARCH --checkpoint FILE"
        )
    return found


def _report_in_folder(folder: Path) -> NetworkReport | EnsembleReport:
    tables = {path: REPORT.read(path, dict) for path in sorted(folder.glob("*.json"))}
    ensembles = [path for path, table in tables.items() if "ensemble" in table]
    candidates = ensembles or [path for path, table in tables.items() if "network" in table]
    if len(candidates) != 1:
        names = ", ".join(path.name for path in candidates) or "none"
        raise WeightsError(
            f"{folder} must hold the report of one network or ensemble, got {names}: pass the path of the report"
        )
    return read_report(candidates[0])


def _parse(table: Mapping[str, Any], path: Path) -> NetworkReport | EnsembleReport | None:
    if "network" in table:
        return _parse_network(table, path)
    if "ensemble" not in table:
        return None
    about = table["ensemble"]
    if about["rule"] not in RULES:
        raise InputError(f"rule must be one of {', '.join(RULES)}, got {about['rule']!r}")
    reports = [path.with_name(f"{Path(str(name)).name}.json") for name in about["members"]]
    members = tuple(REPORT.read(each, partial(_parse_network, path=each)) for each in reports)
    return EnsembleReport(path, members, about["rule"], str(about["dataset"]), str(about["threat"]))


def _parse_network(table: Mapping[str, Any], path: Path) -> NetworkReport:
    return NetworkReport(path, NetworkDefinition.parse(table["network"]), str(table["sha256"]))
