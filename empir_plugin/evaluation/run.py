"""Run attacks on a model and record what each of them leaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from empir_plugin._files.atomic import replacing
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import Planned
from empir_plugin.evaluation.cache.keys import attack_key, common_key, subject_of
from empir_plugin.evaluation.cache.store import Fallen, Store, opened
from empir_plugin.evaluation.distributed import Round, Team, device_of_rank
from empir_plugin.evaluation.identity import code_sha256, data_table, model_fingerprint, now, versions
from empir_plugin.evaluation.judge import decisions
from empir_plugin.evaluation.outcome import Outcome
from empir_plugin.evaluation.prepare import exact_float32, prepared, require_weights
from empir_plugin.evaluation.protocols import Headline, Protocol, default
from empir_plugin.evaluation.queries import integer_queries, shared
from empir_plugin.evaluation.record import Record, percent, worst_case
from empir_plugin.evaluation.shards import Bench, Shard, check_shard_size, shards
from empir_plugin.evaluation.summary import attack_record, verdicts
from empir_plugin.evaluation.work import CLEAN, OnProgress, Progress, Shelf, Work


def worst_images(data: ImageSet, clean: str, fallen: Iterable[tuple[Shard, Fallen]]) -> Tensor:
    """For every image, what breaks the model.

    Args:
        data: The images.
        clean: One character per image: 1 if the model classifies it correctly.
        fallen: Images that fell, attack by attack; the first that broke an image counts.

    Returns:
        ``(N, C, H, W)``, float32; clean where the clean image is misclassified, and where every attack was withstood.
    """
    images = data.as_float()
    standing = torch.tensor([verdict == "1" for verdict in clean])
    for shard, found in fallen:
        rows = found.rows + shard.start
        new = standing[rows]
        images[rows[new]] = found.images[new]
        standing[rows] = False
    return images


def write_images(path: Path, images: Tensor, labels: Tensor, about: Mapping[str, str]) -> None:
    """Write ``images`` ``(N, C, H, W)`` and ``labels`` ``(N,)`` as safetensors, with ``about`` as metadata.

    Raises:
        EvaluationError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "adversarial.safetensors")
        >>> write_images(path, torch.zeros(2, 1, 4, 4), torch.tensor([3, 5]), {"threat": "Linf:0.3"})
        >>> safetensors.torch.load_file(path)["labels"]
        tensor([3, 5])
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as partial:
            tensors = {"images": images.contiguous(), "labels": labels.contiguous()}
            safetensors.torch.save_file(tensors, partial, metadata=dict(about))
    except (OSError, safetensors.SafetensorError) as error:
        raise EvaluationError(f"the adversarial images cannot be written to {path} ({error}): make space") from error


def needed_bytes(data: ImageSet, attacks: Sequence[object]) -> int:
    """Disk space that keeping the images may take: those of every attack, and the file made of them."""
    return 4 * data.images.numel() * (len(attacks) + 1)


_COMPARED = 500
"""Images at most on which the decisions of a copy of the model must be the model's."""


@dataclass(frozen=True)
class Settings:
    """How an evaluation runs.

    Args:
        seed: Of everything random in the attacks.
        batch_size: Images per forward pass of an attack.
        shard_size: Images that are one piece of work: stored together, given to one process, and to AutoAttack, whose
            random numbers belong to a batch, at once.
        device: Where to compute.
        cascade: Spare images that fell under one attack the next ones. The worst case is the same where nothing of an
            attack depends on the images beside it, and each attack's own number then says what was left after it.
        int8: Let a copy of the model on int8 kernels answer clean images and the attacks that never ask for a gradient,
            if it decides as the model does on the first images. Every image that falls is judged by the model itself.

    Raises:
        InputError: If a size is not a whole number above 0.
    """

    seed: int = 0
    batch_size: int = 250
    shard_size: int = 500
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cascade: bool = False
    int8: bool = False

    def __post_init__(self) -> None:
        for name, size in (("batch_size", self.batch_size), ("shard_size", self.shard_size)):
            if type(size) is not int or size < 1:
                raise InputError(f"{name} must be a whole number, 1 or more, got {size!r}")


def evaluate(
    model: nn.Module,
    data: ImageSet,
    threat: Threat,
    attacks: Sequence[Planned] | None = None,
    *,
    protocol: Protocol = default,
    name: str = "",
    settings: Settings | None = None,
    store: Path | None = None,
    images: Path | None = None,
    team: Team | None = None,
    on_progress: OnProgress | None = None,
) -> Record:
    """Attack a model and record, image by image, what it withstands.

    Every attack starts from the images the model classifies correctly, unless its protocol says otherwise, so the
    columns are independent of one another; the worst case counts an image only if it withstood all of them. The model
    is copied, and left as it is.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        data: Images and true labels.
        threat: The budget.
        attacks: Instead of the protocol's.
        protocol: Which attacks, and what their numbers mean.
        name: What the record calls the model; its class by default.
        settings: How to run.
        store: Folder for finished shards. An evaluation that was killed goes on from there, to the same verdicts.
        images: File (safetensors) for the adversarial images; needs a store.
        team: The processes that share the work, each of which makes this call and gets the whole record.
        on_progress: Told as images are done, in the team's leader.

    Raises:
        InputError: If images, labels or settings are not what they must be.
        EvaluationError: If the model has no weights, returns what are no logits, an attack fails or breaks its budget,
            or results cannot be stored. What was finished is kept in the store.

    Example:
        >>> from empir_plugin import load_images, load_model
        >>> from empir_plugin.attacks import fgsm
        >>> data, attacks = load_images("cifar10").first(4), [Planned("FGSM", fgsm())]
        >>> record = evaluate(load_model("cifarconv-w2a2"), data, Threat.parse("Linf:8/255"), attacks)
        >>> [attack.name for attack in record.attacks]
        ['FGSM']
    """
    job = _Job.of(model, data, threat, name, protocol, attacks, settings or Settings(), team or Team())
    _check(job, store, images)
    rounds = job.team.round()
    if job.settings.int8:
        job = _on_integers(job)
    with exact_float32(), rounds.announcing_failure(), _shelf(job, rounds, store, images) as shelf:
        progress = Progress(rounds, len(data), on_progress if job.team.is_leader else None)
        cut = shards(len(data), job.settings.shard_size)
        outcomes = Work(job.bench, job.plan, cut, shelf, rounds, progress, job.settings.cascade).everything()
        record = _record(job, outcomes)
        if images is not None and shelf.store is not None and job.team.is_leader:
            worst = worst_images(data, record.clean, _fallen(job, cut, outcomes, shelf.store))
            write_images(images, worst, data.labels, _about(record))
    return record


@dataclass(frozen=True, eq=False)
class _Job:
    """What was asked for."""

    model: nn.Module
    name: str
    bench: Bench
    plan: tuple[Planned, ...]
    protocol: Protocol | None
    settings: Settings
    team: Team

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data: ImageSet,
        threat: Threat,
        name: str,
        protocol: Protocol,
        attacks: Sequence[Planned] | None,
        settings: Settings,
        team: Team,
    ) -> _Job:
        settings = settings if team.size == 1 else replace(settings, device=device_of_rank(settings.device))
        name = name or type(model).__name__
        require_weights(model, name)
        subject = prepared(model, settings.device)
        bench = Bench(subject, data, threat, settings.seed, settings.batch_size, settings.device)
        chosen = protocol.attacks(model, data.name) if attacks is None else attacks
        plan = tuple(planned.at_most(settings.batch_size) for planned in chosen)
        return cls(model, name, bench, plan, protocol if attacks is None else None, settings, team)


def _check(job: _Job, store: Path | None, images: Path | None) -> None:
    names = [CLEAN, *(planned.name for planned in job.plan)]
    if len(set(names)) < len(names):
        raise InputError(f"attacks need different names, and none may be {CLEAN!r}, got {', '.join(names[1:])}")
    if images is not None and store is None:
        raise InputError("adversarial images are collected in a store: pass one, too")
    for planned in job.plan:
        check_shard_size(planned, job.settings.shard_size)
        if store is not None:
            attack_key({}, planned, job.bench.threat)  # Refuse what cannot be stored before anything is computed.


def _on_integers(job: _Job) -> _Job:
    """The job with a copy of its model to answer queries, if every process can have one."""
    bench, round = job.bench, job.team.round()
    images, _ = bench.data.batch(0, min(len(bench.data), _COMPARED))
    images = images.to(bench.device, memory_format=torch.channels_last)
    with round.announcing_failure():
        decisions(bench.model, images[:1], num_classes=bench.data.num_classes)  # The model itself may be at fault.
        queries = shared(integer_queries(bench.model, images), round)
    return replace(job, bench=replace(bench, queries=queries))


@contextmanager
def _shelf(job: _Job, rounds: Round, root: Path | None, images: Path | None) -> Iterator[Shelf]:
    if root is None:
        yield Shelf()
        return
    data = job.bench.data
    subject = subject_of(job.model, data)
    common = common_key(subject, job.bench, job.settings.shard_size)
    needed = 0 if images is None else needed_bytes(data, job.plan)
    with opened(root, subject, leader=job.team.is_leader, needed=needed) as store:
        rounds.after_leader("opening the store")  # It removes unfinished files, which must not be a colleague's.
        yield Shelf(store, common, images is not None)


def _fallen(
    job: _Job, cut: Sequence[Shard], outcomes: Mapping[str, Sequence[Outcome]], store: Store
) -> Iterator[tuple[Shard, Fallen]]:
    """What fell, attack by attack, of the attacks the worst case counts."""
    for planned in job.plan:
        if planned.counts_under(job.bench.threat):
            for shard, outcome in zip(cut, outcomes[planned.name], strict=True):
                yield shard, store.fallen(outcome)


def _about(record: Record) -> dict[str, str]:
    return {"model_sha256": record.model["sha256"], "data_sha256": record.data["sha256"], "threat": record.threat}


def _record(job: _Job, outcomes: Mapping[str, Sequence[Outcome]]) -> Record:
    bench, labels = job.bench, job.bench.data.labels
    attacks = tuple(attack_record(planned, bench.threat, outcomes[planned.name], labels) for planned in job.plan)
    clean = verdicts(outcomes[CLEAN], labels)
    worst = worst_case(clean, attacks)
    return Record(
        model=_describe_model(job),
        data={**data_table(bench.data), "full_official": bench.data.is_full_official},
        threat=str(bench.threat),
        clean=clean,
        clean_accuracy=percent(clean),
        attacks=attacks,
        worst_case=worst,
        worst_case_accuracy=percent(worst),
        run=_describe_run(job, outcomes),
        protocol=_describe_protocol(job.protocol),
    )


def _describe_model(job: _Job) -> dict[str, object]:
    loaded = bool(getattr(job.model, "weights_loaded", True))
    return {"name": job.name, "sha256": model_fingerprint(job.model), "weights_loaded": loaded}


def _describe_protocol(protocol: Protocol | None) -> dict[str, object]:
    if protocol is None:
        return {"name": "custom", "description": "Attacks chosen by the caller.", "headline": Headline.WORST_CASE.name}
    return {"name": protocol.name, "description": protocol.describe(), "headline": protocol.headline.name}


def _describe_run(job: _Job, outcomes: Mapping[str, Sequence[Outcome]]) -> dict[str, object]:
    settings = job.settings
    return {
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "shard_size": settings.shard_size,
        "cascade": settings.cascade,
        "device": settings.device.type,
        "backend": job.bench.queries.to_table(),
        "threads": sorted({outcome.threads for column in outcomes.values() for outcome in column}),
        "processes": job.team.size,
        "finished": now(),
        "versions": versions(),
        "code_sha256": code_sha256(),
    }
