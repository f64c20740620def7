"""From the outcomes of shards to the columns of a record."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import Planned
from empir_plugin.evaluation.identity import describe
from empir_plugin.evaluation.outcome import Outcome
from empir_plugin.evaluation.queries import square_flags
from empir_plugin.evaluation.record import AttackRecord, PartRecord, percent

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def verdicts(outcomes: Sequence[Outcome], labels: Tensor) -> str:
    """One character per image: 1 where the decision is the label.

    Args:
        outcomes: Of all shards, in order.
        labels: True classes ``(N,)``.

    Example:
        >>> import torch
        >>> verdicts([Outcome((3, 1), 0.0, 1), Outcome((-1,), 0.0, 1)], torch.tensor([3, 2, 0]))
        '100'
    """
    decided = [decision for outcome in outcomes for decision in outcome.decisions]
    return "".join("1" if decision == label else "0" for decision, label in zip(decided, labels.tolist(), strict=True))


def attack_record(planned: Planned, threat: Threat, outcomes: Sequence[Outcome], labels: Tensor) -> AttackRecord:
    """What one attack left, over all shards in order."""
    robust, parts = verdicts(outcomes, labels), _parts(outcomes)
    left = {part.name: part.robust.count("1") / len(part.robust) for part in parts}
    return AttackRecord(
        name=planned.name,
        settings=_settings(planned),
        robust=robust,
        accuracy=percent(robust),
        seconds=round(sum(outcome.seconds for outcome in outcomes), 2),
        flags=(*_flags(outcomes), *square_flags(left)),
        rules=planned.describe(),
        threat=str(planned.threat or threat),
        in_worst_case=planned.counts_under(threat),
        parts=parts,
    )


def _settings(planned: Planned) -> str:
    try:
        return describe(planned.attack)
    except InputError:
        return repr(planned.attack)


def _parts(outcomes: Sequence[Outcome]) -> tuple[PartRecord, ...]:
    names = next(([name for name, _ in outcome.parts] for outcome in outcomes if outcome.parts), [])
    columns = {name: "".join(dict(o.parts).get(name, "0" * len(o.decisions)) for o in outcomes) for name in names}
    return tuple(PartRecord(name, robust, percent(robust)) for name, robust in columns.items())


def _flags(outcomes: Sequence[Outcome]) -> tuple[str, ...]:
    """Each warning once, however many shards gave it with numbers of their own."""
    found: dict[str, list[str]] = {}
    for outcome in outcomes:
        for kind, flag in {_NUMBER.sub("#", flag): flag for flag in outcome.flags}.items():
            found.setdefault(kind, []).append(flag)
    return tuple(
        flags[0] if len(flags) == 1 else f"{flags[0]} (and likewise in {len(flags) - 1} more of {len(outcomes)} shards)"
        for flags in found.values()
    )
