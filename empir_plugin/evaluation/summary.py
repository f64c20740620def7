"""From the outcomes of shards to a run record."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from empir_plugin.attacks.autoattack import square_flags
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Evaluator
from empir_plugin.evaluation.identity import code_sha256, data_table, describe, model_fingerprint, now, versions
from empir_plugin.evaluation.outcome import Outcome
from empir_plugin.evaluation.protocols import Headline, Protocol
from empir_plugin.evaluation.record import AttackRecord, PartRecord, Record, percent, worst_case
from empir_plugin.evaluation.shards import CLEAN

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def make_record(
    model: nn.Module,
    name: str,
    evaluator: Evaluator,
    specs: Sequence[AttackSpec],
    protocol: Protocol | None,
    outcomes: Mapping[str, Sequence[Outcome]],
    *,
    processes: int = 1,
) -> Record:
    """The record of an evaluation.

    Args:
        model: The model as it was given.
        name: What the record calls it.
        evaluator: Data, threat and settings.
        specs: The attacks, in order.
        protocol: Whose attacks they are; None if the caller chose them.
        outcomes: Of all shards in order, for the clean images and for each attack by name.
        processes: How many shared the work.
    """
    threat, data = evaluator.threat, evaluator.data
    attacks = tuple(attack_record(spec, threat, outcomes[spec.name], data.labels) for spec in specs)
    clean = verdicts(outcomes[CLEAN], data.labels)
    worst = worst_case(clean, attacks)
    loaded = bool(getattr(model, "weights_loaded", True))
    return Record(
        model={"name": name, "sha256": model_fingerprint(model), "weights_loaded": loaded},
        data={**data_table(data), "full_official": data.is_full_official},
        threat=str(threat),
        clean=clean,
        clean_accuracy=percent(clean),
        attacks=attacks,
        worst_case=worst,
        worst_case_accuracy=percent(worst),
        run=_run_table(evaluator, outcomes, processes),
        protocol=_protocol_table(protocol),
    )


def _protocol_table(protocol: Protocol | None) -> dict[str, object]:
    if protocol is None:
        return {"name": "custom", "description": "Attacks chosen by the caller.", "headline": Headline.WORST_CASE.name}
    return {"name": protocol.name, "description": protocol.describe(), "headline": protocol.headline.name}


def _run_table(evaluator: Evaluator, outcomes: Mapping[str, Sequence[Outcome]], processes: int) -> dict[str, object]:
    settings = evaluator.settings
    return {
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "shard_size": settings.shard_size,
        "cascade": settings.cascade,
        "device": settings.device.type,
        "backend": evaluator.queries.to_table(),
        "threads": sorted({outcome.threads for column in outcomes.values() for outcome in column}),
        "processes": processes,
        "finished": now(),
        "versions": versions(),
        "code_sha256": code_sha256(),
    }


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


def attack_record(spec: AttackSpec, threat: Threat, outcomes: Sequence[Outcome], labels: Tensor) -> AttackRecord:
    """The record of one attack, from its outcomes on all shards in order."""
    robust, parts = verdicts(outcomes, labels), _parts(outcomes)
    accuracy = {part.name: part.robust.count("1") / len(part.robust) for part in parts}
    return AttackRecord(
        name=spec.name,
        settings=_settings(spec),
        robust=robust,
        accuracy=percent(robust),
        seconds=round(sum(outcome.seconds for outcome in outcomes), 2),
        flags=(*_flags(outcomes), *square_flags(accuracy)),
        rules=spec.describe(),
        threat=str(spec.threat or threat),
        in_worst_case=spec.counts_under(threat),
        parts=parts,
    )


def _settings(spec: AttackSpec) -> str:
    try:
        return describe(spec.attack)
    except InputError:
        return repr(spec.attack)


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
