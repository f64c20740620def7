"""The masking audit: can attacks that follow a model's own gradient be trusted?"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.evaluation.audit.checks import CHECKS
from empir_plugin.evaluation.audit.measurements import Auditor, OnMeasurement
from empir_plugin.evaluation.audit.report import AuditReport, verdict_on
from empir_plugin.evaluation.evaluator import Evaluator, Settings
from empir_plugin.evaluation.identity import code_sha256, data_table, model_table, now, versions
from empir_plugin.evaluation.prepare import exact_float32, require_weights, unwrap
from empir_plugin.evaluation.progress import OnProgress, Progress, progress_bars
from empir_plugin.evaluation.shards import cut
from empir_plugin.evaluation.summary import hidden_ensemble_flag

FEWEST_IMAGES = 20
"""With fewer, seven images, the least that an exact McNemar test finds significant, are more than a third of all."""


def audit(
    model: nn.Module,
    data: ImageSet,
    threat: Threat,
    *,
    settings: Settings | None = None,
    name: str = "",
    progress: bool | None = None,
    on_progress: OnMeasurement | None = None,
) -> AuditReport:
    """Look for signs of gradient masking, with many small attacks that should agree.

    Attacks are compared on the images the model classifies correctly, under the threat or, if PGD breaks more than two
    thirds of them there, under the nearest half, quarter, ... of it: if every attack breaks everything, they cannot be
    told apart. The model is copied and left unchanged. The same seed, data, batch size and number of threads give the
    same report.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        data: Images and true labels; 64 show strong masking, 200 are plenty.
        threat: The budget of the evaluation in question; finite.
        settings: Seed, batch size and device, as for an evaluation.
        name: Name of the model in the report; its class by default.
        progress: Whether to show a bar; by default in a terminal or notebook, unless ``on_progress`` is given.
        on_progress: Called before every measurement.

    Raises:
        InputError: If the model classifies fewer than 20 images correctly, or the radius is infinite.
        EvaluationError: If the model has no weights, fails, does not return logits, returns NaN, or its gradient
            overflows.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.randint(0, 256, (40, 1, 2, 2), generator=generator, dtype=torch.uint8)
        >>> data = ImageSet("toy", "test", images, images.flatten(1).argmax(1), ("a", "b", "c", "d"))
        >>> audit(nn.Flatten(), data, Threat.parse("Linf:8/255")).verdict
        'passed'
    """
    settings, name = settings or Settings(), name or type(model).__name__
    require_weights(model, name)
    model = unwrap(model)
    evaluator = Evaluator.of(model, data, threat, settings)
    if math.isinf(threat.eps):
        raise InputError(f"an audit compares attacks under a budget, got {threat}: name a finite eps")
    shown = None if on_progress is None else _measurements_to(on_progress)
    with exact_float32(), progress_bars(progress, shown) as report:
        auditor = Auditor(_on_correct_images(evaluator))
        measurements = auditor.measure(None if report is None else _measurements_from(report))
        hidden = tuple(hidden_ensemble_flag(model, evaluator))
    findings = tuple(check(measurements) for check in CHECKS)
    return AuditReport(
        model=model_table(model, name),
        data=data_table(data),
        threat=str(threat),
        compared_at=str(measurements.compared_at),
        images=len(auditor.evaluator.data),
        checks=findings,
        flags=(*measurements.flags, *hidden),
        verdict=verdict_on(findings),
        run=_run_table(settings),
    )


def _measurements_to(on_progress: OnMeasurement) -> OnProgress:
    return lambda progress: on_progress(progress.note, progress.done, progress.total)


def _measurements_from(report: OnProgress) -> OnMeasurement:
    return lambda name, done, total: report(Progress("audit", done, total, done, name))


def _on_correct_images(evaluator: Evaluator) -> Evaluator:
    data = evaluator.data
    decided = [decision for shard in cut(len(data), len(data)) for decision in evaluator.clean(shard).decisions]
    correct = torch.tensor(decided) == data.labels
    if int(correct.sum()) < FEWEST_IMAGES:
        found = f"{int(correct.sum())} of {len(data)}"
        raise InputError(f"an audit needs {FEWEST_IMAGES} correctly classified images, got {found}: pass more images")
    return replace(evaluator, data=replace(data, images=data.images[correct], labels=data.labels[correct]))


def _run_table(settings: Settings) -> dict[str, object]:
    return {
        "seed": settings.seed,
        "batch_size": settings.batch_size,
        "device": settings.device.type,
        "threads": torch.get_num_threads(),
        "finished": now(),
        "versions": versions(),
        "code_sha256": code_sha256(),
    }
