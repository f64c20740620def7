"""The protocol ``adaptive``: every way in that we know, AutoAttack as RobustBench runs it first, then cheap ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.losses import CrossEntropy, Loss, cross_entropy, margin
from empir_plugin.attacks.member_rules import MeanLogits
from empir_plugin.attacks.on_member import OnMember
from empir_plugin.attacks.starts import StepOfEps
from empir_plugin.attacks.surrogates import (
    Surrogate,
    mean_logits,
    mean_probability,
    member,
    plain,
    reweighted,
    sharpened_vote,
)
from empir_plugin.attacks.through import Through
from empir_plugin.evaluation.planned import Planned
from empir_plugin.evaluation.plans import standard_plan
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import is_full_precision

_STEPS = 100
# Where activations saturate, short steps stay on the plateau they start from.
_LONG = replace(pgd(_STEPS), step_size=StepOfEps(0.25))
_TEMPERATURES = 10.0, 100.0
_REWEIGHTINGS = 1.0, 0.1


def adaptive_plan(model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    """Attacks that fit the model: an ensemble's members and a quantizer's clip get their own."""
    smooth, another = _smooth(model)
    looks: list[Surrogate] = [smooth]
    if not is_full_precision(model):
        looks += [Through(smooth, identity), Through(smooth, soft)]
    # AutoAttack on what the model itself puts out would be the first attack once more.
    others = looks if _votes(model) else looks[1:]
    return (
        # First, so that in a cascade, too, its number is its own, and what a store has of it serves both protocols.
        *standard_plan(model, dataset),
        *(_pgd(look, loss) for look in looks for loss in (cross_entropy, margin)),
        *(_on_members(model) if isinstance(model, Ensemble) else _heated()),
        *(_autoattack(look, "apgd-ce", "apgd-t") for look in others),
        *([_autoattack(another, "apgd-t")] if another else []),
        *([_autoattack(smooth, "square")] if _votes(model) else []),
    )


def _smooth(model: nn.Module) -> tuple[Surrogate, Surrogate | None]:
    """The smooth function nearest to the decision, of an ensemble a mean over its members, and then the other mean."""
    if not isinstance(model, Ensemble):
        return plain, None
    if isinstance(model.rule, MeanLogits):
        return mean_logits, mean_probability
    return mean_probability, mean_logits


def _votes(model: nn.Module) -> bool:
    """Whether it is an ensemble that puts out something else than a mean over its members."""
    return isinstance(model, Ensemble) and not isinstance(model.rule, (MeanProbability, MeanLogits))


def _pgd(surrogate: Surrogate, loss: Loss = cross_entropy, note: str = "") -> Planned:
    told = note or ("" if loss == cross_entropy else " margin")
    return Planned(
        f"PGD-{_STEPS} {surrogate}{told}",
        replace(_LONG, loss=loss, surrogate=surrogate),
        aim=f"the surrogate {surrogate}, by the whole model's decision",
    )


def _heated() -> Iterator[Planned]:
    """PGD++, https://arxiv.org/abs/2003.13511: saturated logits divided until their gradient is back."""
    return (_pgd(plain, CrossEntropy(heat), f" temperature {heat:g}") for heat in _TEMPERATURES)


def _on_members(model: Ensemble) -> Iterator[Planned]:
    """Ways in that an ensemble has: its votes at other temperatures and weights, and its members one by one."""
    yield from (_pgd(sharpened_vote(heat)) for heat in _TEMPERATURES)
    yield from (_pgd(reweighted(heat)) for heat in _REWEIGHTINGS)
    for index, part in enumerate(model.members):
        alone = member(index)
        yield _pgd(alone if is_full_precision(part) else Through(alone, identity), margin)
    for index in range(len(model.members)):
        yield Planned(
            f"transfer from member {index}",
            OnMember(index, replace(_LONG, loss=margin, return_last=True)),
            aim=f"member {index} alone, by the whole model's decision on the result",
        )


def _autoattack(surrogate: Surrogate, *parts: str) -> Planned:
    return Planned(
        f"{' + '.join(parts)} {surrogate}",
        AutoAttackSuite(attacks=parts, surrogate=surrogate),
        aim=f"the surrogate {surrogate}, by the whole model's decision",
    )
