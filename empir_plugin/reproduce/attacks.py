"""Protocols of the reproduction: strong attacks affordable on many networks, and the attacks of Song et al."""

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

STRONG_ATTACKS = "Square and the PGD attacks of the protocol adaptive"
"""The attacks of :data:`strong` as the report writes them."""

_PGD = ("PGD-100 plain", "PGD-100 mean_probability")
_SQUARE = AttackSpec("Square", AutoAttackSuite(attacks=("square",)), aim="the model's own output, without a gradient")
"""Needs no gradient, so it also breaks networks whose one-bit quantizers give PGD none."""


def _strong_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    pgds = (spec for spec in adaptive.attacks(model, dataset) if spec.name.startswith(_PGD))
    return (*pgds, _SQUARE)


strong: Protocol = replace(
    adaptive,
    name="strong",
    summary="The attacks of the protocol adaptive that are PGD on the network's own output, or on the mean probability "
    "of all members, through every gradient of the quantizers, and AutoAttack's Square; for each image the worst.",
    rules=("No APGD, no FAB, no transfer: the whole of adaptive may leave less.", *adaptive.rules[1:]),
    plan=_strong_plan,
)
"""For figures with dozens of networks; Table 2 uses ``adaptive`` itself."""


@dataclass(frozen=True)
class Strengths:
    """Threats and black-box source for a data set: Song et al., https://arxiv.org/abs/2012.14965, give neither.

    Args:
        weak: Threat of weak FGSM.
        medium: Threat of medium FGSM.
        strong: Threat of strong FGSM, and of the iterative attacks.
        source: Model on which black-box adversarial images are computed.
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
"""The strengths chosen here, by data set."""

WHITE = ("CW", "FGSM weak", "FGSM strong", "PGD", "BIM", "MIM")
BLACK = ("transferred CW", "transferred FGSM weak", "transferred FGSM medium", "transferred FGSM strong")
NOISE = ("normal noise", "uniform noise")
"""Names of the attacks, in the order of the paper's columns."""


def _strengths_plan(model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    """White-box attacks in the paper's order, then black-box attacks, then noise."""
    strengths = STRENGTHS[dataset]
    eps = strengths.strong.eps
    white = (
        AttackSpec("CW", carlini_wagner_of_empir(), threat=UNBOUNDED),
        AttackSpec("FGSM weak", fgsm(), threat=strengths.weak),
        AttackSpec("FGSM strong", fgsm(), threat=strengths.strong),
        AttackSpec("PGD", pgd(40, step_size=eps / 30), threat=strengths.strong),
        AttackSpec("BIM", bim(10, step_size=eps / 6), threat=strengths.strong),
        AttackSpec("MIM", mim(10, step_size=eps / 5), threat=strengths.strong),
    )
    noise = (
        AttackSpec("normal noise", gaussian_noise(), threat=strengths.strong),
        AttackSpec("uniform noise", uniform_noise(), threat=strengths.strong),
    )
    return (*white, *_black_box(strengths), *noise)


def _black_box(strengths: Strengths) -> tuple[AttackSpec, ...]:
    source = load_model(strengths.source).requires_grad_(False)
    aim = f"{strengths.source}, and shows the result to the model"

    def transferred(name: str, attack: Attack, threat: Threat) -> AttackSpec:
        return AttackSpec(f"transferred {name}", Transfer(source, attack), threat=threat, aim=aim)

    single_step = replace(fgsm(), return_last=True)
    return (
        transferred("CW", carlini_wagner_of_empir(), UNBOUNDED),
        transferred("FGSM weak", single_step, strengths.weak),
        transferred("FGSM medium", single_step, strengths.medium),
        transferred("FGSM strong", single_step, strengths.strong),
    )


quantized_weights = Protocol(
    "weight-quantized",
    "The attacks of Tables 1 to 4 of Song et al. (https://arxiv.org/abs/2012.14965), with strengths chosen here.",
    ("White-box attacks differentiate the model's own output; true labels.", "CW has no budget."),
    _strengths_plan,
)
"""The attacks of Tables 1 to 4 of Song et al., https://arxiv.org/abs/2012.14965."""
