"""Protocols: which attacks, aimed at what, told which labels, judged how. Two protocols' numbers never mix."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

from torch import nn

from empir_plugin.attacks.norms import Linf
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.adaptive import adaptive_plan
from empir_plugin.evaluation.planned import Labels as Labels
from empir_plugin.evaluation.planned import Planned as Planned
from empir_plugin.evaluation.plans import ALEXNET_UNIT, default_plan, paper_plan, released_plan, standard_plan

Plan = Callable[[nn.Module, str], tuple[Planned, ...]]
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
        >>> [planned.name for planned in parse_protocol("paper").attacks(nn.Flatten())]
        ['CW', 'FGSM', 'BIM', 'PGD']
    """

    name: str
    summary: str
    rules: tuple[str, ...]
    plan: Plan
    threats: Mapping[str, Threat] = field(default_factory=lambda: MappingProxyType({}))
    headline: Headline = Headline.WORST_CASE

    def attacks(self, model: nn.Module, dataset: str = "") -> tuple[Planned, ...]:
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
