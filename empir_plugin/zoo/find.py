"""Find a model by a text: its name, what it is made of, or the models an ensemble is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import Protocol

from torch import nn

from empir_plugin._entry_points import find
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.zoo.card import RULES, cards
from empir_plugin.zoo.definition import CLASSES, NetworkDefinition, NetworkReport
from empir_plugin.zoo.quantized.build import normalize_images_
from empir_plugin.zoo.registry import find_builder, load_model
from empir_plugin.zoo.show import dataset_of, default_threat
from empir_plugin.zoo.spec import DefinedModel, ModelOptions, find_unnamed


class ModelSource(Protocol):
    """A model before it is loaded."""

    @property
    def name(self) -> str:
        """Its name in records."""
        ...

    @property
    def dataset(self) -> str:
        """The data set it classifies."""
        ...

    @property
    def threat_text(self) -> str:
        """Its own default threat, as text; empty if it has none."""
        ...

    def load(self, threat_model: str = "") -> nn.Module:
        """The model with its weights, in evaluation mode.

        Args:
            threat_model: As RobustBench writes it, for a name that stands for several models; by default the first.

        Raises:
            InputError: If it cannot be built.
            WeightsError: If weights are missing, damaged or made for another model.
        """
        ...


@dataclass(frozen=True)
class NamedModel:
    """A model of this package, of a package that extends it, or of RobustBench.

    Args:
        name: Its id.
        options: Checkpoint and data set.
    """

    name: str
    options: ModelOptions = field(default_factory=ModelOptions)

    @property
    def dataset(self) -> str:
        """The data set in the options, else its own."""
        return self.options.dataset or dataset_of(self.name)

    @property
    def threat_text(self) -> str:
        """The threat on its card, or that of the leaderboard of its data set."""
        return default_threat(self.name, self.dataset)

    def load(self, threat_model: str = "") -> nn.Module:
        """The model with its weights."""
        builder, options = find_builder(self.name, self.dataset), self.options
        if builder is not None:
            options.refuse(f"the model {self.name}, which is complete,", "settings", "mean", "rule")
        model = load_model(
            self.name,
            dataset=self.dataset,
            threat_model=threat_model or (builder.threats[0] if builder else "Linf"),
            custom_checkpoint=options.checkpoint or "",
            ema=options.ema,
        )
        if options.mean is not None:
            normalize_images_(model, options.mean, options.std or (1.0,) * len(options.mean))
        return model


@dataclass(frozen=True)
class CombinedModel:
    """An ensemble of models that are named one by one.

    Args:
        members: The members, in order.
        rule: How they decide together: a key of :data:`empir_plugin.zoo.card.RULES`.

    Raises:
        InputError: If there is no member, or they classify different data sets.
    """

    members: tuple[ModelSource, ...]
    rule: str = "max_vote"

    def __post_init__(self) -> None:
        datasets = {member.dataset for member in self.members}
        if len(datasets) != 1:
            named = ", ".join(f"{member.name} {member.dataset}" for member in self.members)
            raise InputError(f"members must classify the same data set, got {named or 'none'}: replace one")
        if self.rule not in RULES:
            raise InputError(f"the rule must be one of {', '.join(RULES)}, got {self.rule!r}")

    @property
    def name(self) -> str:
        """The members' names, with the rule."""
        return f"{' + '.join(member.name for member in self.members)} ({self.rule})"

    @property
    def dataset(self) -> str:
        """The members' data set."""
        return self.members[0].dataset

    @property
    def threat_text(self) -> str:
        """The first threat a member has."""
        return next((member.threat_text for member in self.members if member.threat_text), "")

    def load(self, threat_model: str = "") -> nn.Module:
        """The ensemble with its weights; a member that was trained for another norm is loaded nevertheless."""
        models = [member.load() for member in self.members]
        ensemble = Ensemble(models, RULES[self.rule]).eval()
        loaded = all(getattr(model, "weights_loaded", True) for model in models)
        setattr(ensemble, "weights_loaded", loaded)  # noqa: B010 - a module attribute unknown to nn.Module's type
        return ensemble


def find_model(text: str, options: ModelOptions | None = None) -> ModelSource:
    """The model a text names; the commands, ``--rb-model`` and :func:`~empir_plugin.load_model` read names this way.

    Args:
        text: A name that ``empir list`` shows or RobustBench knows; ``package.module:callable``; an architecture of
            timm or RobustBench, with a checkpoint; or a path of what ``empir train`` or ``empir quantize`` wrote.
        options: What else is said about the model.

    Raises:
        InputError: If an option means nothing for this kind of model.
        WeightsError: If a report is missing or damaged.

    Example:
        >>> from pathlib import Path
        >>> source = find_model("empir-mnist")
        >>> source.dataset, source.threat_text
        ('mnist', 'Linf:0.3')
        >>> find_model("ResNet-18", ModelOptions(checkpoint=Path("full.pth"))).name
        'ResNet-18 (full)'
    """
    options = options or ModelOptions()
    if find_builder(text) is None and (found := find_unnamed(text, options)) is not None:
        return found
    if options.rule:
        raise InputError(f"the rule of {text} is fixed: a rule is for a trained ensemble, or for members")
    return NamedModel(text, options)


def find_ensemble(members: Sequence[str], rule: str = "", options: ModelOptions | None = None) -> CombinedModel:
    """An ensemble of models that are named one by one.

    Args:
        members: A text for :func:`find_model` for each.
        rule: How they decide together; the vote by default.
        options: Said about every member; a checkpoint is not.

    Raises:
        InputError: If they classify different data sets, or a checkpoint is given.

    Example:
        >>> find_ensemble(["cifarconv-fp", "cifarconv-w2a2"], "mean_probability").name
        'cifarconv-fp + cifarconv-w2a2 (mean_probability)'
    """
    options = replace(options or ModelOptions(), rule="")
    options.refuse("an ensemble of members", "checkpoint")
    return CombinedModel(tuple(find_model(member, options) for member in members), rule or "max_vote")


def find_full_precision(text: str, options: ModelOptions | None = None) -> DefinedModel:
    """The network in full precision that a text names, to quantize it.

    Args:
        text: As for :func:`find_model`. A named model of this package and a report have weights of their own; all
            others need a checkpoint.
        options: What else is said about the network.

    Raises:
        InputError: If there is no checkpoint, or the model is quantized already or an ensemble.
        WeightsError: If a report is missing or damaged.

    Example:
        >>> source = find_full_precision("cifarconv-fp")
        >>> source.definition.architecture, source.checkpoint.name
        ('cifarconv', 'cifarconv-fp.safetensors')
    """
    options = options or ModelOptions()
    source = _defined(text, options)
    if not source.definition.precision.is_full:
        raise InputError(f"{text} is quantized already ({source.definition.precision}): start from full precision")
    _ = source.weights  # raises if there are none
    return source


def _defined(text: str, options: ModelOptions) -> DefinedModel:
    if (card := find(cards(), text)) is not None:
        if len(card.networks) != 1:
            raise InputError(f"{text} is an ensemble: name one of its networks, such as {card.networks[0].name}")
        options.refuse(f"the model {text}, which is complete,", "settings", "mean", "rule")
        own = card.networks[0]
        definition = NetworkDefinition(own.architecture, card.dataset, card.num_classes, precision=own.precision)
        weights = Path(str(files("empir_plugin.zoo") / "weights" / own.weights)) if own.weights else None
        return DefinedModel(definition, options.checkpoint or weights, options.ema)
    if find_builder(text) is not None:
        raise InputError(f"{text} is built by another package or quantized already: name its architecture")
    found = find_unnamed(text, options)
    if isinstance(found, DefinedModel):
        return found
    if found is None:
        dataset = options.dataset or dataset_of(text)
        definition = NetworkDefinition(text, dataset, CLASSES[dataset], settings=options.settings)
        return DefinedModel(replace(definition, mean=options.mean, std=options.std), options.checkpoint, options.ema)
    if not isinstance(found.report, NetworkReport):
        raise InputError(f"{text} is an ensemble: pass the report of one of its members")
    return DefinedModel(found.report.definition, found.report.weights)


def threat_of(source: ModelSource) -> Threat:
    """The default threat of a model: its own, or that of the leaderboard of its data set.

    Example:
        >>> str(threat_of(find_model("torchvision.models:resnet18")))
        'Linf:8/255'
    """
    return Threat.parse(source.threat_text or default_threat("", source.dataset))
