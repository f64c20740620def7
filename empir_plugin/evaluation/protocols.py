"""Protocols: which attacks, aimed at what, told which labels, judged how. Two protocols' numbers never mix."""

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
from empir_plugin.models.ensemble import Ensemble, MeanLogits, MeanProbability
from empir_plugin.models.layers import is_full_precision

UNBOUNDED = Threat.parse("L2:inf")
"""Carlini and Wagner's attack as both the paper and the release run it."""

ALEXNET_UNIT = 0.226
"""One of the release's units on ImageNet, where images are divided by a deviation per channel (0.224 to 0.229): the
mean of the three, in units of the image."""

_STEP = 0.01
_BATCH = 100


def standard_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """AutoAttack alone."""
    return (AttackSpec("AutoAttack", AutoAttackSuite()),)


def default_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """FGSM, PGD with 100 steps of a quarter of eps, the same on all members of an ensemble, and AutoAttack.

    Where activations saturate, short steps stay on the plateau they start from.
    """
    long_steps = replace(pgd(100), step_size=StepOfEps(0.25))
    everybody = replace(long_steps, surrogate=mean_probability)
    on_members = (AttackSpec("PGD-100 mean_probability", everybody),) if isinstance(model, Ensemble) else ()
    return (AttackSpec("FGSM", fgsm()), AttackSpec("PGD-100", long_steps), *on_members, *standard_plan(model, dataset))


def paper_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """Table 1 of the paper, in the order of Table 2. PGD has 40 iterations, on AlexNet 5."""
    gradients: Surrogate = voters if isinstance(model, Ensemble) else plain
    steps = 5 if dataset == "imagenet" else 40
    return (
        AttackSpec("CW", carlini_wagner_of_empir(surrogate=gradients), threat=UNBOUNDED),
        AttackSpec("FGSM", fgsm(surrogate=gradients)),
        AttackSpec("BIM", bim(40, step_size=_STEP, surrogate=gradients)),
        AttackSpec("PGD", pgd(steps, step_size=_STEP, surrogate=gradients)),
    )


def released_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
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


def _as_released(name: str, attack: Attack, aim: str = "the model; nothing stops at a success") -> AttackSpec:
    return AttackSpec(name, attack, Labels.OWN, attack_all=True, aim=aim)


def _on_voters(model: nn.Module, name: str, attack: Attack) -> AttackSpec:
    if not isinstance(model, Ensemble):
        return _as_released(name, attack)
    aim = "the softmax of the voters' mean probability, taken for logits; nothing stops at a success"
    return _as_released(name, attack, aim)


def _on_last_member(model: nn.Module, name: str, attack: Attack) -> AttackSpec:
    """An attack on the member the release's graph returns by mistake: the last built, its full-precision one."""
    if not isinstance(model, Ensemble):
        return _as_released(name, attack)
    index = len(model.members) - 1 if model.leader is None else model.leader
    who = "the last member" if model.leader is None else "the full-precision member"
    return _as_released(name, OnMember(index, attack), f"{who} (number {index}) alone; success is that member's")


_STEPS = 100
# Where activations saturate, short steps stay on the plateau they start from.
_LONG = replace(pgd(_STEPS), step_size=StepOfEps(0.25))
_TEMPERATURES = 10.0, 100.0
_REWEIGHTINGS = 1.0, 0.1


def adaptive_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
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


def _pgd(surrogate: Surrogate, loss: Loss = cross_entropy, note: str = "") -> AttackSpec:
    told = note or ("" if loss == cross_entropy else " margin")
    return AttackSpec(
        f"PGD-{_STEPS} {surrogate}{told}",
        replace(_LONG, loss=loss, surrogate=surrogate),
        aim=f"the surrogate {surrogate}, by the whole model's decision",
    )


def _heated() -> Iterator[AttackSpec]:
    """PGD++, https://arxiv.org/abs/2003.13511: saturated logits divided until their gradient is back."""
    return (_pgd(plain, CrossEntropy(heat), f" temperature {heat:g}") for heat in _TEMPERATURES)


def _on_members(model: Ensemble) -> Iterator[AttackSpec]:
    """Ways in that an ensemble has: its votes at other temperatures and weights, and its members one by one."""
    yield from (_pgd(sharpened_vote(heat)) for heat in _TEMPERATURES)
    yield from (_pgd(reweighted(heat)) for heat in _REWEIGHTINGS)
    for index, part in enumerate(model.members):
        alone = member(index)
        yield _pgd(alone if is_full_precision(part) else Through(alone, identity), margin)
    for index in range(len(model.members)):
        yield AttackSpec(
            f"transfer from member {index}",
            OnMember(index, replace(_LONG, loss=margin, return_last=True)),
            aim=f"member {index} alone, by the whole model's decision on the result",
        )


def _autoattack(surrogate: Surrogate, *parts: str) -> AttackSpec:
    return AttackSpec(
        f"{' + '.join(parts)} {surrogate}",
        AutoAttackSuite(attacks=parts, surrogate=surrogate),
        aim=f"the surrogate {surrogate}, by the whole model's decision",
    )


Plan = Callable[[nn.Module, str], tuple[AttackSpec, ...]]
"""Gives the attacks for a model and the name of its data set."""


class Headline(Enum):
    """The one number a protocol is quoted by."""

    WORST_CASE = "share of images that withstood every bounded attack"
    AVERAGE = "mean of the attacks' accuracies"


@dataclass(frozen=True, eq=False)
class Protocol:
    """A named way to evaluate.

    Args:
        name: What ``--protocol`` calls it.
        summary: What it is, in a sentence.
        rules: What a reader must know to read its numbers, a sentence each; part of every output.
        plan: Its attacks.
        threats: Its threat by name of the data set; empty where the caller names one.
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
            dataset: What it is evaluated on; ``imagenet`` has settings of its own in the paper and in the release.
        """
        return self.plan(model, dataset)

    def threat(self, dataset: str) -> Threat | None:
        """The threat this protocol prescribes on a data set, or None where the caller names one."""
        return self.threats.get(dataset)

    def describe(self) -> str:
        """What its numbers mean, as a paragraph for outputs."""
        return " ".join([f"Protocol {self.name}: {self.summary}", *self.rules, f"Headline: {self.headline.value}."])


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
    "REPRODUCES THE RELEASED CODE of EMPIR (https://github.com/sancharisen/EMPIR), slips included; not a measure of "
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
    "Every way in that is known here, and for each image the worst of them.",
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
