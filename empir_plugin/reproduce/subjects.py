"""Which network a part of a reproduction is about, and where its weights come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from torch import nn

from empir_plugin.errors import WeightsError
from empir_plugin.zoo.registry import load_model


class Training(NamedTuple):
    """A recipe, and the images it is trained on.

    Args:
        recipe: Name of the recipe, or path of a TOML file.
        bits: Of every pixel of the images: 1, 2, 4 or 8.
    """

    recipe: str
    bits: int = 8


class Weights(Protocol):
    """Where weights that do not travel with this package come from."""

    def trained(self, training: Training, member: str) -> nn.Module:
        """A member of a recipe, trained if it is not yet."""
        ...

    def given(self, model: str) -> Path:
        """The file in which a user hands in the weights of a named model; it need not be there."""
        ...


class Subject(Protocol):
    """A network with a name.

    ``trainings`` are those that have to be done for it, ``given`` names the models whose weights a user must have.
    """

    @property
    def name(self) -> str:
        """Part of the names of its records."""
        ...

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Trainings it needs."""
        ...

    @property
    def given(self) -> tuple[str, ...]:
        """Models whose weights it needs from the user."""
        ...

    def load(self, weights: Weights) -> nn.Module:
        """The network, with weights, in evaluation mode."""
        ...


@dataclass(frozen=True)
class Zoo:
    """A model of this package with weights.

    Args:
        name: For ``load_model``.

    Example:
        >>> Zoo("mnistconv-fp").trainings
        ()
    """

    name: str
    trainings: tuple[Training, ...] = ()
    given: tuple[str, ...] = ()

    def load(self, weights: Weights) -> nn.Module:
        """Load it."""
        return load_model(self.name)


@dataclass(frozen=True)
class Trained:
    """A member of a recipe, trained on demand.

    Args:
        recipe: Name of the recipe, or path of a TOML file.
        name: Of the member.
    """

    recipe: str
    name: str
    given: tuple[str, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """That of its recipe."""
        return (Training(self.recipe),)

    def load(self, weights: Weights) -> nn.Module:
        """Load it; train it if need be."""
        return weights.trained(Training(self.recipe), self.name)


@dataclass(frozen=True)
class Given:
    """A model of this package without weights, with those a user has.

    Args:
        name: For ``load_model``.
    """

    name: str
    trainings: tuple[Training, ...] = ()

    @property
    def given(self) -> tuple[str, ...]:
        """Itself."""
        return (self.name,)

    def load(self, weights: Weights) -> nn.Module:
        """Load it.

        Raises:
            WeightsError: If there are no such weights.
        """
        path = weights.given(self.name)
        if not path.is_file():
            raise WeightsError(f"{self.name} has no weights of its own: put its state dict in {path}")
        return load_model(self.name, custom_checkpoint=path)


def trainings_of(subjects: Sequence[Subject]) -> tuple[Training, ...]:
    """The trainings some subjects need, each once, in order.

    Example:
        >>> trainings_of([Zoo("a"), Trained("r", "b"), Trained("r", "c")])
        (Training(recipe='r', bits=8),)
    """
    return tuple(dict.fromkeys(training for subject in subjects for training in subject.trainings))
