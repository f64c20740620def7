"""Protocols: named sets of attacks, with the threat, the labels and the rule by which their accuracies are read.

A new protocol is a plan, which chooses the attacks for a model, and an entry of ``PROTOCOLS``. Results of different
protocols are never combined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from types import MappingProxyType

from torch import nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.carlini_wagner import carlini_wagner_of_empir
from empir_plugin.attacks.gradient import bim, fgsm, pgd
from empir_plugin.attacks.losses import CrossEntropy, Loss, cross_entropy, margin, softmax_twice
from empir_plugin.attacks.starts import StepOfEps
from empir_plugin.attacks.surrogates import (
    MeanLogits,
    Surrogate,
    Through,
    mean_logits,
    mean_probability,
    member,
    plain,
    reweighted,
    sharpened_vote,
    voters,
)
from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.attacks.transfer import OnMember
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import is_full_precision

Plan = Callable[[nn.Module, str], tuple[AttackSpec, ...]]
"""From a model and the name of its data set to the attacks on it."""


class Headline(Enum):
    """The number a protocol is quoted by."""

    WORST_CASE = "share of images that are robust to every bounded attack"
    AVERAGE = "mean of the attacks' accuracies"


@dataclass(frozen=True, eq=False)
class Protocol:
    """A named way to evaluate.

    Args:
        name: Name for ``--protocol``.
        summary: One sentence.
        rules: What a reader must know to interpret its numbers, one sentence each; part of every output.
        plan: Chooses its attacks.
        threats: Its threat by name of the data set; empty if the caller chooses one.
        headline: The number to quote.

    Example:
        >>> [spec.name for spec in parse_protocol("paper").attacks(nn.Flatten())]
        ['CW', 'FGSM', 'BIM', 'PGD']
    """

    name: str
    summary: str
    rules: tuple[str, ...]
    plan: Plan
    threats: Mapping[str, Threat] = field(default_factory=lambda: MappingProxyType({}))
    headline: Headline = Headline.WORST_CASE

    def attacks(self, model: nn.Module, dataset: str = "") -> tuple[AttackSpec, ...]:
        """The attacks on a model, in order.

        Args:
            model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``; an ensemble is attacked as one.
            dataset: Name of the data set; ``imagenet`` has its own settings in the paper and in the release.
        """
        return self.plan(model, dataset)

    def threat(self, dataset: str) -> Threat | None:
        """The threat this protocol prescribes on a data set, or None if the caller chooses one."""
        return self.threats.get(dataset)

    def describe(self) -> str:
        """What its numbers mean, as a paragraph for records."""
        return " ".join([f"Protocol {self.name}: {self.summary}", *self.rules, f"Headline: {self.headline.value}."])


UNBOUNDED = Threat.parse("L2:inf")
"""The budget of Carlini and Wagner's attack in both the paper and the release."""

ALEXNET_UNIT = 0.226
"""One of the release's units on ImageNet, where images are divided by a deviation per channel (0.224 to 0.229): the
mean of the three, in units of the image."""

_STEPS = 100
_LONG_STEPS = replace(pgd(_STEPS), step_size=StepOfEps(0.25))
"""PGD with steps of a quarter of eps: where activations saturate, short steps stay on the plateau they start from."""

_RELEASED_STEP_SIZE = 0.01
_RELEASED_BATCH_SIZE = 100


def standard_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """AutoAttack alone."""
    return (AttackSpec("AutoAttack", AutoAttackSuite()),)


def default_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """FGSM, PGD with 100 long steps, the same on the mean probability of all members of an ensemble, and AutoAttack."""
    pgd_100 = [AttackSpec(f"PGD-{_STEPS}", _LONG_STEPS)]
    if isinstance(model, Ensemble):
        pgd_100.append(AttackSpec(f"PGD-{_STEPS} mean_probability", replace(_LONG_STEPS, surrogate=mean_probability)))
    return (AttackSpec("FGSM", fgsm()), *pgd_100, *standard_plan(model, dataset))


def paper_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """Table 1 of the paper, in the order of Table 2. PGD has 40 iterations, on AlexNet 5."""
    gradients: Surrogate = voters if isinstance(model, Ensemble) else plain
    steps = 5 if dataset == "imagenet" else 40
    return (
        AttackSpec("CW", carlini_wagner_of_empir(surrogate=gradients), threat=UNBOUNDED),
        AttackSpec("FGSM", fgsm(surrogate=gradients)),
        AttackSpec("BIM", bim(40, step_size=_RELEASED_STEP_SIZE, surrogate=gradients)),
        AttackSpec("PGD", pgd(steps, step_size=_RELEASED_STEP_SIZE, surrogate=gradients)),
    )


def released_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """The attacks of the published code, in the order of Table 2; PGD has 40 iterations on every data set."""
    step = _RELEASED_STEP_SIZE * ALEXNET_UNIT if dataset == "imagenet" else _RELEASED_STEP_SIZE
    gradients, loss = _released_gradient(model)
    fgsm_released = replace(fgsm(loss=loss, surrogate=gradients), return_last=True)
    bim_released = replace(bim(40, step_size=step), return_last=True)
    pgd_released = pgd(40, step_size=step, loss=loss, surrogate=gradients)
    pgd_released = replace(pgd_released, start_in_box=False, return_last=True)
    cw_released = carlini_wagner_of_empir(abort_together=True)
    return (
        replace(_on_last_member(model, "CW", cw_released), threat=UNBOUNDED, batch_size=_RELEASED_BATCH_SIZE),
        _on_voters(model, "FGSM", fgsm_released),
        _on_last_member(model, "BIM", bim_released),
        _on_voters(model, "PGD", pgd_released),
    )


def _released_gradient(model: nn.Module) -> tuple[Surrogate, Loss]:
    """What the release's FGSM and PGD differentiate; it takes an ensemble's probabilities for logits."""
    return (voters, softmax_twice) if isinstance(model, Ensemble) else (plain, cross_entropy)


def _released_spec(name: str, attack: Attack, aim: str = "the model; nothing stops at a success") -> AttackSpec:
    return AttackSpec(name, attack, Labels.OWN, attack_all=True, aim=aim)


def _on_voters(model: nn.Module, name: str, attack: Attack) -> AttackSpec:
    if not isinstance(model, Ensemble):
        return _released_spec(name, attack)
    aim = "the softmax of the voters' mean probability, taken for logits; nothing stops at a success"
    return _released_spec(name, attack, aim)


def _on_last_member(model: nn.Module, name: str, attack: Attack) -> AttackSpec:
    """An attack on the member the release's graph returns by mistake: the last built, its full-precision one."""
    if not isinstance(model, Ensemble):
        return _released_spec(name, attack)
    index = len(model.members) - 1 if model.leader is None else model.leader
    who = "the last member" if model.leader is None else "the full-precision member"
    return _released_spec(name, OnMember(index, attack), f"{who} (number {index}) alone; success is that member's")


_TEMPERATURES = 10.0, 100.0
_REWEIGHTINGS = 1.0, 0.1


def adaptive_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """All attacks of this package that fit the model; members and quantizers' clips get attacks of their own."""
    smooth, other_mean = _smooth_surrogates(model)
    surrogates: list[Surrogate] = [smooth]
    if not is_full_precision(model):
        surrogates += [Through(smooth, identity), Through(smooth, soft)]
    # AutoAttack on the model's own output would repeat the first attack.
    for_autoattack = surrogates if _votes(model) else surrogates[1:]
    return (
        # First, so that in a cascade it is given all images, and its finished shards serve the protocol standard, too.
        *standard_plan(model, dataset),
        *(_pgd(surrogate, loss) for surrogate in surrogates for loss in (cross_entropy, margin)),
        *(_on_members(model) if isinstance(model, Ensemble) else _at_temperatures()),
        *(_autoattack(surrogate, "apgd-ce", "apgd-t") for surrogate in for_autoattack),
        *([_autoattack(other_mean, "apgd-t")] if other_mean else []),
        *([_autoattack(smooth, "square")] if _votes(model) else []),
    )


def _smooth_surrogates(model: nn.Module) -> tuple[Surrogate, Surrogate | None]:
    """The smooth function closest to the decision, and for an ensemble the other mean over its members."""
    if not isinstance(model, Ensemble):
        return plain, None
    if isinstance(model.rule, MeanLogits):
        return mean_logits, mean_probability
    return mean_probability, mean_logits


def _votes(model: nn.Module) -> bool:
    """Whether it is an ensemble whose output is not a mean over all its members."""
    return isinstance(model, Ensemble) and not isinstance(model.rule, (MeanProbability, MeanLogits))


def _pgd(surrogate: Surrogate, loss: Loss = cross_entropy, note: str = "") -> AttackSpec:
    suffix = note or ("" if loss == cross_entropy else " margin")
    return AttackSpec(
        f"PGD-{_STEPS} {surrogate}{suffix}",
        replace(_LONG_STEPS, loss=loss, surrogate=surrogate),
        aim=f"the surrogate {surrogate}, by the whole model's decision",
    )


def _at_temperatures() -> Iterator[AttackSpec]:
    """PGD++, https://arxiv.org/abs/2003.13511: PGD on saturated logits divided by a temperature."""
    return (_pgd(plain, CrossEntropy(temperature), f" temperature {temperature:g}") for temperature in _TEMPERATURES)


def _on_members(model: Ensemble) -> Iterator[AttackSpec]:
    """An ensemble's votes at other temperatures and weights, and its members one by one."""
    yield from (_pgd(sharpened_vote(temperature)) for temperature in _TEMPERATURES)
    yield from (_pgd(reweighted(temperature)) for temperature in _REWEIGHTINGS)
    for index, part in enumerate(model.members):
        alone = member(index)
        yield _pgd(alone if is_full_precision(part) else Through(alone, identity), margin)
    for index in range(len(model.members)):
        yield AttackSpec(
            f"transfer from member {index}",
            OnMember(index, replace(_LONG_STEPS, loss=margin, return_last=True)),
            aim=f"member {index} alone, by the whole model's decision on the result",
        )


def _autoattack(surrogate: Surrogate, *parts: str) -> AttackSpec:
    return AttackSpec(
        f"{' + '.join(parts)} {surrogate}",
        AutoAttackSuite(attacks=parts, surrogate=surrogate),
        aim=f"the surrogate {surrogate}, by the whole model's decision",
    )


def _threats(imagenet: float) -> Mapping[str, Threat]:
    by_name = {"mnist": Threat.parse("Linf:0.3"), "cifar10": Threat.parse("Linf:0.1")}
    return MappingProxyType({**by_name, "imagenet": Threat(Linf(), imagenet)})


standard = Protocol(
    "standard",
    "AutoAttack (https://arxiv.org/abs/2003.01690), standard version, as RobustBench runs it.",
    ("It differentiates the model's own output; true labels.",),
    standard_plan,
)

default = Protocol(
    "default",
    "FGSM, PGD with 100 steps of a quarter of eps, and standard AutoAttack.",
    (
        "All differentiate the model's own output; where members vote, that is the mean probability of those that "
        "voted for the winner. On ensembles PGD also runs on the mean probability of all members.",
        "True labels.",
    ),
    default_plan,
)

paper = Protocol(
    "paper",
    "The attacks of Table 1 of the EMPIR paper (https://openreview.net/forum?id=HJem3yHKwH), as the paper words them.",
    (
        "All four attack the ensemble, by the gradient of Section 4.2: the members that voted for the winner.",
        "True labels; CW has no budget.",
        "The published numbers do not come from this: see the protocol released.",
    ),
    paper_plan,
    _threats(0.1),
    Headline.AVERAGE,
)

released = Protocol(
    "released",
    "REPRODUCES THE RELEASED CODE of EMPIR (https://github.com/sancharisen/EMPIR), mistakes included; not a measure of "
    "robustness.",
    (
        "Labels are the model's own clean predictions; all images are attacked, and an image counts if the decision on "
        "the result is the true label, so that a misclassified one can be pushed into the right class.",
        "CW and BIM never see the ensemble: they attack its full-precision member alone, and CW judges its success "
        "there.",
        "FGSM and PGD climb the cross-entropy of the softmax of the voters' mean probability: a double softmax.",
        "PGD's random start is not clipped to [0, 1] before its first gradient; every attack returns its last iterate.",
        "CW has no budget and one constant, and gives up on batches of 100 images together.",
        "On ImageNet the release attacks images divided by a deviation per channel and clipped outside the range of "
        f"images: here eps and step are 0.1 and 0.01 times {ALEXNET_UNIT:g}, and images stay in [0, 1].",
    ),
    released_plan,
    _threats(0.1 * ALEXNET_UNIT),
    Headline.AVERAGE,
)

adaptive = Protocol(
    "adaptive",
    "All attacks of this package that fit the model, and for each image the worst of them.",
    (
        "AutoAttack as RobustBench runs it; then PGD with 100 steps and AutoAttack on several surrogates of the vote, "
        "through the clip of quantizers by other gradients (identity, soft), at other temperatures and weights of the "
        "members, on each member, by transfer from each member, and by queries alone (Square).",
        "True labels; success is the whole model's decision everywhere.",
    ),
    adaptive_plan,
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {protocol.name: protocol for protocol in (standard, default, paper, released, adaptive)}
)


def parse_protocol(text: str) -> Protocol:
    """A protocol by its name.

    Raises:
        InputError: If there is none of that name.

    Example:
        >>> parse_protocol("standard").headline.name
        'WORST_CASE'
    """
    if text not in PROTOCOLS:
        raise InputError(f"a protocol is one of {', '.join(PROTOCOLS)}, got {text!r}")
    return PROTOCOLS[text]
