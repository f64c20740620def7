"""A small recipe with a joint stage, and runs that are killed, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable

from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import pgd
from empir_plugin.training.loop import Step
from empir_plugin.training.objectives import Adversarial
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import TrainedMember
from empir_plugin.training.schedules import JointRecipe, MemberRecipe

ATTACKED = Adversarial(pgd("Linf:0.1", steps=1, ramp=0.5))
FP = MemberRecipe("full", 1, 1, 16, precision=Precision(), objective=ATTACKED)
LP = MemberRecipe("low", 2, 0, 16, precision=Precision(4, 4), scale="max", ema=0.5, start="full")
JOINT = JointRecipe("both", 3, 2, 16, objective=ATTACKED, member_share=0.2)
RECIPE = Recipe("both", "mnistconv", "mnist", (FP, LP), JOINT)


class KilledError(Exception):
    """The run was killed by a test."""


def kill_at(step: int, name: str | None = None) -> Callable[[Step], None]:
    """Kills a run at a step of the member or stage of that name; of any, if it is left out."""

    def on_step(at: Step) -> None:
        if at.step == step and name in (None, at.member):
            raise KilledError

    return on_step


def digests(members: tuple[TrainedMember, ...]) -> list[str]:
    return [member.sha256 for member in members]
