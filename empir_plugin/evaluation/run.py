"""Evaluate a model: run attacks on it and record every verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from torch import nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.arguments import Images, as_attacks, as_image_set, as_threat, preprocess
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.cache.keys import attack_key, common_key, subject_key
from empir_plugin.evaluation.cache.store import Cache, open_cache
from empir_plugin.evaluation.distributed import Round, Team, device_of_rank
from empir_plugin.evaluation.evaluator import Evaluator, Settings
from empir_plugin.evaluation.named_attacks import NamedAttack
from empir_plugin.evaluation.outcome import Outcome, needed_bytes, worst_images, write_images
from empir_plugin.evaluation.prepare import check_model, exact_float32, require_weights, unwrap
from empir_plugin.evaluation.progress import OnProgress, progress_bars
from empir_plugin.evaluation.protocols import Protocol, default
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.shards import CLEAN, ShardedRun, check_shard_size, with_shard_size
from empir_plugin.evaluation.summary import make_record


def evaluate(
    model: nn.Module,
    data: Images,
    threat: Threat | str,
    attacks: NamedAttack | Sequence[NamedAttack] | None = None,
    *,
    preprocessing: nn.Module | None = None,
    protocol: Protocol = default,
    name: str = "",
    settings: Settings | None = None,
    store: Path | None = None,
    images: Path | None = None,
    team: Team | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Record:
    """Attack a model and record, image by image, whether it is robust.

    Every attack starts from the images the model classifies correctly, unless its protocol says otherwise, so the
    accuracies of attacks do not depend on one another; in the worst case an image counts as robust only if no attack
    broke it. The model is copied and left unchanged.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        data: Images and true labels: an image set, a pair of tensors, or a ``DataLoader`` that does not shuffle; see
            :func:`~empir_plugin.evaluation.arguments.as_image_set`.
        threat: The budget, also as text.
        attacks: Instead of the protocol's: names such as ``"pgd"``, attacks, or their specifications.
        preprocessing: From images in [0, 1] to what the model takes, such as ``torchvision.transforms.Normalize``, for
            a model that does not normalise images itself.
        protocol: Which attacks to run, and what their numbers mean.
        name: Name of the model in the record; its class by default.
        settings: How to run.
        store: Folder to keep finished shards in. An evaluation that was killed resumes there, with the same verdicts.
        images: File (safetensors) to write the adversarial images to; needs a store.
        team: The processes that share the work. Each of them makes this call and gets the whole record.
        progress: Whether to show bars, with the time left; by default in a terminal or notebook, unless
            ``on_progress`` is given.
        on_progress: Called as images are finished, in the team's leader.

    Raises:
        InputError: If images, labels or settings are not what they must be.
        EvaluationError: If the model has no weights or does not return logits, an attack fails or exceeds its budget,
            or results cannot be stored. Finished shards are kept in the store.

    Example:
        >>> from empir_plugin import load_images, load_model
        >>> record = evaluate(load_model("cifarconv-w2a2"), load_images("cifar10").first(4), "Linf:8/255", ["fgsm"])
        >>> [attack.name for attack in record.attacks]
        ['FGSM']
    """
    settings, team, name = settings or Settings(), team or Team(), name or type(model).__name__
    if team.size > 1:
        settings = replace(settings, device=device_of_rank(settings.device))
    check_model(model)
    require_weights(model, name)
    model = unwrap(model)
    if preprocessing is not None:
        model = preprocess(model, preprocessing)
    threat, data = as_threat(threat), as_image_set(data, model)
    evaluator = Evaluator.of(model, data, threat, settings)
    given = as_attacks(attacks, model, protocol, data.name)
    chosen = protocol.attacks(model, data.name) if given is None else given
    about = data.num_classes, data.images.shape[1:], threat
    defined = [spec for spec in chosen if spec.is_defined_on(*about)]
    if given is not None or not defined:
        defined = list(chosen)  # The first that is not defined raises.
    specs = tuple(spec.with_batch_size(settings.batch_size).for_data(*about) for spec in defined)
    evaluator = replace(evaluator, settings=with_shard_size(settings, specs))
    _check(specs, evaluator, store, images)
    with progress_bars(progress, on_progress) as shown, exact_float32():
        processes = team.round(len(data), shown)
        with processes.announce_failure(), _cache(model, evaluator, specs, processes, store, images) as cache:
            sharded = ShardedRun(evaluator, cache, processes)
            outcomes = sharded.run(specs)
            backends = team.round().gather(evaluator.backend.name)
            gradients = team.round().gather(evaluator.backend.gradients)
            record = make_record(
                model,
                name,
                evaluator,
                specs,
                protocol if given is None else None,
                outcomes,
                backends=backends,
                gradients=gradients,
                left_out=[spec.name for spec in chosen if spec not in defined],
            )
            if images is not None and cache is not None and team.is_leader:
                _write_images(images, sharded, cache, specs, outcomes, record)
    return record


def _check(specs: Sequence[AttackSpec], evaluator: Evaluator, store: Path | None, images: Path | None) -> None:
    names = [CLEAN, *(spec.name for spec in specs)]
    if len(set(names)) < len(names):
        raise InputError(f"attacks need different names, and none may be {CLEAN!r}, got {', '.join(names[1:])}")
    if images is not None and store is None:
        raise InputError("adversarial images are collected in a store: pass one, too")
    for spec in specs:
        check_shard_size(spec, evaluator.settings.images_per_shard)
        if store is not None:
            attack_key({}, spec, evaluator.threat)  # Refuse what cannot be stored before anything is computed.


@contextmanager
def _cache(
    model: nn.Module,
    evaluator: Evaluator,
    specs: Sequence[AttackSpec],
    processes: Round,
    root: Path | None,
    images: Path | None,
) -> Iterator[Cache | None]:
    if root is None:
        yield None
        return
    subject = subject_key(model, evaluator.data)
    needed = 0 if images is None else needed_bytes(evaluator.data, specs)
    with open_cache(root, subject, leader=processes.team.is_leader, needed=needed) as cache:
        # The leader removes unfinished files, which must not be those of another process of the team.
        processes.after_leader("opening the store")
        yield replace(cache, common=common_key(subject, evaluator), keep_images=images is not None)


def _write_images(
    path: Path,
    sharded: ShardedRun,
    cache: Cache,
    specs: Sequence[AttackSpec],
    outcomes: Mapping[str, Sequence[Outcome]],
    record: Record,
) -> None:
    """Write, for every image, one that breaks the model, from the attacks that count in the worst case."""
    data = sharded.evaluator.data
    broken = (
        (shard, cache.broken_images(outcome))
        for spec in specs
        if spec.counts_under(sharded.evaluator.threat)
        for shard, outcome in zip(sharded.shards, outcomes[spec.name], strict=True)
    )
    about = {
        "model_sha256": record.model["sha256"],
        "model_identity": str(record.model["identity"]),
        "data_sha256": record.data["sha256"],
        "threat": record.threat,
    }
    write_images(path, worst_images(data, record.clean, broken), data.labels, about)
