"""Attacks by name, the same ones on the command line, in pytest and in Python."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from empir_plugin._entry_points import find
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.registry import attacks, load_attack
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.protocols import Protocol, default_plan

NamedAttack = str | AttackSpec | Attack
"""An attack by its name, with its specification, or as such."""

_STRONG = "PGD-100"
"""Prefix of the default protocol's PGD attacks: on the model's output and, for an ensemble, on all members."""


def named_attacks(
    name: str, model: nn.Module, protocol: Protocol | None = None, dataset: str = ""
) -> tuple[AttackSpec, ...]:
    """The attacks that a name stands for; case, ``-`` and ``_`` make no difference.

    A name of the protocol's is that attack. ``pgd`` is the PGD of the default protocol: 100 steps of size eps / 4, and
    for an ensemble also on the mean probability of all members. Any other name is the registered attack with its
    default settings.

    Args:
        name: As :func:`empir_plugin.attacks.registry.load_attack` takes it, or as the protocol calls it.
        model: The model to attack.
        protocol: A protocol with names of its own.
        dataset: Name of the data set, for a protocol that distinguishes them.

    Raises:
        InputError: If no attack has that name, or it needs settings.

    Example:
        >>> [spec.attack.steps for spec in named_attacks("pgd", nn.Flatten())]
        [100]
    """
    own = {} if protocol is None else {spec.name: spec for spec in protocol.attacks(model, dataset)}
    if (spec := find(own, name)) is not None:
        return (spec,)
    try:
        attack = load_attack(name)
    except InputError as error:
        if not own:
            raise
        raise InputError(f"{error}; protocol {protocol.name if protocol else ''} has {', '.join(own)}") from error
    plain = next((known for known in attacks() if find({known: known}, name)), name)
    if plain != "pgd":
        return (AttackSpec(plain, attack),)
    strong = [spec for spec in default_plan(model, "") if spec.name.startswith(_STRONG)]
    return tuple(replace(spec, name=spec.name.replace(_STRONG, plain)) for spec in strong)


def attack_specs(
    chosen: Sequence[NamedAttack], model: nn.Module, protocol: Protocol | None = None, dataset: str = ""
) -> tuple[AttackSpec, ...]:
    """The specifications of attacks, with a number behind every repeated name.

    Args:
        chosen: The attacks.
        model: The model to attack.
        protocol: See :func:`named_attacks`.
        dataset: See :func:`named_attacks`.

    Raises:
        InputError: If an attack is not known, or is none.

    Example:
        >>> [spec.name for spec in attack_specs(["fgsm", "FGSM", "square"], nn.Flatten())]
        ['fgsm', 'fgsm 2', 'square']
    """
    return _number_duplicates([spec for attack in chosen for spec in _specs(attack, model, protocol, dataset)])


def _specs(attack: NamedAttack, model: nn.Module, protocol: Protocol | None, dataset: str) -> Sequence[AttackSpec]:
    if isinstance(attack, str):
        return named_attacks(attack, model, protocol, dataset)
    if not isinstance(attack, AttackSpec) and not callable(attack):
        raise InputError(f"an attack is a name such as 'pgd', an AttackSpec or a callable, got {attack!r}")
    return [attack if isinstance(attack, AttackSpec) else AttackSpec(name_of(attack), attack)]


def _number_duplicates(specs: Sequence[AttackSpec]) -> tuple[AttackSpec, ...]:
    seen: Counter[str] = Counter()
    numbered: list[AttackSpec] = []
    for spec in specs:
        seen[spec.name] += 1
        number = seen[spec.name]
        numbered.append(spec if number == 1 else replace(spec, name=f"{spec.name} {number}"))
    return tuple(numbered)


def name_of(attack: NamedAttack) -> str:
    """The name of an attack in tables.

    Example:
        >>> from empir_plugin.attacks import fgsm
        >>> name_of("pgd"), name_of(fgsm())
        ('pgd', 'GradientAttack')
    """
    if isinstance(attack, str):
        return attack
    if isinstance(attack, AttackSpec):
        return attack.name
    return getattr(attack, "__name__", type(attack).__name__)
