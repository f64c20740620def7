"""The attacks of Song et al., https://arxiv.org/abs/2012.14965: white box, black box, and noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from torch import nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.carlini_wagner import carlini_wagner_of_empir
from empir_plugin.attacks.gradient import bim, fgsm, gaussian_noise, mim, pgd, uniform_noise
from empir_plugin.attacks.threat import Threat
from empir_plugin.attacks.transfer import Transfer
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.protocols import UNBOUNDED, Protocol, adaptive
from empir_plugin.zoo.registry import load_model

TOLD = "the PGD attacks of the protocol adaptive and Square"
"""What it attacks with, in the words of the report."""

_KINDS = ("PGD-100 plain", "PGD-100 mean_probability")
_QUERIES = AttackSpec("Square", AutoAttackSuite(attacks=("square",)), aim="the model's own output, without a gradient")
"""Where one bit leaves no gradient to follow, queries find what PGD does not."""


def _strong_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    ascents = (spec for spec in adaptive.attacks(model, dataset) if spec.name.startswith(_KINDS))
    return (*ascents, _QUERIES)


strong: Protocol = replace(
    adaptive,
    name="strong",
    summary="The attacks of the protocol adaptive that are PGD on the network's own output, or on the mean probability "
    "of all members, through every gradient of the quantizers, and AutoAttack's Square; for each image the worst.",
    rules=("No APGD, no FAB, no transfer: the whole of adaptive may leave less.", *adaptive.rules[1:]),
    plan=_strong_plan,
)
"""For figures of dozens of networks; Table 2 has ``adaptive`` itself."""


@dataclass(frozen=True)
class Strengths:
    """The radii of a data set, which the paper does not give.

    Args:
        weak: The smallest.
        medium: The one between.
        strong: The largest, also that of the attacks with many steps.
        source: Model on which black-box images are made.
    """

    weak: Threat
    medium: Threat
    strong: Threat
    source: str


STRENGTHS: Mapping[str, Strengths] = MappingProxyType(
    {
        "mnist": Strengths(*map(Threat.parse, ("Linf:0.1", "Linf:0.2", "Linf:0.3")), source="mnistconv-fp"),
        "cifar10": Strengths(*map(Threat.parse, ("Linf:2/255", "Linf:4/255", "Linf:8/255")), source="cifarconv-fp"),
    }
)

WHITE = ("CW", "FGSM weak", "FGSM strong", "PGD", "BIM", "MIM")
BLACK = ("transferred CW", "transferred FGSM weak", "transferred FGSM medium", "transferred FGSM strong")
NOISE = ("normal noise", "uniform noise")


def _strengths_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """White box in the paper's order, then black box, then noise."""
    found = STRENGTHS[dataset]
    eps = found.strong.eps
    white = (
        AttackSpec("CW", carlini_wagner_of_empir(), threat=UNBOUNDED),
        AttackSpec("FGSM weak", fgsm(), threat=found.weak),
        AttackSpec("FGSM strong", fgsm(), threat=found.strong),
        AttackSpec("PGD", pgd(40, step_size=eps / 30), threat=found.strong),
        AttackSpec("BIM", bim(10, step_size=eps / 6), threat=found.strong),
        AttackSpec("MIM", mim(10, step_size=eps / 5), threat=found.strong),
    )
    noise = (
        AttackSpec("normal noise", gaussian_noise(), threat=found.strong),
        AttackSpec("uniform noise", uniform_noise(), threat=found.strong),
    )
    return (*white, *_black(found), *noise)


def _black(found: Strengths) -> tuple[AttackSpec, ...]:
    source = load_model(found.source).requires_grad_(False)
    aim = f"{found.source}, and shows the result to the model"

    def moved(name: str, attack: Attack, threat: Threat) -> AttackSpec:
        return AttackSpec(f"transferred {name}", Transfer(source, attack), threat=threat, aim=aim)

    one = replace(fgsm(), return_last=True)
    return (
        moved("CW", carlini_wagner_of_empir(), UNBOUNDED),
        moved("FGSM weak", one, found.weak),
        moved("FGSM medium", one, found.medium),
        moved("FGSM strong", one, found.strong),
    )


quantized_weights = Protocol(
    "weight-quantized",
    "The attacks of Tables 1 to 4 of Song et al. (https://arxiv.org/abs/2012.14965), with strengths chosen here.",
    ("White-box attacks differentiate the model's own output; true labels.", "CW has no budget."),
    _strengths_plan,
)
"""All attacks of the paper's four tables."""
