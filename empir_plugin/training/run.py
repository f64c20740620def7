"""Training a recipe: each member alone, then optionally all together, with files to load, publish and resume from."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from empir_plugin._files.tensor_files import save_tensors
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.evaluation.identity import describe
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import quantized_layers
from empir_plugin.models.packing import save_packed
from empir_plugin.training.checkpoint import checkpoint_file, make_folder
from empir_plugin.training.loop import Step, Task, TrainedNetwork, fit, parts_of
from empir_plugin.training.networks import full_precision_definition, initial_network, load_trained_member
from empir_plugin.training.objectives import DistilledFrom, Objective
from empir_plugin.training.recipe import HoldOut, Recipe
from empir_plugin.training.schedules import (
    JointRecipe,
    MemberRecipe,
    RecipeObjective,
    Schedule,
    report_settings,
    settings_of,
)
from empir_plugin.training.selection import WeightSelection, select_weights
from empir_plugin.zoo.card import RULES
from empir_plugin.zoo.definition import REPORT, NetworkDefinition, ensemble_table, network_table


@dataclass(frozen=True)
class TrainedMember:
    """The published result of training one member.

    Args:
        name: Name of the member.
        weights: Packed weight file.
        sha256: SHA-256 of that file.
        history: One mapping per epoch: loss, accuracy on the training batches, seconds; first the epochs trained alone,
            then those of the whole ensemble.
    """

    name: str
    weights: Path
    sha256: str
    history: tuple[dict[str, float], ...]


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
    """Train a recipe's members one after the other and then, if the recipe says so, together.

    Writes to ``out``: a checkpoint of each run; packed weights and a report of each member; and finally the state dict
    of the whole ensemble, ``<recipe>.safetensors``, which RobustBench accepts as ``custom_checkpoint``, with a report
    that names the members. Members that
    are trained together are written after that. For a recipe with ``[finish]``, the files before that stage are written
    to ``out/joint``, and the stage starts from them.

    Args:
        recipe: The recipe to train.
        data: Training images of the recipe's data set.
        out: Output folder; created if missing.
        device: Device to train on; the CPU by default.
        resume: Whether to resume from checkpoints in ``out``.
        finish_from: Folder with the files before ``[finish]``; if given, only that stage is run.
        on_step: Called after every step.

    Returns:
        The trained members, in the recipe's order.

    Raises:
        InputError: If the architecture is unknown, the data set is another one, or there is no ``[finish]`` to run.
        WeightsError: If a checkpoint in ``out`` or a file in ``finish_from`` is damaged or belongs to another run, or a
            file cannot be written.
        EvaluationError: If a loss is no longer finite.
    """
    _check(recipe, data)
    if finish_from and not recipe.finish:
        raise InputError(f"recipe {recipe.name} has no [finish] to run from {finish_from}: leave finish_from out")
    make_folder(out)
    trainer = RecipeTrainer(recipe, *_split(data, recipe.holdout), out, device, resume, on_step)
    folder = out / "joint" if recipe.finish else out
    members, published = ({}, {}) if finish_from else _train(trainer, folder)
    if recipe.finish:
        earlier = load_before_finish(recipe, finish_from or folder, data, device)
        members = earlier | _by_name(trainer.train_together("finish", recipe.finish, earlier))
        published = {name: _publish(trainer, member, out) for name, member in members.items()}
    final = [member.model for member in members.values() if member.recipe.in_ensemble]
    _save_state_dict(Ensemble(final), out / f"{recipe.name}.safetensors")
    _write_ensemble_report(recipe, out)
    return tuple(published[member.name] for member in recipe.members)


def _check(recipe: Recipe, data: ImageSet) -> None:
    if recipe.dataset != data.name:
        raise InputError(f"recipe {recipe.name} is for {recipe.dataset}, got images of {data.name}")
    runs: list[Schedule] = [*recipe.members, *recipe.stages.values()]
    largest = max(run.batch_size for run in runs)
    images = len(data) - (recipe.holdout.images if recipe.holdout else 0)
    if images < largest:
        raise InputError(f"{images} training images are fewer than a batch of {largest}: lower batch_size")


def _split(data: ImageSet, holdout: HoldOut | None) -> tuple[ImageSet, ImageSet | None]:
    """Images to train on, and held-out images."""
    if holdout is None:
        return data, None
    rest = len(data) - holdout.images
    return data.first(rest), replace(data, images=data.images[rest:], labels=data.labels[rest:])


def _train(trainer: RecipeTrainer, folder: Path) -> tuple[dict[str, MemberState], dict[str, TrainedMember]]:
    """Train each member alone and then all together; each is published to the folder as soon as it is final."""
    recipe, members, published = trainer.recipe, dict[str, MemberState](), dict[str, TrainedMember]()
    for member in recipe.members:
        members[member.name] = trainer.train_alone(member, members)
        if not recipe.joint or not member.in_ensemble:
            published[member.name] = _publish(trainer, members[member.name], folder)
    if recipe.joint:
        together = _by_name(trainer.train_together("joint", recipe.joint, members))
        published |= {name: _publish(trainer, member, folder) for name, member in together.items()}
        members |= together
    return members, published


@dataclass(frozen=True, eq=False)
class MemberState:
    """A member between two runs.

    Args:
        recipe: Its schedule and precision.
        model: Its network, as trained so far.
        history: One mapping per epoch.
        report: Further entries of its report.
    """

    recipe: MemberRecipe
    model: nn.Module
    history: tuple[dict[str, float], ...] = ()
    report: Mapping[str, object] = field(default_factory=dict)

    def after_run(
        self, model: nn.Module, history: tuple[dict[str, float], ...], report: Mapping[str, object]
    ) -> MemberState:
        """The member after one more run, whose report entries replace earlier ones of the same name."""
        return replace(self, model=model, history=(*self.history, *history), report={**self.report, **report})


def _by_name(members: list[MemberState]) -> dict[str, MemberState]:
    return {member.recipe.name: member for member in members}


@dataclass(frozen=True, eq=False)
class RecipeTrainer:
    """Trains the members of one recipe, alone or together.

    Args:
        recipe: The recipe.
        training: Images to train on.
        held_out: Images to select weights on, if any.
        out: Folder of the checkpoints.
        device: Device to train on; None for the CPU.
        resume: Whether to resume from checkpoints.
        on_step: Called after every step.
    """

    recipe: Recipe
    training: ImageSet
    held_out: ImageSet | None
    out: Path
    device: torch.device | None
    resume: bool
    on_step: Callable[[Step], None] | None

    def train_alone(self, member: MemberRecipe, earlier: Mapping[str, MemberState]) -> MemberState:
        """Train one member; if no further run follows, its weights are selected on the held-out images."""
        start = earlier[member.start].model.state_dict() if member.start else None
        model = initial_network(self.recipe.architecture, member, self.training, start).to(self.device)
        if not member.epochs:
            return MemberState(member, model)
        objective = _with_teacher(member.objective, earlier)
        facts = self._facts(objective, member.objective, model if member.start else None)
        task = Task(member, objective, (member.ema,), facts)
        trained = self._fit(model, task)
        selection = self._select(trained, task, final=self._is_final(member))
        return MemberState(member, selection.model, trained.history, _scores(selection))

    def train_together(self, table: str, stage: JointRecipe, earlier: Mapping[str, MemberState]) -> list[MemberState]:
        """Train the ensemble of all members by one of the recipe's stages, given with the name of its table."""
        members = [member for member in earlier.values() if member.recipe.in_ensemble]
        ensemble = Ensemble([member.model.requires_grad_(True) for member in members], RULES[stage.rule])
        objective = _with_teacher(stage.objective, earlier)
        decays = tuple(member.recipe.ema for member in members)
        facts = {**self._facts(objective, stage.objective, ensemble), "decays": repr(decays)}
        task = Task(stage, objective, decays, facts)
        trained = self._fit(ensemble, task)
        selection = self._select(trained, task, final=True)
        report = {table: {"recipe": settings_of(stage), "history": trained.history}, **_scores(selection)}
        pairs = zip(members, parts_of(selection.model), strict=True)
        return [member.after_run(model, trained.history, report) for member, model in pairs]

    def _facts(self, objective: Objective, declared: RecipeObjective, start: nn.Module | None) -> dict[str, str]:
        """What a run depends on besides its schedule: architecture, teacher and initial weights."""
        # Several architectures share one class, with weights of the same names and shapes.
        facts = {"architecture": self.recipe.architecture}
        if objective is not declared:
            facts["objective"] = describe(objective)
        if start is not None:
            facts["start"] = hashlib.sha256(describe(dict(start.state_dict())).encode()).hexdigest()
        return facts

    def _is_final(self, member: MemberRecipe) -> bool:
        """Whether no further run of this member follows."""
        if member.in_ensemble:
            return self.recipe.joint is None
        # A member that another one starts from hands on its average, as before a joint run, so both start alike.
        return all(other.start != member.name for other in self.recipe.members)

    def _fit(self, model: nn.Module, task: Task) -> TrainedNetwork:
        checkpoint = checkpoint_file(self.out, task.schedule.run)
        return fit(model, task, self.training, checkpoint, device=self.device, resume=self.resume, on_step=self.on_step)

    def _select(self, trained: TrainedNetwork, task: Task, *, final: bool) -> WeightSelection:
        return select_weights(trained, task.decays, self.held_out if final else None, self.recipe.holdout)


def _with_teacher(objective: RecipeObjective, earlier: Mapping[str, MemberState]) -> Objective:
    if not isinstance(objective, DistilledFrom):
        return objective
    return objective.with_teacher(copy.deepcopy(earlier[objective.teacher].model).requires_grad_(False))


def _scores(selection: WeightSelection) -> dict[str, object]:
    return {"holdout": [asdict(score) for score in selection.scores]} if selection.scores else {}


def load_before_finish(
    recipe: Recipe, folder: Path, images: ImageSet, device: torch.device | None = None
) -> dict[str, MemberState]:
    """Load all members of a recipe as they are before its stage ``[finish]``.

    The files hold quantized weights, so the latent weights of low-precision members are not the trained ones, but
    values that quantize to the same levels.

    Args:
        recipe: The recipe.
        folder: Folder with a packed weight file and a report of each member.
        images: Some images of the recipe's data set.
        device: Device of the members; the CPU by default.

    Raises:
        WeightsError: If a file is missing or damaged, or its training does not match the recipe before ``[finish]``.
    """
    members = (_load_member(recipe, member, folder, images) for member in recipe.members)
    return {member.recipe.name: replace(member, model=member.model.to(device)) for member in members}


def _load_member(recipe: Recipe, member: MemberRecipe, folder: Path, images: ImageSet) -> MemberState:
    report = REPORT.read(folder / f"{member.name}.json", lambda table: _check_report(recipe, member, table))
    model = load_trained_member(recipe, folder, member.name, images=images, expected_sha256=report["sha256"])
    joint_history = report.get("joint", {}).get("history", [])
    kept = {key: report[key] for key in ("joint", "holdout") if key in report}
    return MemberState(member, model, (*report["history"], *joint_history), kept)


def _check_report(recipe: Recipe, member: MemberRecipe, report: dict[str, Any]) -> dict[str, Any]:
    """The report itself, checked to describe the training of this recipe before ``[finish]``."""
    stages = {"joint": settings_of(recipe.joint)} if recipe.joint and member.in_ensemble else {}
    expected = {"recipe": report_settings(member), **stages}
    trained = {key: report[key]["recipe"] for key in ("joint", "finish") if key in report}
    if {"recipe": report["recipe"], **trained} != expected:
        cure = f"pass the folder that recipe {recipe.name} writes before [finish]"
        raise InputError(f"member {member.name!r} was trained by another schedule, or by [finish] already: {cure}")
    return report


def _publish(trainer: RecipeTrainer, state: MemberState, out: Path) -> TrainedMember:
    """Write a member's packed weights and its report, which says how its network is built."""
    member = state.recipe
    weights = out / f"{member.name}.safetensors"
    make_folder(out)
    digest = save_packed(state.model, weights)
    report = {
        "recipe": report_settings(member),
        "sha256": digest,
        **network_table(_definition(trainer, state)),
        "threads": torch.get_num_threads(),
        "history": state.history[: member.epochs],
        **state.report,
    }
    REPORT.write(out / f"{member.name}.json", report)
    return TrainedMember(member.name, weights, digest, state.history)


def _definition(trainer: RecipeTrainer, state: MemberState) -> NetworkDefinition:
    definition = full_precision_definition(trainer.recipe.architecture, trainer.training)
    member, quantized = state.recipe, quantized_layers(state.model)
    layers = tuple(name for name, layer in quantized if not layer.precision.is_full)
    how = {"scale": member.scale, "activations": member.activations, "layers": layers}
    return replace(definition, precision=member.precision, **how)


def _write_ensemble_report(recipe: Recipe, out: Path) -> None:
    members = [member.name for member in recipe.members if member.in_ensemble]
    threat = recipe.holdout.threat if recipe.holdout else None
    table = ensemble_table(members, "max_vote", recipe.dataset, "" if threat is None else str(threat))
    REPORT.write(out / f"{recipe.name}.json", table)


def _save_state_dict(model: nn.Module, path: Path) -> None:
    try:
        save_tensors(path, {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()})
    except OSError as error:
        raise WeightsError(f"{path} cannot be written ({error.strerror or error}): free some space") from error
