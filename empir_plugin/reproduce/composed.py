"""Networks made of other subjects: several that vote, one behind a discretization, one with changed weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from empir_plugin.models.discretize import discretized
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.mu_law import mu_law_
from empir_plugin.models.posttraining import quantize_weights_
from empir_plugin.reproduce.subjects import Subject, Training, Weights, trainings_of


@dataclass(frozen=True)
class Discrete:
    """A member of a recipe behind a discretization, and trained on images that were discretized.

    Args:
        recipe: Name of the recipe, or path of a TOML file.
        member: Of the recipe.
        bits: Of every pixel: 1, 2, 4 or 8.

    Example:
        >>> Discrete("discretization-mnist", "fcn2-full", 2).name
        'fcn2-full-2bit'
    """

    recipe: str
    member: str
    bits: int
    given: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The member's, with its bits."""
        return f"{self.member}-{self.bits}bit"

    @property
    def trainings(self) -> tuple[Training, ...]:
        """That of its recipe, on such images."""
        return (Training(self.recipe, self.bits),)

    def load(self, weights: Weights) -> nn.Module:
        """Load it; train it if need be."""
        return discretized(weights.trained(self.trainings[0], self.member), self.bits, "round")


@dataclass(frozen=True)
class Altered:
    """A trained network whose weights are changed after training.

    Args:
        of: The network.
        mu_layers: So many last layers are mapped by the mu-law; 0 for none.
        bits: Of the weights of all layers afterwards; 0 leaves them as they are.

    Example:
        >>> from empir_plugin.reproduce.subjects import Zoo
        >>> Altered(Zoo("net"), mu_layers=1, bits=3).name
        'net-mu-q3'
    """

    of: Subject
    mu_layers: int = 0
    bits: int = 0
    given: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The network's, with what was done to it."""
        return self.of.name + ("-mu" if self.mu_layers else "") + (f"-q{self.bits}" if self.bits else "")

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Those of the network."""
        return self.of.trainings

    def load(self, weights: Weights) -> nn.Module:
        """Load the network and change it; the order of the paper, the law before the quantization."""
        model = self.of.load(weights)
        if self.mu_layers:
            mu_law_(model, self.mu_layers, beyond="scale")
        if self.bits:
            quantize_weights_(model, self.bits)
        return model.eval()


@dataclass(frozen=True)
class Voting:
    """An ensemble of other subjects that decides by EMPIR's vote; one alone is that network, with nobody to vote with.

    Args:
        name: Of the ensemble.
        members: In the order of the release: low precision first.
    """

    name: str
    members: tuple[Subject, ...]
    given: tuple[str, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Those of its members, each once."""
        return trainings_of(self.members)

    def load(self, weights: Weights) -> nn.Module:
        """Load the members and let them vote."""
        members = [member.load(weights) for member in self.members]
        return members[0] if len(members) == 1 else Ensemble(members).eval()
