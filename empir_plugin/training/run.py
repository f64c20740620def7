"""Train every member of a recipe, and leave files that can be loaded, published and resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.models.architectures import ARCHITECTURES
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.packing import save_packed
from empir_plugin.training.loop import Step, train_member
from empir_plugin.training.recipe import MemberRecipe, Recipe


@dataclass(frozen=True)
class TrainedMember:
    """What training one member gave.

    Args:
        name: Of the member.
        weights: Packed weight file.
        sha256: Of that file.
        history: One mapping per epoch: loss, accuracy on the training batches, seconds.
    """

    name: str
    weights: Path
    sha256: str
    history: tuple[dict[str, float], ...]


def recipe_names() -> tuple[str, ...]:
    """Names of the recipes that travel with this package.

    Example:
        >>> "empir-cifar" in recipe_names()
        True
    """
    folder = files("empir_plugin.training").joinpath("recipes")
    return tuple(sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml")))


def find_recipe(text: str) -> Recipe:
    """A recipe of this package by name, or one from a TOML file by path.

    Raises:
        InputError: If it is neither, or the file is no recipe.

    Example:
        >>> [member.name for member in find_recipe("empir-cifar").members]
        ['cifarconv-w4a2', 'cifarconv-w2a2', 'cifarconv-fp']
    """
    if text in recipe_names():
        return Recipe.parse((files("empir_plugin.training") / "recipes" / f"{text}.toml").read_text("utf-8"))
    if text.endswith(".toml"):
        return Recipe.read(Path(text))
    raise InputError(f"no recipe {text!r}: use one of {', '.join(recipe_names())}, or a path that ends in .toml")


def train_recipe(
    recipe: Recipe,
    data: ImageSet,
    out: Path,
    *,
    device: torch.device | None = None,
    resume: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[TrainedMember, ...]:
    """Train a recipe's members one after the other.

    Leaves in ``out``: for every member a checkpoint, packed weights and its history; and once all are done the whole
    ensemble's plain state dict, ``<recipe>.safetensors``, which RobustBench takes as ``custom_checkpoint``.

    Args:
        recipe: What to train, and how.
        data: Training images of the recipe's data set.
        out: Folder for the files; made if it is missing.
        device: Where to compute; the CPU by default.
        resume: Go on from checkpoints in ``out``.
        on_step: Told after every step.

    Raises:
        InputError: If the architecture is unknown or the data set is another one.
        WeightsError: If a checkpoint in ``out`` is damaged or belongs to another run.
        EvaluationError: If a loss is no longer finite.
    """
    _check(recipe, data)
    out.mkdir(parents=True, exist_ok=True)
    trained: list[tuple[TrainedMember, nn.Module]] = []
    for member in recipe.members:
        model = _initialise(recipe.architecture, member, data.num_classes)
        checkpoint = out / f"{member.name}.checkpoint.safetensors"
        result, history = train_member(model, member, data, checkpoint, device=device, resume=resume, on_step=on_step)
        trained.append((_publish(result, member, history, out), result))
    _save_state(Ensemble([model for _, model in trained]), out / f"{recipe.name}.safetensors")
    return tuple(member for member, _ in trained)


def _check(recipe: Recipe, data: ImageSet) -> None:
    if recipe.architecture not in ARCHITECTURES:
        raise InputError(f"architecture must be one of {', '.join(ARCHITECTURES)}, got {recipe.architecture!r}")
    if recipe.dataset != data.name:
        raise InputError(f"recipe {recipe.name} is for {recipe.dataset}, got images of {data.name}")
    largest = max(member.batch_size for member in recipe.members)
    if len(data) < largest:
        raise InputError(f"{len(data)} training images are fewer than a batch of {largest}: lower batch_size")


def _initialise(architecture: str, member: MemberRecipe, num_classes: int) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(member.seed)
        return ARCHITECTURES[architecture](member.precision, scale=member.scale, num_classes=num_classes)


def _publish(model: nn.Module, member: MemberRecipe, history: tuple[dict[str, float], ...], out: Path) -> TrainedMember:
    weights = out / f"{member.name}.safetensors"
    digest = save_packed(model, weights)
    settings = {**asdict(member), "precision": str(member.precision)}
    report = {"recipe": settings, "sha256": digest, "threads": torch.get_num_threads(), "history": history}
    (out / f"{member.name}.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return TrainedMember(member.name, weights, digest, history)


def _save_state(model: nn.Module, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, partial)
    os.replace(partial, path)
