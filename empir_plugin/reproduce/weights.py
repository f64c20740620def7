"""Networks trained on demand: once, and kept for every figure that needs them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from empir_plugin.errors import WeightsError
from empir_plugin.evaluation.files import write_atomically
from empir_plugin.reproduce.images import Discretize, Source
from empir_plugin.reproduce.subjects import Training
from empir_plugin.reproduce.workspace import Workspace
from empir_plugin.training.loop import Step
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import find_recipe, train_recipe
from empir_plugin.training.schedules import reported, settings_of
from empir_plugin.training.trained import load_trained_member, member_of

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
    members = [reported(member) for member in recipe.members]
    joint = recipe.joint and settings_of(recipe.joint)
    told = [recipe.architecture, recipe.dataset, members, joint, repr(recipe.holdout)]
    if recipe.finish:
        told.append(settings_of(recipe.finish))
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
