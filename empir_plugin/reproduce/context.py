"""What every part of a reproduction works with: images, networks trained on demand, and the :class:`Context`."""

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
from empir_plugin.evaluation.progress import Progress
from empir_plugin.models.quantize import quantize_unit
from empir_plugin.reproduce.subjects import Subject, Training
from empir_plugin.reproduce.workspace import Workspace
from empir_plugin.training.loop import Step
from empir_plugin.training.networks import load_trained_member, member_of
from empir_plugin.training.recipe import Recipe, find_recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import report_settings, settings_of


class ImageSource(Protocol):
    """Where images come from."""

    def test(self, dataset: str) -> ImageSet:
        """Load the images to attack."""
        ...

    def train(self, dataset: str) -> ImageSet:
        """Load the images to train on."""
        ...


@dataclass(frozen=True)
class Images:
    """The first images of each test set, and the training sets for networks trained on demand.

    Args:
        data_dir: Folder of the full data sets; None for the bundled sample, which has no training images.
        n_examples: Number of test images, taken from the start; None for the 1,000 of the bundled sample, or all of
            ``data_dir``.

    Example:
        >>> len(Images(n_examples=3).test("mnist"))
        3
    """

    data_dir: Path | None = None
    n_examples: int | None = None

    def test(self, dataset: str) -> ImageSet:
        """Load the images to attack.

        Raises:
            InputError: If there are fewer than ``n_examples``.
            DataError: If they are missing or damaged.
        """
        return load_images(dataset, data_dir=self.data_dir, n_examples=self.n_examples)

    def train(self, dataset: str) -> ImageSet:
        """Load the images to train on.

        Raises:
            DataError: If they are missing or damaged.
        """
        return load_images(dataset, data_dir=self.data_dir, split="train")


Preprocess = Callable[[ImageSet], ImageSet]
"""Changes images before they are attacked or trained on."""


def unchanged(data: ImageSet) -> ImageSet:
    """Return the images as they are."""
    return data


@dataclass(frozen=True)
class Discretize:
    """Round every pixel to the nearest of ``2**bits`` evenly spaced levels from black to white.

    The result is what the network in ``Discretized(network, bits, "round")`` sees, stored as bytes.

    Args:
        bits: 1, 2, 4 or 8: only then all levels are whole numbers from 0 to 255.

    Raises:
        InputError: If ``bits`` is another number.

    Example:
        >>> data = Discretize(2)(Images(n_examples=1).test("mnist"))
        >>> data.images.unique()
        tensor([  0,  85, 170, 255], dtype=torch.uint8)
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits not in (1, 2, 4, 8):
            raise InputError(
                f"bits per pixel must be 1, 2, 4 or 8, got {self.bits!r}: other levels are not whole bytes"
            )

    def __call__(self, data: ImageSet) -> ImageSet:
        """Discretize an image set."""
        values = quantize_unit(data.images.float() / 255, self.bits)
        return replace(data, images=(values * 255).round().to(torch.uint8))


_FINISHED = "finished.json"


@dataclass(frozen=True, eq=False)
class Trainer:
    """Loads the networks that are not part of this package, and trains them on demand.

    Args:
        workspace: Folder of checkpoints and weights.
        images: Training images.
        device: Device to train on.
        on_step: Called after every training step.
    """

    workspace: Workspace
    images: ImageSource
    device: torch.device
    on_step: Callable[[Step], None] | None = None

    def user_file(self, model: str) -> Path:
        """Path at which the user supplies the weights of a named model."""
        return self.workspace.user_weights / f"{model}.safetensors"

    def load_member(self, training: Training, member: str) -> nn.Module:
        """Load a member of a recipe; train the recipe first, or resume its training, if it is not finished.

        Args:
            training: The recipe and the images it is trained on.
            member: Name of the member.

        Raises:
            DataError: If the recipe must be trained and the training images are missing.
            InputError: If the recipe has no such member.
            WeightsError: If the weights are damaged, or were trained by another version of the recipe.
        """
        recipe, bits = find_recipe(training.recipe), training.bits
        member_of(recipe, member)  # Raises for an unknown member before anything is trained.
        digests = self._finished(recipe, bits) or self._train(recipe, bits)
        return load_trained_member(recipe, self._folder(recipe, bits), member, expected_sha256=digests.get(member, ""))

    def is_trained(self, training: Training) -> bool:
        """Whether all members of a recipe are trained.

        Raises:
            WeightsError: If they were trained by another version of the recipe.
        """
        return self._finished(find_recipe(training.recipe), training.bits) is not None

    def _folder(self, recipe: Recipe, bits: int) -> Path:
        return self.workspace.training / _name(recipe, bits)

    def _finished(self, recipe: Recipe, bits: int) -> dict[str, str] | None:
        """SHA-256 of each member's file; None if the training is not finished."""
        path = self._folder(recipe, bits) / _FINISHED
        if not path.is_file():
            return None
        try:
            table: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            trained_by, digests = table["recipe"], dict(table["sha256"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(f"{path} is damaged ({error}): delete the folder {path.parent}") from error
        if trained_by != recipe_digest(recipe):
            raise WeightsError(
                f"the networks in {path.parent} were trained by another version of recipe {recipe.name}: delete that "
                "folder to train them again, or choose another --out"
            )
        return digests

    def _train(self, recipe: Recipe, bits: int) -> dict[str, str]:
        folder, data = self._folder(recipe, bits), self.images.train(recipe.dataset)
        if bits < 8:
            data = Discretize(bits)(data)
        members = train_recipe(recipe, data, folder, device=self.device, on_step=self.on_step)
        digests = {member.name: member.sha256 for member in members}
        reports = self.workspace.records / "training" / _name(recipe, bits)
        reports.mkdir(parents=True, exist_ok=True)
        for member in members:
            shutil.copyfile(folder / f"{member.name}.json", reports / f"{member.name}.json")
        table = {"recipe": recipe_digest(recipe), "sha256": digests}
        write_atomically(folder / _FINISHED, (json.dumps(table, indent=2) + "\n").encode())
        return digests


def _name(recipe: Recipe, bits: int) -> str:
    return recipe.name if bits == 8 else f"{recipe.name}-{bits}bit"


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of all settings of a recipe, as hexadecimal text.

    Example:
        >>> recipe_digest(find_recipe("empir-mnist")) == recipe_digest(find_recipe("empir-cifar"))
        False
    """
    members = [report_settings(member) for member in recipe.members]
    joint = recipe.joint and settings_of(recipe.joint)
    settings = [recipe.architecture, recipe.dataset, members, joint, repr(recipe.holdout)]
    if recipe.finish:
        settings.append(settings_of(recipe.finish))
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Context:
    """Images, networks, settings and output folder, shared by all parts of a reproduction.

    Args:
        workspace: Output folder.
        images: Source of the images.
        settings: Settings of all evaluations.
        on_progress: Called with a short text about the current step.
    """

    workspace: Workspace
    images: ImageSource
    settings: Settings
    on_progress: Callable[[str], None] | None = None
    _loaded: dict[str, ImageSet] = field(default_factory=dict)

    def test(self, dataset: str) -> ImageSet:
        """The images to attack; each data set is loaded once."""
        if dataset not in self._loaded:
            self._loaded[dataset] = self.images.test(dataset)
        return self._loaded[dataset]

    @property
    def trainer(self) -> Trainer:
        """Loads the networks that are not part of this package."""
        return Trainer(self.workspace, self.images, self.settings.device, self._report_step)

    def load(self, subject: Subject) -> nn.Module:
        """Load a network with its weights, after training it if necessary."""
        return subject.load(self.trainer)

    def report(self, note: str) -> None:
        """Report the current step to ``on_progress``."""
        if self.on_progress is not None:
            self.on_progress(note)

    def report_attack(self, progress: Progress) -> None:
        """Report how many images an attack has finished."""
        self.report(" ".join(filter(None, (f"{progress.title} {progress.done}/{progress.total}", progress.note))))

    def _report_step(self, step: Step) -> None:
        self.report(f"training {step.member} {step.step}/{step.steps}, accuracy {step.accuracy:.1%}")
