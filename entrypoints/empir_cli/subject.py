"""What ``empir evaluate`` is given to attack: a model by its name, or what a recipe left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import click

from empir_cli.group import Refusal

if TYPE_CHECKING:
    from torch import nn

    from empir_plugin.attacks.threat import Threat
    from empir_plugin.data.image_set import ImageSet
    from empir_plugin.training.recipe import Recipe

TRAINED = click.option(
    "--trained", type=click.Path(path_type=Path), help="MODEL is a recipe: take what `empir train` left in this folder."
)
RULE_NAMES = ("max_vote", "mean_probability", "mean_logits")
"""How members may decide together: the keys of :data:`empir_plugin.zoo.card.RULES`."""
RULE = click.option("--rule", type=click.Choice(RULE_NAMES), help="How those members decide.  [max_vote]")
MEMBER = click.option("--member", help="Only this one of those members.")


class Subject(Protocol):
    """A model as the command line names it."""

    @property
    def name(self) -> str:
        """What the record calls it."""
        ...

    @property
    def dataset(self) -> str:
        """The data set it classifies."""
        ...

    def threat(self) -> Threat:
        """What it is evaluated under unless told otherwise."""
        ...

    def load(self, norm: str, images: ImageSet) -> nn.Module:
        """The network, in evaluation mode.

        Args:
            norm: The threat model's, as RobustBench writes it.
            images: Some of the data set.
        """
        ...


@dataclass(frozen=True)
class NamedModel:
    """A model of this plugin, or of a package that extends it.

    Args:
        name: Its name.
        checkpoint: Weights instead of its own.
    """

    name: str
    checkpoint: Path | None = None

    @property
    def dataset(self) -> str:
        """That of its card."""
        from empir_plugin.zoo.show import dataset_of

        return dataset_of(self.name)

    def threat(self) -> Threat:
        """That of its card."""
        from empir_plugin.attacks.threat import Threat
        from empir_plugin.zoo.show import default_threat

        return Threat.parse(default_threat(self.name))

    def load(self, norm: str, images: ImageSet) -> nn.Module:
        """The network with its weights, whatever the images are."""
        from empir_plugin.evaluation.prepare import require_weights
        from empir_plugin.zoo.registry import load_model

        checkpoint = self.checkpoint or ""
        network = load_model(self.name, dataset=self.dataset, threat_model=norm, custom_checkpoint=checkpoint)
        require_weights(network, self.name)
        return network


@dataclass(frozen=True)
class TrainedRecipe:
    """What a recipe left behind, or one member of it.

    Args:
        recipe: Read.
        folder: Where its weights are.
        rule: How its members decide.
        member: Name of the one of them that is meant; None for all.
    """

    recipe: Recipe
    folder: Path
    rule: str
    member: str | None = None

    @property
    def name(self) -> str:
        """The member's, or the recipe's with the rule."""
        return self.member or f"{self.recipe.name} ({self.rule})"

    @property
    def dataset(self) -> str:
        """What the recipe trains on."""
        return self.recipe.dataset

    def threat(self) -> Threat:
        """The one its holdout was judged by."""
        holdout = self.recipe.holdout
        if holdout is None or holdout.threat is None:
            raise Refusal(f"recipe {self.recipe.name} names no threat for its holdout: pass --threat")
        return holdout.threat

    def load(self, norm: str, images: ImageSet) -> nn.Module:
        """The network with the weights of the folder, whatever the threat model is."""
        from empir_plugin.training.networks import load_trained, load_trained_member
        from empir_plugin.zoo.card import RULES

        if self.member is not None:
            return load_trained_member(self.recipe, self.folder, self.member, images=images)
        return load_trained(self.recipe, self.folder, RULES[self.rule], images=images)


def parse_subject(
    model: str, checkpoint: Path | None, trained: Path | None, rule: str | None, member: str | None
) -> Subject:
    """Tell which of the two is meant.

    Args:
        model: A model's name or, with ``trained``, a recipe's name or file.
        checkpoint: As in :class:`NamedModel`.
        trained: Folder of the recipe's weights.
        rule: How their members decide; None for the vote.
        member: As in :class:`TrainedRecipe`.

    Raises:
        Refusal: If the options do not go together.
        InputError: If there is no such recipe, or it is not well formed.

    Example:
        >>> parse_subject("empir-cifar", None, None, None, None)
        NamedModel(name='empir-cifar', checkpoint=None)
    """
    if trained is None:
        if rule or member:
            raise Refusal("--rule and --member say what to take of a trained recipe: pass --trained FOLDER, too")
        return NamedModel(model, checkpoint)
    if checkpoint is not None:
        raise Refusal("--trained and --checkpoint both say where the weights are: pass one of them")
    if rule and member:
        raise Refusal("--rule is for several members and --member for one: pass one of them")
    from empir_plugin.training.recipe import find_recipe

    return TrainedRecipe(find_recipe(model), trained, rule or RULE_NAMES[0], member)
