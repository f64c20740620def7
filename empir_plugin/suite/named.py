"""Attacks by name, as strong as they are worth running."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from empir_plugin.attacks.registry import load_attack
from empir_plugin.evaluation.planned import Planned
from empir_plugin.evaluation.plans import default_plan

_STRONG = "PGD-100"
"""What the default plan calls its PGD, on the model's own output and, for an ensemble, on all members."""


def named_attacks(name: str, model: nn.Module) -> tuple[Planned, ...]:
    """The attacks a name stands for.

    ``pgd`` is that of the default protocol: 100 steps of a quarter of eps, for an ensemble on the mean probability of
    all members as well. Any other name is the discovered attack with its own default settings.

    Args:
        name: As :func:`empir_plugin.attacks.registry.load_attack` takes it.
        model: What will be attacked.

    Raises:
        InputError: If no attack has that name, or it needs settings.

    Example:
        >>> [planned.attack.steps for planned in named_attacks("pgd", nn.Flatten())]
        [100]
    """
    attack = load_attack(name)
    if name.lower() != "pgd":
        return (Planned(name, attack),)
    strong = [planned for planned in default_plan(model, "") if planned.name.startswith(_STRONG)]
    return tuple(replace(planned, name=planned.name.replace(_STRONG, name)) for planned in strong)
