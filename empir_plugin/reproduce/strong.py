"""Strong attacks that whole figures can afford: the PGD attacks of the protocol ``adaptive``, and Square."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.evaluation.planned import Planned
from empir_plugin.evaluation.protocols import Protocol, adaptive

TOLD = "the PGD attacks of the protocol adaptive and Square"
"""What it attacks with, in the words of the report."""

_KINDS = ("PGD-100 plain", "PGD-100 mean_probability")
_QUERIES = Planned("Square", AutoAttackSuite(attacks=("square",)), aim="the model's own output, without a gradient")
"""Where one bit leaves no gradient to follow, queries find what PGD does not."""


def _plan(model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    ascents = (planned for planned in adaptive.attacks(model, dataset) if planned.name.startswith(_KINDS))
    return (*ascents, _QUERIES)


strong: Protocol = replace(
    adaptive,
    name="strong",
    summary="The attacks of the protocol adaptive that are PGD on the network's own output, or on the mean probability "
    "of all members, through every gradient of the quantizers, and AutoAttack's Square; for each image the worst.",
    rules=("No APGD, no FAB, no transfer: the whole of adaptive may leave less.", *adaptive.rules[1:]),
    plan=_plan,
)
"""For figures of dozens of networks; Table 2 has ``adaptive`` itself."""
