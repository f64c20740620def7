"""What ``empir evaluate`` is given to attack: a model by its name, or what a recipe left behind."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from empir_cli.group import Refusal

if TYPE_CHECKING:
    from torch import nn

    from empir_plugin.attacks.threat import Threat

TRAINED = click.option(
    "--trained", type=click.Path(path_type=Path), help="MODEL is a recipe: take what `empir train` left in this folder."
)
RULE_NAMES = ("max_vote", "mean_probability")
"""How members may decide together: the keys of :data:`empir_plugin.zoo.card.RULES`."""
RULE = click.option("--rule", type=click.Choice(RULE_NAMES), help="How those members decide.  [max_vote]")
MEMBER = click.option("--member", help="Only this one of those members.")


@dataclass(frozen=True)
class Subject:
    """A model as the command line names it.

    Args:
        model: Its name, or a recipe's name or file.
        checkpoint: Weights instead of the model's own.
        trained: Where the recipe's weights are; None if it is no recipe.
        rule: How the recipe's members decide; None for the vote.
        member: Name of the one of them that is meant; None for all.
    """

    model: str
    checkpoint: Path | None = None
    trained: Path | None = None
    rule: str | None = None
    member: str | None = None

    def __post_init__(self) -> None:
        if self.trained is None and (self.rule or self.member):
            raise Refusal("--rule and --member say what to take of a trained recipe: pass --trained FOLDER, too")
        if self.trained is not None and self.checkpoint is not None:
            raise Refusal("--trained and --checkpoint both say where the weights are: pass one of them")
        if self.rule and self.member:
            raise Refusal("--rule is for several members and --member for one: pass one of them")

    @property
    def name(self) -> str:
        """What the record calls it."""
        if self.trained is None:
            return self.model
        return self.member or f"{Path(self.model).stem} ({self.rule or RULE_NAMES[0]})"

    def dataset(self) -> str:
        """The data set it classifies."""
        from empir_plugin.training.run import find_recipe
        from empir_plugin.zoo.show import dataset_of

        return dataset_of(self.model) if self.trained is None else find_recipe(self.model).dataset

    def threat(self) -> Threat:
        """What it is evaluated under unless told otherwise: the card's threat, or the one its holdout was judged by."""
        from empir_plugin.attacks.threat import Threat
        from empir_plugin.training.run import find_recipe
        from empir_plugin.zoo.show import default_threat

        if self.trained is None:
            return Threat.parse(default_threat(self.model))
        holdout = find_recipe(self.model).holdout
        if holdout is None or holdout.threat is None:
            raise Refusal(f"recipe {self.model} names no threat for its holdout: pass --threat")
        return holdout.threat

    def load(self, norm: str) -> nn.Module:
        """The network, in evaluation mode.

        Args:
            norm: The threat model's, as RobustBench writes it.
        """
        from empir_plugin.evaluation.subject import require_weights
        from empir_plugin.zoo.registry import load_model

        if self.trained is not None:
            return self._trained(self.trained)
        checkpoint = self.checkpoint or ""
        network = load_model(self.model, dataset=self.dataset(), threat_model=norm, custom_checkpoint=checkpoint)
        require_weights(network, self.model)
        return network

    def _trained(self, folder: Path) -> nn.Module:
        from empir_plugin.training.run import find_recipe
        from empir_plugin.training.trained import load_trained, load_trained_member
        from empir_plugin.zoo.card import RULES

        recipe = find_recipe(self.model)
        if self.member is not None:
            return load_trained_member(recipe, folder, self.member)
        return load_trained(recipe, folder, RULES[self.rule or RULE_NAMES[0]])
