"""Make a run record from the outcomes of all shards."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor, nn

from empir_plugin.attacks.autoattack import square_flags
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Evaluator
from empir_plugin.evaluation.identity import code_sha256, data_table, describe, model_table, now, versions
from empir_plugin.evaluation.outcome import NOT_ATTACKED, Outcome
from empir_plugin.evaluation.prepare import ensembles_out_of_reach
from empir_plugin.evaluation.protocols import Headline, Protocol
from empir_plugin.evaluation.record import CUSTOM, AttackRecord, PartRecord, Record, percent, worst_case
from empir_plugin.evaluation.shards import CLEAN
from empir_plugin.models.integer.convert import FLOAT32
from empir_plugin.models.weight_files import checkpoint_sha256

_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def make_record(
    model: nn.Module,
    name: str,
    evaluator: Evaluator,
    specs: Sequence[AttackSpec],
    protocol: Protocol | None,
    outcomes: Mapping[str, Sequence[Outcome]],
    *,
    backends: Sequence[str] = (FLOAT32,),
    gradients: Sequence[str] = (FLOAT32,),
    left_out: Sequence[str] = (),
) -> Record:
    """The record of an evaluation.

    Args:
        model: The model as the caller passed it.
        name: Its name in the record.
        evaluator: Data, threat and settings.
        specs: The attacks, in order.
        protocol: The protocol the attacks are from; None if the caller chose them.
        outcomes: Of all shards in order, for the clean images and for each attack by name.
        backends: What ran forward passes that need no gradient in each of the processes that shared the work.
        gradients: What computed gradients in each of them.
        left_out: Attacks of the protocol of which no part is defined on the data.
    """
    threat, data = evaluator.threat, evaluator.data
    attacks = tuple(attack_record(spec, threat, outcomes[spec.name], data.labels) for spec in specs)
    clean = verdicts(outcomes[CLEAN], data.labels)
    worst = worst_case(clean, attacks)
    loaded = bool(getattr(model, "weights_loaded", True))
    return Record(
        model={**model_table(model, name), "weights_loaded": loaded, **_checkpoint(model)},
        data={**data_table(data), "full_official": data.is_full_official},
        threat=str(threat),
        clean=clean,
        clean_accuracy=percent(clean),
        attacks=attacks,
        worst_case=worst,
        worst_case_accuracy=percent(worst),
        run=_run_table(evaluator, outcomes, backends, gradients),
        protocol=_protocol_table(protocol),
        flags=(
            *_batch_flag(outcomes[CLEAN], evaluator.settings.images_per_shard),
            *hidden_ensemble_flag(model, evaluator),
            *_undefined_flag(left_out, data),
            *chance_flag(clean, data.num_classes),
        ),
    )


def _checkpoint(model: nn.Module) -> dict[str, str]:
    """The SHA-256 of the file that the model's weights were loaded from, if one was named."""
    digest = checkpoint_sha256(model)
    return {} if digest is None else {"checkpoint_sha256": digest}


def _protocol_table(protocol: Protocol | None) -> dict[str, object]:
    if protocol is None:
        return {"name": "custom", "description": "Attacks chosen by the caller.", "headline": Headline.WORST_CASE.name}
    return {"name": protocol.name, "description": protocol.describe(), "headline": protocol.headline.name}


def _run_table(
    evaluator: Evaluator,
    outcomes: Mapping[str, Sequence[Outcome]],
    backends: Sequence[str],
    gradients: Sequence[str],
) -> dict[str, object]:
    settings, used = evaluator.settings, " and ".join(sorted(set(backends)))
    return {
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "shard_size": settings.images_per_shard,
        "cascade": settings.cascade,
        "device": settings.device.type,
        "backend": {
            "verdicts": used,
            "queries": used,
            "gradients": " and ".join(sorted(set(gradients))),
            "reason": evaluator.backend.reason,
        },
        "batch_dependent": sum(len(outcome.unstable) for outcome in outcomes[CLEAN]),
        "threads": sorted({outcome.threads for column in outcomes.values() for outcome in column}),
        "processes": len(backends),
        "finished": now(),
        "versions": versions(),
        "code_sha256": code_sha256(),
    }


def verdicts(outcomes: Sequence[Outcome], labels: Tensor) -> str:
    """One character per image: 1 if the decision is the label.

    Args:
        outcomes: Of all shards, in order.
        labels: True classes ``(N,)``.

    Example:
        >>> import torch
        >>> verdicts([Outcome((3, 1), 0.0, 1), Outcome((-1,), 0.0, 1)], torch.tensor([3, 2, 0]))
        '100'
    """
    decisions = [decision for outcome in outcomes for decision in outcome.decisions]
    pairs = zip(decisions, labels.tolist(), strict=True)
    return "".join("1" if decision == label else "0" for decision, label in pairs)


def attack_record(spec: AttackSpec, threat: Threat, outcomes: Sequence[Outcome], labels: Tensor) -> AttackRecord:
    """The record of one attack, from its outcomes on all shards in order."""
    robust, parts = verdicts(outcomes, labels), _parts(outcomes)
    kind, version = attack_kind(spec.attack)
    accuracy = {part.name: part.robust.count("1") / len(part.robust) for part in parts}
    return AttackRecord(
        name=spec.name,
        kind=kind,
        version=version,
        settings=_settings(spec),
        robust=robust,
        accuracy=percent(robust),
        seconds=round(math.fsum(outcome.seconds for outcome in outcomes), 2),
        flags=(
            *left_out_flag(spec.left_out),
            *_zero_gradient_flag(outcomes),
            *_flags(outcomes),
            *square_flags(accuracy),
        ),
        rules=spec.describe(),
        threat=str(spec.threat or threat),
        in_worst_case=spec.counts_under(threat),
        parts=parts,
    )


_RESERVED = frozenset(
    {"autoattack-standard", "autoattack", "gradient", "carlini-wagner", "transfer", "on-member", "corruption"}
)


def attack_kind(attack: Attack) -> tuple[str, int]:
    """Kind of an attack and version of its algorithm: its attributes ``kind`` and ``algorithm_version``.

    An attack without them is ``"custom"``. So is an attack of other code, a subclass included, that states a kind of
    this package: leaderboard entries rest on ``"autoattack-standard"``.

    Example:
        >>> from empir_plugin.attacks.autoattack import AutoAttackSuite
        >>> attack_kind(AutoAttackSuite()), attack_kind(lambda *args, **settings: args[1])
        (('autoattack-standard', 1), ('custom', 1))
    """
    kind, version = getattr(attack, "kind", None), getattr(attack, "algorithm_version", 1)
    if not (isinstance(kind, str) and kind and type(version) is int and version >= 1):
        return CUSTOM, 1
    is_own = type(attack).__module__.partition(".")[0] == __name__.partition(".")[0]
    return (kind, version) if is_own or kind not in _RESERVED else (CUSTOM, 1)


def left_out_flag(reasons: Sequence[str]) -> tuple[str, ...]:
    """The flag of an attack some parts of which do not run, with the reasons; none if all of them run.

    Example:
        >>> left_out_flag(["square needs images of at least 5 rows under L2, got 1"])
        ('without parts that are not defined here: square needs images of at least 5 rows under L2, got 1',)
    """
    return (f"without parts that are not defined here: {'; '.join(reasons)}",) if reasons else ()


def _undefined_flag(left_out: Sequence[str], data: ImageSet) -> Iterator[str]:
    if left_out:
        shape = "x".join(map(str, data.images.shape[1:]))
        yield (
            f"without attacks of the protocol that are not defined on {data.num_classes} classes and images of {shape} "
            f"under this threat: {', '.join(left_out)}"
        )


_FEW = 20
"""Images below which an accuracy says nothing about chance."""


def chance_flag(clean: str, num_classes: int) -> Iterator[str]:
    """A flag if a model classifies images little better than chance: it may be given other images than in training.

    Args:
        clean: One character per clean image, 1 if it is classified correctly.
        num_classes: K.

    Example:
        >>> next(chance_flag("10" + "0" * 38, 10))[:46]
        'the clean accuracy, 2.5 %, is near that of cha'
    """
    share, chance = clean.count("1") / len(clean), 1 / num_classes
    if len(clean) >= _FEW and share <= min(1.5 * chance, (1 + chance) / 2):
        yield (
            f"the clean accuracy, {100 * share:.3g} %, is near that of chance, {100 * chance:.3g} %: if the network "
            "needs normalised images, pass preprocessing= (--mean and --std)"
        )


def _zero_gradient_flag(outcomes: Sequence[Outcome]) -> Iterator[str]:
    counts = [outcome.zero_gradients for outcome in outcomes if outcome.zero_gradients is not None]
    if zero := sum(counts):
        attacked = sum(decision != NOT_ATTACKED for outcome in outcomes for decision in outcome.decisions)
        yield (
            f"the gradient is exactly zero for {zero} of {attacked} attacked images ({zero / attacked:.1%}) in the "
            "first step: this attack cannot move them, and their robustness may be masked; run empir audit"
        )


def _batch_flag(outcomes: Sequence[Outcome], shard_size: int) -> Iterator[str]:
    unstable = [number * shard_size + row for number, outcome in enumerate(outcomes) for row in outcome.unstable]
    if unstable:
        images = sum(len(outcome.decisions) for outcome in outcomes)
        yield (
            f"the output for {len(unstable)} of {images} clean images ({len(unstable) / images:.1%}; the first is "
            f"image {unstable[0]}) depends on the other images of the batch, so accuracies depend on the batch size: "
            "look for statistics of the batch, or chance, in the forward pass"
        )


def hidden_ensemble_flag(model: nn.Module, evaluator: Evaluator) -> Iterator[str]:
    """A flag if attacks do not see the members of an ensemble inside the model.

    Args:
        model: As it was given.
        evaluator: With its prepared copy.
    """
    images, _ = evaluator.data.batch(0, 1)
    images = images.to(evaluator.settings.device, memory_format=evaluator.memory_format)
    if ensembles_out_of_reach(evaluator.model, images):
        yield (
            f"the model, a {type(model).__name__}, contains an ensemble whose members were not reached: attacks on "
            "members and on smooth votes did not run; evaluate the ensemble itself, or move what is around it into its "
            "members"
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
    """Each warning once, even if several shards gave it with different numbers."""
    by_text: dict[str, list[str]] = {}
    for outcome in outcomes:
        for text, flag in {_NUMBER.sub("#", flag): flag for flag in outcome.flags}.items():
            by_text.setdefault(text, []).append(flag)
    return tuple(
        flags[0] if len(flags) == 1 else f"{flags[0]} (and likewise in {len(flags) - 1} more of {len(outcomes)} shards)"
        for flags in by_text.values()
    )
