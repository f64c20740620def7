"""Toy parts for tests of the reproductions, in a module of their own: a store wants source files."""

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
    """Classes 0 and 1: which of two pixels is the brighter. Linf distance to a change: half their difference."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def pairs(differences: list[int], labels: list[int]) -> ImageSet:
    """Images whose left pixel is twice a difference, in steps of 1/255, above the right one."""
    left = torch.tensor([128 + d for d in differences], dtype=torch.uint8)
    right = torch.tensor([128 - d for d in differences], dtype=torch.uint8)
    return ImageSet("toy", "test", torch.stack([left, right], 1).view(-1, 1, 1, 2), torch.tensor(labels), ("l", "r"))


@dataclass(frozen=True)
class Toy:
    """A subject without weights."""

    name: str = "toy"
    trainings: tuple[()] = ()
    given: tuple[str, ...] = ()

    def load(self, weights: Weights) -> nn.Module:
        return Compare()


@dataclass(frozen=True)
class Fixed:
    """A source that has one set of images, and training images if it is given some."""

    images: ImageSet
    training: ImageSet | None = None

    def test(self, dataset: str) -> ImageSet:
        return self.images

    def train(self, dataset: str) -> ImageSet:
        if self.training is None:
            raise DataError(f"no training images of {dataset}: pass --data-dir")
        return self.training


@dataclass(frozen=True)
class Counted:
    """FGSM that writes a line into a file at each call, and fails while another file is there."""

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
class Plan:
    attack: Counted

    def __call__(self, model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
        return (AttackSpec("FGSM", self.attack, attack_all=True),)


def protocol(attack: Counted) -> Protocol:
    return Protocol("toy", "One attack.", (), Plan(attack))


def part(slug: str, attack: Counted, threat: Threat = TENTH) -> Evaluation:
    return Evaluation(Toy(), "toy", protocol(attack), threat, slug)


@dataclass(frozen=True)
class Numbers:
    """Shows the accuracy of every record as a table."""

    slugs: tuple[str, ...]

    def __call__(self, results: Results, folder: Path) -> tuple[Block, ...]:
        rows = tuple((slug, f"{results.record(slug).attacks[0].accuracy:.2f}") for slug in self.slugs)
        return (Table("Left by FGSM, in %.", ("Part", "Left"), rows),)


def target(*parts: Evaluation, name: str = "toys") -> Target:
    return Target(name, "Toys", parts, Numbers(tuple(each.slug for each in parts)))
