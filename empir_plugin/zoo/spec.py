"""Models that are named by what they are made of: an architecture and a checkpoint, a callable, or a report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.models.weight_files import holds_codes
from empir_plugin.zoo.card import RULES
from empir_plugin.zoo.checkpoints import load_checkpoint
from empir_plugin.zoo.definition import CLASSES, EnsembleReport, NetworkDefinition, NetworkReport, read_report
from empir_plugin.zoo.quantized.architectures import is_architecture, is_reference
from empir_plugin.zoo.quantized.build import Channels


@dataclass(frozen=True)
class ModelOptions:
    """What a caller says about a model besides the text that names it.

    Args:
        checkpoint: Weights to use instead of the model's own.
        ema: Whether to load the moving average in them; None if they hold only one of the two.
        dataset: The data set it classifies; empty for its own, or CIFAR-10 if it has none.
        settings: Keywords of an architecture or callable.
        mean: Mean of each channel of images in [0, 1], for a network that does not normalise them itself.
        std: Standard deviation of each channel.
        rule: How the members of a trained ensemble decide: a key of :data:`empir_plugin.zoo.card.RULES`; empty for the
            rule in its report.

    Raises:
        InputError: If options contradict each other.

    Example:
        >>> ModelOptions(ema=True)
        Traceback (most recent call last):
        empir_plugin.errors.InputError: --ema and --no-ema choose among the weights in a file: pass --checkpoint, too
    """

    checkpoint: Path | None = None
    ema: bool | None = None
    dataset: str = ""
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    mean: Channels | None = None
    std: Channels | None = None
    rule: str = ""

    def __post_init__(self) -> None:
        if self.ema is not None and self.checkpoint is None:
            raise InputError("--ema and --no-ema choose among the weights in a file: pass --checkpoint, too")
        if self.std is not None and (self.mean is None or len(self.mean) != len(self.std)):
            raise InputError(f"a normalisation has a mean and a std for each channel, got {self.mean} and {self.std}")
        if self.rule and self.rule not in RULES:
            raise InputError(f"the rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    def refuse(self, what: str, *names: str) -> None:
        """Refuse options that mean nothing for a kind of model.

        Raises:
            InputError: If one of these was given.
        """
        unset = ModelOptions()
        flags = {"settings": "--model-args", "mean": "--mean"}
        given = [flags.get(name, f"--{name}") for name in names if getattr(self, name) != getattr(unset, name)]
        if given:
            raise InputError(f"{what} takes no {', '.join(given)}: leave that out")


@dataclass(frozen=True)
class DefinedModel:
    """An architecture or a callable, with the weights of a checkpoint or those that the callable loads.

    Args:
        definition: How the network is built, in full precision.
        checkpoint: Its weights.
        ema: Whether to load the moving average in them.
    """

    definition: NetworkDefinition
    checkpoint: Path | None = None
    ema: bool | None = None

    @property
    def name(self) -> str:
        """Architecture, and name of the file of its weights."""
        text = self.definition.architecture.rpartition(":")[2]
        return text if self.checkpoint is None else f"{text} ({self.checkpoint.stem})"

    @property
    def dataset(self) -> str:
        """The data set it classifies."""
        return self.definition.dataset

    @property
    def weights(self) -> Path:
        """The file of its weights.

        Raises:
            InputError: If there is none.
        """
        if self.checkpoint is None:
            raise InputError(f"{self.definition.architecture} comes without weights: pass --checkpoint")
        return self.checkpoint

    @property
    def threat_text(self) -> str:
        """Empty, as it has no threat of its own."""
        return ""

    def load(self, threat_model: str = "") -> nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            InputError: If it cannot be built, or has no weights.
            WeightsError: If the checkpoint is missing, damaged or made for another network.
        """
        if self.checkpoint is not None and holds_codes(self.checkpoint):
            return self._load_packed(self.checkpoint)
        architecture = self.definition.architecture
        if (
            self.checkpoint is None
            and not is_reference(architecture)
            and not self.definition.settings.get("pretrained")
        ):
            raise InputError(
                f"{architecture} is an architecture, and results with random weights mean nothing: pass --checkpoint"
            )
        model = self.definition.full_precision()
        if self.checkpoint is not None:
            load_checkpoint(model, self.checkpoint, ema=self.ema)
        return model.eval()

    def _load_packed(self, path: Path) -> nn.Module:
        """The network of packed weights, which the report beside them describes."""
        report = read_report(path)
        if not isinstance(report, NetworkReport):
            raise InputError(f"{path} holds a whole ensemble, got one architecture: pass the file alone")
        return report.load(self.definition.architecture)


@dataclass(frozen=True)
class WrittenModel:
    """A network or an ensemble that ``empir train`` or ``empir quantize`` wrote.

    Args:
        report: Its report.
        rule: How the members of an ensemble decide; empty for the rule in the report.
    """

    report: NetworkReport | EnsembleReport
    rule: str = ""

    @property
    def name(self) -> str:
        """Name of the report, with the rule of an ensemble."""
        stem = self.report.path.stem
        return stem if isinstance(self.report, NetworkReport) else f"{stem} ({self.rule or self.report.rule})"

    @property
    def dataset(self) -> str:
        """The data set it classifies."""
        report = self.report
        return report.definition.dataset if isinstance(report, NetworkReport) else report.dataset

    @property
    def threat_text(self) -> str:
        """The threat an ensemble was selected under; empty if there was none."""
        return "" if isinstance(self.report, NetworkReport) else self.report.threat

    def load(self, threat_model: str = "") -> nn.Module:
        """The network with its weights, in evaluation mode.

        Raises:
            InputError: If its report names code to run.
            WeightsError: If its weights are missing, damaged, or those of another network.
        """
        if isinstance(self.report, EnsembleReport):
            return self.report.load(self.rule)
        return self.report.load()


def find_unnamed(text: str, options: ModelOptions) -> DefinedModel | WrittenModel | None:
    """The model a text describes; None if it is no callable, no path and no architecture.

    Args:
        text: ``package.module:callable``; a path of a report, of the weights beside it or of the folder of both; or an
            architecture for :func:`~empir_plugin.zoo.quantized.architectures.network`, which needs a checkpoint.
        options: What else is said about the model.

    Raises:
        InputError: If an option means nothing for this kind of model.
        WeightsError: If a report is missing or damaged.

    Example:
        >>> find_unnamed("torchvision.models:resnet18", ModelOptions()).name
        'resnet18'
        >>> find_unnamed("empir-cifar", ModelOptions()) is None
        True
    """
    if is_reference(text) or is_architecture(text):
        options.refuse(f"the single network {text}", "rule")
        dataset = options.dataset or "cifar10"
        if dataset not in CLASSES:
            raise InputError(f"the data set must be one of {', '.join(CLASSES)}, got {dataset!r}")
        definition = NetworkDefinition(text, dataset, CLASSES[dataset], settings=options.settings)
        definition = replace(definition, mean=options.mean, std=options.std)
        return DefinedModel(definition, options.checkpoint, options.ema)
    if _is_path(text):
        found = WrittenModel(read_report(Path(text)), options.rule)
        options.refuse(f"{text}, which its report describes,", "checkpoint", "settings", "mean")
        if isinstance(found.report, NetworkReport):
            options.refuse(f"the single network {text}", "rule")
        if options.dataset not in ("", found.dataset):
            raise InputError(f"{text} is a model for {found.dataset}, got {options.dataset}: leave the data set out")
        return found
    return None


def _is_path(text: str) -> bool:
    path = Path(text)
    return path.suffix in (".json", ".safetensors") or path.is_dir() or len(path.parts) > 1
