"""Which network a part of a reproduction is about, and where its weights come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Protocol

from torch import nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import WeightsError
from empir_plugin.models.discretize import discretized
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.mu_law import mu_law_
from empir_plugin.models.posttraining import quantize_weights_
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


EIGHT = Threat.parse("Linf:8/255")
"""The radius of RobustBench's board, which the paper does not attack within."""

THREATS: Mapping[str, Threat] = MappingProxyType(
    {"mnist": Threat.parse("Linf:0.3"), "cifar10": Threat.parse("Linf:0.1"), "imagenet": Threat.parse("Linf:0.0226")}
)
"""The paper's Table 1, in units of images; on ImageNet, 0.1 of the release's units."""

DATASETS: Mapping[str, str] = MappingProxyType(
    {"mnist": "MNISTconv, MNIST", "cifar10": "CIFARconv, CIFAR-10", "imagenet": "AlexNet, ImageNet"}
)
"""Data sets in words."""

DEFENCES: Mapping[str, str] = MappingProxyType(
    {
        "baseline": "Baseline (full precision)",
        "empir": "EMPIR",
        "distillation": "Defensive distillation",
        "gradient-penalty": "Input gradient regularisation",
        "fgsm": "FGSM adversarial training",
        "empir-fgsm": "EMPIR (FGSM adversarial training)",
    }
)
"""Rows of Table 2 in words."""

_MNIST, _CIFAR = "table2-mnist", "table2-cifar"

SUBJECTS: Mapping[tuple[str, str], Subject] = MappingProxyType(
    {
        ("mnist", "baseline"): Zoo("mnistconv-fp"),
        ("mnist", "empir"): Zoo("empir-mnist"),
        ("mnist", "distillation"): Trained(_MNIST, "mnist-distilled"),
        ("mnist", "gradient-penalty"): Trained(_MNIST, "mnist-gradient-penalty"),
        ("mnist", "fgsm"): Trained(_MNIST, "mnist-fgsm"),
        ("mnist", "empir-fgsm"): Voting(
            "empir-mnist-fgsm",
            (Trained(_MNIST, "mnist-w2a4-fgsm"), Trained(_MNIST, "mnist-w2a4-b-fgsm"), Trained(_MNIST, "mnist-fgsm")),
        ),
        ("cifar10", "baseline"): Zoo("cifarconv-fp"),
        ("cifar10", "empir"): Zoo("empir-cifar"),
        ("cifar10", "distillation"): Trained(_CIFAR, "cifar-distilled"),
        ("cifar10", "gradient-penalty"): Trained(_CIFAR, "cifar-gradient-penalty"),
        ("cifar10", "fgsm"): Trained(_CIFAR, "cifar-fgsm"),
        ("cifar10", "empir-fgsm"): Voting(
            "empir-cifar-fgsm",
            (Trained(_CIFAR, "cifar-w4a2-fgsm"), Trained(_CIFAR, "cifar-w2a2-fgsm"), Trained(_CIFAR, "cifar-fgsm")),
        ),
        ("imagenet", "baseline"): Given("alexnet-fp"),
        ("imagenet", "empir"): Given("empir-imagenet"),
    }
)
"""The network of each row of Table 2."""
