"""The networks that are evaluated: where each comes from, how it is trained or put together, and those of Table 2."""

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
    """A recipe and the images it is trained on.

    Args:
        recipe: Name of the recipe, or path of a TOML file.
        bits: Bits per pixel of the training images: 1, 2, 4 or 8.
    """

    recipe: str
    bits: int = 8


class Weights(Protocol):
    """Source of the weights that are not part of this package."""

    def load_member(self, training: Training, member: str) -> nn.Module:
        """Load a member of a recipe, after training it if necessary."""
        ...

    def user_file(self, model: str) -> Path:
        """Path at which the user supplies the weights of a named model; the file may be missing."""
        ...


class Subject(Protocol):
    """A network to evaluate, and what is needed to load it."""

    @property
    def name(self) -> str:
        """Name of the network, and part of the names of its records."""
        ...

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Trainings it depends on."""
        ...

    @property
    def user_weights(self) -> tuple[str, ...]:
        """Models whose weights the user must supply."""
        ...

    def load(self, weights: Weights) -> nn.Module:
        """Load the network with its weights, in evaluation mode."""
        ...


@dataclass(frozen=True)
class ZooSubject:
    """A model of this package, with the weights that come with it.

    Args:
        name: Name for :func:`empir_plugin.load_model`.

    Example:
        >>> ZooSubject("mnistconv-fp").trainings
        ()
    """

    name: str
    trainings: tuple[Training, ...] = ()
    user_weights: tuple[str, ...] = ()

    def load(self, weights: Weights) -> nn.Module:
        """Load the model."""
        return load_model(self.name)


@dataclass(frozen=True)
class TrainedSubject:
    """A member of a recipe, trained on demand.

    Args:
        recipe: Name of the recipe, or path of a TOML file.
        name: Name of the member.
    """

    recipe: str
    name: str
    user_weights: tuple[str, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The training of its recipe."""
        return (Training(self.recipe),)

    def load(self, weights: Weights) -> nn.Module:
        """Load the member, after training it if necessary."""
        return weights.load_member(Training(self.recipe), self.name)


@dataclass(frozen=True)
class UserWeightsSubject:
    """A model that comes without weights, with weights supplied by the user.

    Args:
        name: Name for :func:`empir_plugin.load_model`.
    """

    name: str
    trainings: tuple[Training, ...] = ()

    @property
    def user_weights(self) -> tuple[str, ...]:
        """The model itself."""
        return (self.name,)

    def load(self, weights: Weights) -> nn.Module:
        """Load the model.

        Raises:
            WeightsError: If the user has not supplied its weights.
        """
        path = weights.user_file(self.name)
        if not path.is_file():
            raise WeightsError(f"{self.name} comes without weights: put its state dict in {path}")
        return load_model(self.name, custom_checkpoint=path)


@dataclass(frozen=True)
class DiscretizedSubject:
    """A member of a recipe, trained on discretized images, behind the same discretization.

    Args:
        recipe: Name of the recipe, or path of a TOML file.
        member: Name of the member.
        bits: Bits per pixel: 1, 2, 4 or 8.

    Example:
        >>> DiscretizedSubject("discretization-mnist", "fcn2-full", 2).name
        'fcn2-full-2bit'
    """

    recipe: str
    member: str
    bits: int
    user_weights: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the member, with its bits."""
        return f"{self.member}-{self.bits}bit"

    @property
    def trainings(self) -> tuple[Training, ...]:
        """The training of its recipe on discretized images."""
        return (Training(self.recipe, self.bits),)

    def load(self, weights: Weights) -> nn.Module:
        """Load the member, after training it if necessary, and put the discretization in front."""
        return discretized(weights.load_member(self.trainings[0], self.member), self.bits, "round")


@dataclass(frozen=True)
class PostTrainingSubject:
    """A trained network whose weights are changed after training: Song et al., https://arxiv.org/abs/2012.14965.

    Args:
        base: The network.
        mu_layers: The mu-law is applied to the weights of so many last layers; 0 for none.
        bits: Bits to which the weights of all layers are then quantized; 0 for no quantization.

    Example:
        >>> PostTrainingSubject(ZooSubject("net"), mu_layers=1, bits=3).name
        'net-mu-q3'
    """

    base: Subject
    mu_layers: int = 0
    bits: int = 0
    user_weights: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Name of the network, with the changes."""
        return self.base.name + ("-mu" if self.mu_layers else "") + (f"-q{self.bits}" if self.bits else "")

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Trainings of the network."""
        return self.base.trainings

    def load(self, weights: Weights) -> nn.Module:
        """Load the network and change its weights in the paper's order, the mu-law before the quantization."""
        model = self.base.load(weights)
        if self.mu_layers:
            mu_law_(model, self.mu_layers, beyond="scale")
        if self.bits:
            quantize_weights_(model, self.bits)
        return model.eval()


@dataclass(frozen=True)
class EnsembleSubject:
    """An ensemble of other subjects under EMPIR's vote; with one member, that network itself.

    Args:
        name: Name of the ensemble.
        members: In the order of the release: low precision first.
    """

    name: str
    members: tuple[Subject, ...]
    user_weights: tuple[str, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Trainings of its members, each once."""
        return trainings_of(self.members)

    def load(self, weights: Weights) -> nn.Module:
        """Load the members and build the ensemble."""
        members = [member.load(weights) for member in self.members]
        return members[0] if len(members) == 1 else Ensemble(members).eval()


def trainings_of(subjects: Sequence[Subject]) -> tuple[Training, ...]:
    """Trainings that some subjects depend on, each once, in order.

    Example:
        >>> trainings_of([ZooSubject("a"), TrainedSubject("r", "b"), TrainedSubject("r", "c")])
        (Training(recipe='r', bits=8),)
    """
    return tuple(dict.fromkeys(training for subject in subjects for training in subject.trainings))


ROBUSTBENCH_THREAT = Threat.parse("Linf:8/255")
"""The threat of RobustBench's CIFAR-10 leaderboard; the paper does not use it."""

THREATS: Mapping[str, Threat] = MappingProxyType(
    {"mnist": Threat.parse("Linf:0.3"), "cifar10": Threat.parse("Linf:0.1"), "imagenet": Threat.parse("Linf:0.0226")}
)
"""The paper's Table 1, for images in [0, 1]; on ImageNet, 0.1 in the release's units."""

DATASETS: Mapping[str, str] = MappingProxyType(
    {"mnist": "MNISTconv, MNIST", "cifar10": "CIFARconv, CIFAR-10", "imagenet": "AlexNet, ImageNet"}
)
"""Architecture and data set as the report writes them."""

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
"""Rows of Table 2 as the report writes them."""

_MNIST, _CIFAR = "table2-mnist", "table2-cifar"

SUBJECTS: Mapping[tuple[str, str], Subject] = MappingProxyType(
    {
        ("mnist", "baseline"): ZooSubject("mnistconv-fp"),
        ("mnist", "empir"): ZooSubject("empir-mnist"),
        ("mnist", "distillation"): TrainedSubject(_MNIST, "mnist-distilled"),
        ("mnist", "gradient-penalty"): TrainedSubject(_MNIST, "mnist-gradient-penalty"),
        ("mnist", "fgsm"): TrainedSubject(_MNIST, "mnist-fgsm"),
        ("mnist", "empir-fgsm"): EnsembleSubject(
            "empir-mnist-fgsm",
            (
                TrainedSubject(_MNIST, "mnist-w2a4-fgsm"),
                TrainedSubject(_MNIST, "mnist-w2a4-b-fgsm"),
                TrainedSubject(_MNIST, "mnist-fgsm"),
            ),
        ),
        ("cifar10", "baseline"): ZooSubject("cifarconv-fp"),
        ("cifar10", "empir"): ZooSubject("empir-cifar"),
        ("cifar10", "distillation"): TrainedSubject(_CIFAR, "cifar-distilled"),
        ("cifar10", "gradient-penalty"): TrainedSubject(_CIFAR, "cifar-gradient-penalty"),
        ("cifar10", "fgsm"): TrainedSubject(_CIFAR, "cifar-fgsm"),
        ("cifar10", "empir-fgsm"): EnsembleSubject(
            "empir-cifar-fgsm",
            (
                TrainedSubject(_CIFAR, "cifar-w4a2-fgsm"),
                TrainedSubject(_CIFAR, "cifar-w2a2-fgsm"),
                TrainedSubject(_CIFAR, "cifar-fgsm"),
            ),
        ),
        ("imagenet", "baseline"): UserWeightsSubject("alexnet-fp"),
        ("imagenet", "empir"): UserWeightsSubject("empir-imagenet"),
    }
)
"""The network of each row of Table 2."""
