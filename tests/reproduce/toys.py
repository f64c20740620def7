"""A toy network, attack and target for the tests of ``reproduce``, in a module: the cache hashes source files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from empir_plugin.attacks import Model, Threat, fgsm
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import DataError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.protocols import Protocol
from empir_plugin.reproduce.document import Block, Table
from empir_plugin.reproduce.parts import Evaluation
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.subjects import Weights

TENTH = Threat.parse("Linf:0.1")


class Compare(nn.Module):
    """Predicts which of two pixels is brighter; the Linf distance to the boundary is half their difference."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def pairs(differences: list[int], labels: list[int]) -> ImageSet:
    """Images of two pixels, the left one brighter than the right by twice a difference, in steps of 1/255."""
    left = torch.tensor([128 + d for d in differences], dtype=torch.uint8)
    right = torch.tensor([128 - d for d in differences], dtype=torch.uint8)
    return ImageSet("toy", "test", torch.stack([left, right], 1).view(-1, 1, 1, 2), torch.tensor(labels), ("l", "r"))


@dataclass(frozen=True)
class ToySubject:
    """A subject without weights."""

    name: str = "toy"
    trainings: tuple[()] = ()
    user_weights: tuple[str, ...] = ()

    def load(self, weights: Weights) -> nn.Module:
        return Compare()


@dataclass(frozen=True)
class FixedImages:
    """An image source with one fixed test set, and possibly a training set."""

    images: ImageSet
    training: ImageSet | None = None

    def test(self, dataset: str) -> ImageSet:
        return self.images

    def train(self, dataset: str) -> ImageSet:
        if self.training is None:
            raise DataError(f"no training images of {dataset}: pass --data-dir")
        return self.training


@dataclass(frozen=True)
class LoggedFGSM:
    """FGSM that logs each call to a file, and fails while another file exists."""

    log: str
    broken: str = ""

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        if self.broken and Path(self.broken).exists():
            raise RuntimeError("killed")
        with Path(self.log).open("a") as file:
            file.write("called\n")
        return fgsm()(model, x, y, threat)


@dataclass(frozen=True)
class ToyPlan:
    attack: LoggedFGSM

    def __call__(self, model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
        return (AttackSpec("FGSM", self.attack, attack_all=True),)


def protocol(attack: LoggedFGSM) -> Protocol:
    return Protocol("toy", "One attack.", (), ToyPlan(attack))


def part(slug: str, attack: LoggedFGSM, threat: Threat = TENTH) -> Evaluation:
    return Evaluation(ToySubject(), "toy", protocol(attack), threat, slug)


@dataclass(frozen=True)
class ShowAccuracy:
    """Shows the accuracy of each record as a table."""

    slugs: tuple[str, ...]

    def __call__(self, results: Results, folder: Path) -> tuple[Block, ...]:
        rows = tuple((slug, f"{results.record(slug).attacks[0].accuracy:.2f}") for slug in self.slugs)
        return (Table("Accuracy under FGSM, in %.", ("Part", "Accuracy"), rows),)


def target(*parts: Evaluation, name: str = "toys") -> Target:
    return Target(name, "Toys", parts, ShowAccuracy(tuple(each.slug for each in parts)))
