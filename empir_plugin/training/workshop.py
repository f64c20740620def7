"""Where a recipe's networks are made: each alone, starting from another or taught by one, and then all together."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import nn

from empir_plugin.evaluation.data import ImageSet
from empir_plugin.evaluation.identity import describe
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.training.averages import parts_of
from empir_plugin.training.distillation import DistilledFrom
from empir_plugin.training.loop import Step, Task, Trained, fit
from empir_plugin.training.networks import first_network
from empir_plugin.training.objective_tables import RecipeObjective
from empir_plugin.training.objectives import Objective
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.schedules import JointRecipe, MemberRecipe, settings_of
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
