"""Which attacks a protocol runs on a model: one function per protocol; ``adaptive`` has a module of its own."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.carlini_wagner import carlini_wagner_of_empir
from empir_plugin.attacks.gradient import bim, fgsm, pgd
from empir_plugin.attacks.losses import Loss, cross_entropy, softmax_twice
from empir_plugin.attacks.on_member import OnMember
from empir_plugin.attacks.starts import StepOfEps
from empir_plugin.attacks.surrogates import Surrogate, mean_probability, plain, voters
from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.planned import Labels, Planned
from empir_plugin.models.ensemble import Ensemble

UNBOUNDED = Threat.parse("L2:inf")
"""Carlini and Wagner's attack as both the paper and the release run it."""

ALEXNET_UNIT = 0.226
"""One of the release's units on ImageNet, where images are divided by a deviation per channel (0.224 to 0.229): the
mean of the three, in units of the image."""

_STEP = 0.01
_BATCH = 100


def standard_plan(model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    """AutoAttack alone."""
    return (Planned("AutoAttack", AutoAttackSuite()),)


def default_plan(model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    """FGSM, PGD with 100 steps of a quarter of eps, the same on all members of an ensemble, and AutoAttack.

    Where activations saturate, short steps stay on the plateau they start from.
    """
    long_steps = replace(pgd(100), step_size=StepOfEps(0.25))
    everybody = replace(long_steps, surrogate=mean_probability)
    on_members = (Planned("PGD-100 mean_probability", everybody),) if isinstance(model, Ensemble) else ()
    return (Planned("FGSM", fgsm()), Planned("PGD-100", long_steps), *on_members, *standard_plan(model, dataset))


def paper_plan(model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    """Table 1 of the paper, in the order of Table 2. PGD has 40 iterations, on AlexNet 5."""
    gradients: Surrogate = voters if isinstance(model, Ensemble) else plain
    steps = 5 if dataset == "imagenet" else 40
    return (
        Planned("CW", carlini_wagner_of_empir(surrogate=gradients), threat=UNBOUNDED),
        Planned("FGSM", fgsm(surrogate=gradients)),
        Planned("BIM", bim(40, step_size=_STEP, surrogate=gradients)),
        Planned("PGD", pgd(steps, step_size=_STEP, surrogate=gradients)),
    )


def released_plan(model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    """What the published code does, in the order of Table 2; 40 iterations of PGD on every data set."""
    step = _STEP * ALEXNET_UNIT if dataset == "imagenet" else _STEP
    gradients, loss = _graph_of_release(model)
    one = replace(fgsm(loss=loss, surrogate=gradients), return_last=True)
    ascent = replace(bim(40, step_size=step), return_last=True)
    outside = pgd(40, step_size=step, loss=loss, surrogate=gradients)
    outside = replace(outside, start_in_box=False, return_last=True)
    smallest = carlini_wagner_of_empir(abort_together=True)
    return (
        replace(_on_last_member(model, "CW", smallest), threat=UNBOUNDED, batch_size=_BATCH),
        _on_voters(model, "FGSM", one),
        _on_last_member(model, "BIM", ascent),
        _on_voters(model, "PGD", outside),
    )


def _graph_of_release(model: nn.Module) -> tuple[Surrogate, Loss]:
    """What the release's FGSM and PGD differentiate: only an ensemble's probabilities are taken for logits."""
    return (voters, softmax_twice) if isinstance(model, Ensemble) else (plain, cross_entropy)


def _as_released(name: str, attack: Attack, aim: str = "the model; nothing stops at a success") -> Planned:
    return Planned(name, attack, Labels.OWN, attack_all=True, aim=aim)


def _on_voters(model: nn.Module, name: str, attack: Attack) -> Planned:
    if not isinstance(model, Ensemble):
        return _as_released(name, attack)
    aim = "the softmax of the voters' mean probability, taken for logits; nothing stops at a success"
    return _as_released(name, attack, aim)


def _on_last_member(model: nn.Module, name: str, attack: Attack) -> Planned:
    """An attack on the member the release's graph returns by mistake: the last built, its full-precision one."""
    if not isinstance(model, Ensemble):
        return _as_released(name, attack)
    index = len(model.members) - 1 if model.leader is None else model.leader
    who = "the last member" if model.leader is None else "the full-precision member"
    return _as_released(name, OnMember(index, attack), f"{who} (number {index}) alone; success is that member's")
