"""A strong attack that whole figures can afford: the PGD attacks of the protocol ``adaptive``, without AutoAttack."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from empir_plugin.evaluation.planned import Planned
from empir_plugin.evaluation.protocols import Protocol, adaptive

_KINDS = ("PGD-100 plain", "PGD-100 mean_probability")


def _plan(model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    return tuple(planned for planned in adaptive.attacks(model, dataset) if planned.name.startswith(_KINDS))


strong: Protocol = replace(
    adaptive,
    name="strong",
    summary="The attacks of the protocol adaptive that are PGD on the network's own output, or on the mean probability "
    "of all members, through every gradient of the quantizers; for each image the worst of them.",
    rules=("No AutoAttack and no transfer: what it leaves is at least what adaptive leaves.", *adaptive.rules[1:]),
    plan=_plan,
)
"""For figures of dozens of networks; Table 2 has ``adaptive`` itself."""
