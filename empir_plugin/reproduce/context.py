"""What every part of a reproduction works with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from empir_plugin._files.atomic import write_atomically
from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.models.quantize import quantize_unit
from empir_plugin.reproduce.subjects import Subject, Training
from empir_plugin.reproduce.workspace import Workspace
from empir_plugin.training.loop import Step
from empir_plugin.training.networks import load_trained_member, member_of
from empir_plugin.training.recipe import Recipe, find_recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import report_settings, settings_of

Prepare = Callable[[ImageSet], ImageSet]
"""What is done to images before they are shown to anybody."""


def as_they_are(data: ImageSet) -> ImageSet:
    """Change nothing."""
    return data


@dataclass(frozen=True)
class Discretize:
    """Leave ``2**bits`` levels of every pixel, the nearest ones, with black and white among them.

    The images are then what a network behind ``Discretized(network, bits, "round")`` is shown, and still bytes.

    Args:
        bits: 1, 2, 4 or 8: of these all levels are whole numbers from 0 to 255.

    Raises:
        InputError: If the number of bits is another one.

    Example:
        >>> data = Discretize(2)(Images(n_examples=1).test("mnist"))
        >>> data.images.unique()
        tensor([  0,  85, 170, 255], dtype=torch.uint8)
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise InputError(f"images can be stored with 1, 2, 4 or 8 bits per pixel, got {self.bits!r}")

    def __call__(self, data: ImageSet) -> ImageSet:
        """Discretize a set."""
        values = quantize_unit(data.images.float() / 255, self.bits)
        return replace(data, images=(values * 255).round().to(torch.uint8))


class Source(Protocol):
    """Where images come from."""

    def test(self, dataset: str) -> ImageSet:
        """Images to attack."""
        ...

    def train(self, dataset: str) -> ImageSet:
        """Images to train on."""
        ...


@dataclass(frozen=True)
class Images:
    """Test images to attack, and training images for networks that are trained on demand.

    Args:
        data_dir: Folder of the full data sets; None for the bundled sample, which has no training images.
        n_examples: How many test images, from the first; None for the 1,000 of the bundled sample, or all of
            ``data_dir``.

    Example:
        >>> len(Images(n_examples=3).test("mnist"))
        3
    """

    data_dir: Path | None = None
    n_examples: int | None = None

    def test(self, dataset: str) -> ImageSet:
        """Images to attack.

        Raises:
            InputError: If more are asked for than there are.
            DataError: If they are missing or damaged.
        """
        return load_images(dataset, data_dir=self.data_dir, n_examples=self.n_examples)

    def train(self, dataset: str) -> ImageSet:
        """Images to train on.

        Raises:
            DataError: If they are missing or damaged.
        """
        return load_images(dataset, data_dir=self.data_dir, split="train")


_FINISHED = "finished.json"


@dataclass(frozen=True, eq=False)
class Trainer:
    """Weights that do not travel with this package.

    Args:
        workspace: Keeps them.
        images: To train on.
        device: Where to train.
        on_step: Told after every step.
    """

    workspace: Workspace
    images: Source
    device: torch.device
    on_step: Callable[[Step], None] | None = None

    def given(self, model: str) -> Path:
        """The file in which a user hands in the weights of a named model."""
        return self.workspace.given / f"{model}.safetensors"

    def trained(self, training: Training, member: str) -> nn.Module:
        """A member of a recipe. What was begun goes on from its last checkpoint.

        Args:
            training: The recipe, and on which images.
            member: Its name.

        Raises:
            DataError: If it has to be trained and the training images are missing.
            InputError: If the recipe has no such member.
            WeightsError: If what lies there is damaged or of another version of the recipe.
        """
        plan, bits = find_recipe(training.recipe), training.bits
        member_of(plan, member)  # refuses one that is not there, before anything is trained
        digests = self._finished(plan, bits) or self._train(plan, bits)
        return load_trained_member(plan, self._folder(plan, bits), member, expected_sha256=digests.get(member, ""))

    def is_trained(self, training: Training) -> bool:
        """Whether all members of a recipe are there already.

        Raises:
            WeightsError: If they are, and of another version of the recipe.
        """
        return self._finished(find_recipe(training.recipe), training.bits) is not None

    def _folder(self, plan: Recipe, bits: int) -> Path:
        return self.workspace.training / _name(plan, bits)

    def _finished(self, plan: Recipe, bits: int) -> dict[str, str] | None:
        """SHA-256 of every member's file, or None if the training has not come to its end."""
        path = self._folder(plan, bits) / _FINISHED
        if not path.is_file():
            return None
        try:
            table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            recipe, digests = table["recipe"], dict(table["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} is damaged ({error}): delete the folder {path.parent}") from error
        if recipe != recipe_digest(plan):
            raise WeightsError(
                f"the networks in {path.parent} were trained by another version of recipe {plan.name}: delete that "
                "folder to train them again, or choose another --out"
            )
        return digests

    def _train(self, plan: Recipe, bits: int) -> dict[str, str]:
        folder, data = self._folder(plan, bits), self.images.train(plan.dataset)
        if bits < 8:
            data = Discretize(bits)(data)
        members = train_recipe(plan, data, folder, device=self.device, on_step=self.on_step)
        digests = {member.name: member.sha256 for member in members}
        reports = self.workspace.records / "training" / _name(plan, bits)
        reports.mkdir(parents=True, exist_ok=True)
        for member in members:
            shutil.copyfile(folder / f"{member.name}.json", reports / f"{member.name}.json")
        table = {"recipe": recipe_digest(plan), "sha256": digests}
        write_atomically(folder / _FINISHED, (json.dumps(table, indent=2) + "\n").encode())
        return digests


def _name(plan: Recipe, bits: int) -> str:
    return plan.name if bits == 8 else f"{plan.name}-{bits}bit"


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of all that a recipe says, as hexadecimal text.

    Example:
        >>> recipe_digest(find_recipe("empir-mnist")) == recipe_digest(find_recipe("empir-cifar"))
        False
    """
    members = [report_settings(member) for member in recipe.members]
    joint = recipe.joint and settings_of(recipe.joint)
    told = [recipe.architecture, recipe.dataset, members, joint, repr(recipe.holdout)]
    if recipe.finish:
        told.append(settings_of(recipe.finish))
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


Tell = Callable[[str], None]
"""Told in a few words what is being done."""


def silent(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class Desk:
    """Images, weights and settings, at hand for one part after the other.

    Args:
        workspace: Where results go.
        images: Where images come from.
        settings: How evaluations run.
        tell: Told what is being done.
    """

    workspace: Workspace
    images: Source
    settings: Settings
    tell: Tell = silent
    _sets: dict[str, ImageSet] = field(default_factory=dict)

    def test(self, dataset: str) -> ImageSet:
        """The images to attack, loaded once."""
        if dataset not in self._sets:
            self._sets[dataset] = self.images.test(dataset)
        return self._sets[dataset]

    @property
    def trainer(self) -> Trainer:
        """Where weights come from that do not travel with this package."""
        return Trainer(self.workspace, self.images, self.settings.device, self._on_step)

    def load(self, subject: Subject) -> nn.Module:
        """A network with its weights; trained, if it has to be."""
        return subject.load(self.trainer)

    def on_attack(self, attack: str, done: int, total: int) -> None:
        """Tell how far an attack is."""
        self.tell(f"{attack} {done}/{total}")

    def _on_step(self, step: Step) -> None:
        self.tell(f"training {step.member} {step.step}/{step.steps}, accuracy {step.accuracy:.1%}")
