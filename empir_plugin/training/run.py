"""Train every member of a recipe, and leave files that can be loaded, published and resumed."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.evaluation.identity import describe
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.packing import save_packed
from empir_plugin.training.checkpoint import REPORT
from empir_plugin.training.loop import Step, Task, Trained, fit, parts_of
from empir_plugin.training.networks import first_network, load_trained_member
from empir_plugin.training.objectives import DistilledFrom, Objective
from empir_plugin.training.recipe import HoldOut, Recipe, recipe_text
from empir_plugin.training.recipe import recipe_names as recipe_names
from empir_plugin.training.schedules import JointRecipe, MemberRecipe, RecipeObjective, Schedule, reported, settings_of
from empir_plugin.training.selection import Selection, select
from empir_plugin.zoo.card import RULES


@dataclass(frozen=True, eq=False)
class Result:
    """A member on its way.

    Args:
        recipe: How it is made.
        model: Its network, as far as it is trained.
        history: One mapping per epoch.
        report: What else its report will say.
    """

    recipe: MemberRecipe
    model: nn.Module
    history: tuple[dict[str, float], ...] = ()
    report: Mapping[str, object] = field(default_factory=dict)

    def went_on(self, model: nn.Module, history: tuple[dict[str, float], ...], report: Mapping[str, object]) -> Result:
        """The member after one more run; what the earlier runs reported stays, unless this one says it anew."""
        return replace(self, model=model, history=(*self.history, *history), report={**self.report, **report})


@dataclass(frozen=True, eq=False)
class Workshop:
    """What every run of a recipe shares.

    Args:
        recipe: What is made.
        training: Images to train on.
        kept_back: Images to choose weights on, if any.
        out: Folder of the checkpoints.
        device: Where to compute; None for the CPU.
        resume: Whether to go on from checkpoints.
        on_step: Told after every step.
    """

    recipe: Recipe
    training: ImageSet
    kept_back: ImageSet | None
    out: Path
    device: torch.device | None
    resume: bool
    on_step: Callable[[Step], None] | None

    def alone(self, member: MemberRecipe, earlier: Mapping[str, Result]) -> Result:
        """Train one member; with the result go its scores, unless it is to be trained further."""
        start = earlier[member.start].model.state_dict() if member.start else None
        model = first_network(self.recipe.architecture, member, self.training, start).to(self.device)
        if not member.epochs:
            return Result(member, model)
        objective = _bound(member.objective, earlier)
        facts = self._facts(objective, member.objective, model if member.start else None)
        task = Task(member, objective, (member.ema,), facts)
        trained = self._fit(model, task)
        selection = self._select(trained, task, final=self._is_final(member))
        return Result(member, selection.model, trained.history, _scores(selection))

    def together(self, table: str, stage: JointRecipe, earlier: Mapping[str, Result]) -> list[Result]:
        """Train the ensemble of all members, as the recipe's table of this name says."""
        results = [result for result in earlier.values() if result.recipe.in_ensemble]
        ensemble = Ensemble([result.model.requires_grad_(True) for result in results], RULES[stage.rule])
        objective = _bound(stage.objective, earlier)
        decays = tuple(result.recipe.ema for result in results)
        facts = {**self._facts(objective, stage.objective, ensemble), "decays": repr(decays)}
        task = Task(stage, objective, decays, facts)
        trained = self._fit(ensemble, task)
        selection = self._select(trained, task, final=True)
        report = {table: {"recipe": settings_of(stage), "history": trained.history}, **_scores(selection)}
        pairs = zip(results, parts_of(selection.model), strict=True)
        return [result.went_on(model, trained.history, report) for result, model in pairs]

    def _facts(self, objective: Objective, written: RecipeObjective, start: nn.Module | None) -> dict[str, str]:
        """What a run depends on beside its own schedule: architecture, teacher, and the weights it starts from."""
        # Several architectures are of one class, with weights of the same names and shapes.
        facts = {"architecture": self.recipe.architecture}
        if objective is not written:
            facts["objective"] = describe(objective)
        if start is not None:
            facts["start"] = hashlib.sha256(describe(dict(start.state_dict())).encode()).hexdigest()
        return facts

    def _is_final(self, member: MemberRecipe) -> bool:
        """Whether the weights a member has after training alone are its last, and so may be chosen on the holdout."""
        if member.in_ensemble:
            return self.recipe.joint is None
        # A first stage hands on its average, as it does where the second stage is a joint one: both start alike.
        return all(other.start != member.name for other in self.recipe.members)

    def _fit(self, model: nn.Module, task: Task) -> Trained:
        checkpoint = self.out / f"{task.schedule.run}.checkpoint.safetensors"
        return fit(model, task, self.training, checkpoint, device=self.device, resume=self.resume, on_step=self.on_step)

    def _select(self, trained: Trained, task: Task, *, final: bool) -> Selection:
        return select(trained, task.decays, self.kept_back if final else None, self.recipe.holdout)


def _bound(objective: RecipeObjective, earlier: Mapping[str, Result]) -> Objective:
    if not isinstance(objective, DistilledFrom):
        return objective
    return objective.by(copy.deepcopy(earlier[objective.teacher].model).requires_grad_(False))


def _scores(selection: Selection) -> dict[str, object]:
    return {"holdout": [asdict(score) for score in selection.scores]} if selection.scores else {}


def before_finish(
    recipe: Recipe, folder: Path, images: ImageSet, device: torch.device | None = None
) -> dict[str, Result]:
    """All members of a recipe as they are before its ``[finish]``, from their files.

    The weights are those in the files: latent ones of low precision are some that quantize to these.

    Args:
        recipe: What is trained.
        folder: A packed weight file and a report for every member.
        images: Some of the recipe's data set.
        device: Where the members go; the CPU by default.

    Raises:
        WeightsError: If a file is missing, damaged, or not what this recipe trains before ``[finish]``.
    """
    results = (_result(recipe, member, folder, images) for member in recipe.members)
    return {result.recipe.name: replace(result, model=result.model.to(device)) for result in results}


def _result(recipe: Recipe, member: MemberRecipe, folder: Path, images: ImageSet) -> Result:
    told = REPORT.read(folder / f"{member.name}.json", lambda table: _checked(recipe, member, table))
    model = load_trained_member(recipe, folder, member.name, images=images, expected_sha256=told["sha256"])
    stage = told.get("joint", {}).get("history", [])
    kept = {key: told[key] for key in ("joint", "holdout") if key in told}
    return Result(member, model, (*told["history"], *stage), kept)


def _checked(recipe: Recipe, member: MemberRecipe, table: dict[str, Any]) -> dict[str, Any]:
    """A report, if it is of this very training."""
    stages = {"joint": settings_of(recipe.joint)} if recipe.joint and member.in_ensemble else {}
    wanted = {"recipe": reported(member), **stages}
    found = {"recipe": table["recipe"], **{key: table[key]["recipe"] for key in ("joint", "finish") if key in table}}
    if found != wanted:
        cure = f"hand in what recipe {recipe.name} leaves before [finish]"
        raise InputError(f"member {member.name!r} was trained otherwise, or further: {cure}")
    return table


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
