"""The model that ``empir evaluate`` attacks: a model by its name, or the networks that a recipe trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from empir_cli.group import CommandError

if TYPE_CHECKING:
    from torch import nn

    from empir_plugin.attacks.threat import Threat
    from empir_plugin.data.image_set import ImageSet
    from empir_plugin.training.recipe import Recipe

TRAINED = click.option(
    "--trained", type=click.Path(path_type=Path), help="Evaluate the recipe MODEL with the weights in this folder."
)
RULE_NAMES = ("max_vote", "mean_probability", "mean_logits")
"""How the members of an ensemble may decide: the keys of :data:`empir_plugin.zoo.card.RULES`."""
RULE = click.option("--rule", type=click.Choice(RULE_NAMES), help="With --trained: how the members decide.  [max_vote]")
MEMBER = click.option("--member", help="With --trained: evaluate only this member.")


class EvaluatedModel(Protocol):
    """A model to evaluate, as the command line names it."""

    @property
    def name(self) -> str:
        """Its name in the run record."""
        ...

    @property
    def dataset(self) -> str:
        """The data set it classifies."""
        ...

    def threat(self) -> Threat:
        """The threat it is evaluated under by default."""
        ...

    def load(self, norm: str, images: ImageSet) -> nn.Module:
        """The network, in evaluation mode.

        Args:
            norm: Of the threat, as RobustBench writes it.
            images: Some images of the data set.
        """
        ...


@dataclass(frozen=True)
class NamedModel:
    """A model of this plugin, or of a package that extends it.

    Args:
        name: Of the model.
        checkpoint: Weights to use instead of its own.
        ema: Whether to load the moving average in them; None if they hold only one of the two.
    """

    name: str
    checkpoint: Path | None = None
    ema: bool | None = None

    @property
    def dataset(self) -> str:
        """The data set on its card."""
        from empir_plugin.zoo.show import dataset_of

        return dataset_of(self.name)

    def threat(self) -> Threat:
        """The threat on its card."""
        from empir_plugin.attacks.threat import Threat
        from empir_plugin.zoo.show import default_threat

        return Threat.parse(default_threat(self.name))

    def load(self, norm: str, images: ImageSet) -> nn.Module:
        """The network with its weights; the images are not used."""
        from empir_plugin.evaluation.prepare import require_weights
        from empir_plugin.zoo.registry import load_model

        checkpoint = self.checkpoint or ""
        network = load_model(
            self.name, dataset=self.dataset, threat_model=norm, custom_checkpoint=checkpoint, ema=self.ema
        )
        require_weights(network, self.name)
        return network


@dataclass(frozen=True)
class TrainedRecipe:
    """The ensemble that a recipe trained, or one of its members.

    Args:
        recipe: The recipe.
        folder: Of its weights.
        rule: How its members decide.
        member: Name of the one member to evaluate; None for the whole ensemble.
    """

    recipe: Recipe
    folder: Path
    rule: str
    member: str | None = None

    @property
    def name(self) -> str:
        """The member's name, or the recipe's with the rule."""
        return self.member or f"{self.recipe.name} ({self.rule})"

    @property
    def dataset(self) -> str:
        """The data set the recipe trains on."""
        return self.recipe.dataset

    def threat(self) -> Threat:
        """The threat of the recipe's holdout."""
        holdout = self.recipe.holdout
        if holdout is None or holdout.threat is None:
            raise CommandError(f"recipe {self.recipe.name} names no threat for its holdout: pass --threat")
        return holdout.threat

    def load(self, norm: str, images: ImageSet) -> nn.Module:
        """The network with the weights in the folder; the norm is not used."""
        from empir_plugin.training.networks import load_trained, load_trained_member
        from empir_plugin.zoo.card import RULES

        if self.member is not None:
            return load_trained_member(self.recipe, self.folder, self.member, images=images)
        return load_trained(self.recipe, self.folder, RULES[self.rule], images=images)


def parse_model(
    model: str,
    checkpoint: Path | None,
    trained: Path | None,
    rule: str | None,
    member: str | None,
    *,
    ema: bool | None = None,
) -> EvaluatedModel:
    """The model that the arguments of ``empir evaluate`` name.

    Args:
        model: A model's name or, with ``trained``, a recipe's name or file.
        checkpoint: As in :class:`NamedModel`.
        trained: Folder of the recipe's weights.
        rule: How the recipe's members decide; None for the vote.
        member: As in :class:`TrainedRecipe`.
        ema: As in :class:`NamedModel`.

    Raises:
        CommandError: If the options contradict each other.
        InputError: If there is no such recipe, or it is malformed.

    Example:
        >>> parse_model("empir-cifar", None, None, None, None)
        NamedModel(name='empir-cifar', checkpoint=None, ema=None)
    """
    if trained is None:
        if rule or member:
            raise CommandError("--rule and --member select from a trained recipe: pass --trained FOLDER, too")
        return NamedModel(model, checkpoint, ema)
    if ema is not None:
        raise CommandError("--ema and --no-ema are for --checkpoint: leave them out with --trained")
    if checkpoint is not None:
        raise CommandError("--trained and --checkpoint both name the weights: pass one of them")
    if rule and member:
        raise CommandError("--rule is for several members and --member for one: pass one of them")
    from empir_plugin.training.recipe import find_recipe

    return TrainedRecipe(find_recipe(model), trained, rule or RULE_NAMES[0], member)
