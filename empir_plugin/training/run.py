"""Train every member of a recipe, and leave files that can be loaded, published and resumed."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.packing import save_packed
from empir_plugin.training.checkpoint import REPORT
from empir_plugin.training.derived import recipe_names as recipe_names
from empir_plugin.training.derived import recipe_text
from empir_plugin.training.handover import before_finish
from empir_plugin.training.loop import Step
from empir_plugin.training.recipe import HoldOut, Recipe
from empir_plugin.training.schedules import Schedule, reported
from empir_plugin.training.workshop import Result, Workshop


@dataclass(frozen=True)
class TrainedMember:
    """What training one member gave.

    Args:
        name: Of the member.
        weights: Packed weight file.
        sha256: Of that file.
        history: One mapping per epoch: loss, accuracy on the training batches, seconds; first those it was trained in
            alone, then those of the whole ensemble.
    """

    name: str
    weights: Path
    sha256: str
    history: tuple[dict[str, float], ...]


def find_recipe(text: str) -> Recipe:
    """A recipe of this package by name, or one from a TOML file by path.

    Raises:
        InputError: If it is neither, or the file is no recipe.

    Example:
        >>> [member.name for member in find_recipe("empir-cifar").members]
        ['cifarconv-w4a2', 'cifarconv-w2a2', 'cifarconv-fp']
    """
    if text in recipe_names():
        return Recipe.parse(recipe_text(text))
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
    finish_from: Path | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[TrainedMember, ...]:
    """Train a recipe's members one after the other, and then together, if it says so.

    Leaves in ``out``: a checkpoint of every run; for every member packed weights and its history; and once all are done
    the whole ensemble's plain state dict, ``<recipe>.safetensors``, which RobustBench takes as ``custom_checkpoint``.
    Members that are trained together get their weight files after that. A recipe with ``[finish]`` has those before it
    in ``out/joint``, and goes on from these files.

    Args:
        recipe: What to train, and how.
        data: Training images of the recipe's data set.
        out: Folder for the files; made if it is missing.
        device: Where to compute; the CPU by default.
        resume: Go on from checkpoints in ``out``.
        finish_from: Folder with the files before ``[finish]``; then only that is run.
        on_step: Told after every step.

    Raises:
        InputError: If the architecture is unknown, the data set is another one, or there is no ``[finish]`` to run.
        WeightsError: If a checkpoint in ``out``, or a file in ``finish_from``, is damaged or belongs to another run.
        EvaluationError: If a loss is no longer finite.
    """
    _check(recipe, data)
    if finish_from and not recipe.finish:
        raise InputError(f"recipe {recipe.name} has no [finish] to run from {finish_from}: leave finish_from out")
    out.mkdir(parents=True, exist_ok=True)
    workshop = Workshop(recipe, *_split(data, recipe.holdout), out, device, resume, on_step)
    folder = out / "joint" if recipe.finish else out
    results, published = ({}, {}) if finish_from else _train(workshop, folder)
    if recipe.finish:
        earlier = before_finish(recipe, finish_from or folder, data, device)
        results = earlier | _named(workshop.together("finish", recipe.finish, earlier))
        published = {name: _publish(result, out) for name, result in results.items()}
    final = [result.model for result in results.values() if result.recipe.in_ensemble]
    _save_state(Ensemble(final), out / f"{recipe.name}.safetensors")
    return tuple(published[member.name] for member in recipe.members)


def _train(workshop: Workshop, folder: Path) -> tuple[dict[str, Result], dict[str, TrainedMember]]:
    """Every member alone, and then all together; their files go to the folder as soon as they are done."""
    recipe, results, published = workshop.recipe, dict[str, Result](), dict[str, TrainedMember]()
    for member in recipe.members:
        results[member.name] = workshop.alone(member, results)
        if not recipe.joint or not member.in_ensemble:
            published[member.name] = _publish(results[member.name], folder)
    if recipe.joint:
        together = _named(workshop.together("joint", recipe.joint, results))
        published |= {name: _publish(result, folder) for name, result in together.items()}
        results |= together
    return results, published


def _named(results: list[Result]) -> dict[str, Result]:
    return {result.recipe.name: result for result in results}


def _split(data: ImageSet, holdout: HoldOut | None) -> tuple[ImageSet, ImageSet | None]:
    if holdout is None:
        return data, None
    rest = len(data) - holdout.images
    return data.first(rest), replace(data, images=data.images[rest:], labels=data.labels[rest:])


def _check(recipe: Recipe, data: ImageSet) -> None:
    if recipe.dataset != data.name:
        raise InputError(f"recipe {recipe.name} is for {recipe.dataset}, got images of {data.name}")
    runs: list[Schedule] = [*recipe.members, *recipe.stages.values()]
    largest = max(run.batch_size for run in runs)
    images = len(data) - (recipe.holdout.images if recipe.holdout else 0)
    if images < largest:
        raise InputError(f"{images} training images are fewer than a batch of {largest}: lower batch_size")


def _publish(result: Result, out: Path) -> TrainedMember:
    member = result.recipe
    weights = out / f"{member.name}.safetensors"
    out.mkdir(parents=True, exist_ok=True)
    digest = save_packed(result.model, weights)
    own = result.history[: member.epochs]
    report = {
        "recipe": reported(member),
        "sha256": digest,
        "threads": torch.get_num_threads(),
        "history": own,
        **result.report,
    }
    REPORT.write(out / f"{member.name}.json", report)
    return TrainedMember(member.name, weights, digest, result.history)


def _save_state(model: nn.Module, path: Path) -> None:
    partial = path.with_suffix(".partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}, partial)
    os.replace(partial, path)
