"""The masking audit: can attacks that follow a model's own gradient be believed?"""

from __future__ import annotations

import math

import torch
from torch import nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, check_images
from empir_plugin.errors import InputError
from empir_plugin.evaluation.audit.checks import CHECKS
from empir_plugin.evaluation.audit.checks import Check as Check
from empir_plugin.evaluation.audit.measurements import Bench, OnProgress
from empir_plugin.evaluation.audit.measurements import Evidence as Evidence
from empir_plugin.evaluation.audit.report import AuditReport as AuditReport
from empir_plugin.evaluation.audit.report import Finding as Finding
from empir_plugin.evaluation.audit.report import verdict_on
from empir_plugin.evaluation.identity import code_sha256, data_table, model_fingerprint, now, versions
from empir_plugin.evaluation.judge import decisions
from empir_plugin.evaluation.prepare import exact_float32, prepared, require_weights

FEWEST_IMAGES = 20
"""With fewer, seven images, the least an exact test can tell from chance, are more than a third of all."""


def audit(
    model: nn.Module,
    data: ImageSet,
    threat: Threat,
    *,
    seed: int = 0,
    batch_size: int = 250,
    device: torch.device | None = None,
    on_progress: OnProgress | None = None,
    name: str = "",
) -> AuditReport:
    """Look for signs of gradient masking, with many small attacks that ought to agree.

    Attacks are compared on the images the model classifies correctly, under the threat or, where PGD breaks more than
    two thirds of them there, under the nearest half, quarter, ... of it: where everything falls, no two attacks can be
    told apart. The model is copied, and left as it is. The same seed, data, batch size and number of threads give the
    same report.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        data: Images and true labels; 64 show strong masking, 200 are plenty.
        threat: The budget of the evaluation in question; finite.
        seed: Of everything random.
        batch_size: Images per forward pass.
        device: Where to compute; the CPU by default.
        on_progress: Told before every measurement.
        name: What the report calls the model; its class by default.

    Raises:
        InputError: If the model classifies fewer than 20 images correctly, the radius is infinite, or an argument is
            not what it must be.
        EvaluationError: If the model has no weights, returns NaN or what are no logits, or its gradient overflows.

    Example:
        >>> from empir_plugin.data.image_set import load_images
        >>> generator = torch.Generator().manual_seed(0)
        >>> images = torch.randint(0, 256, (40, 1, 2, 2), generator=generator, dtype=torch.uint8)
        >>> data = ImageSet("toy", "test", images, images.flatten(1).argmax(1), ("a", "b", "c", "d"))
        >>> audit(nn.Flatten(), data, Threat.parse("Linf:8/255")).verdict
        'passed'
    """
    name = name or type(model).__name__
    _check(threat, batch_size)
    require_weights(model, name)
    device = device or torch.device("cpu")
    with exact_float32():
        bench = _bench(model, data, threat, seed, batch_size, device)
        evidence = bench.gather(on_progress)
    findings = tuple(check(evidence) for check in CHECKS)
    return AuditReport(
        model={"name": name, "sha256": model_fingerprint(model)},
        data=data_table(data),
        threat=str(threat),
        compared_at=str(evidence.compared_at),
        images=len(bench.y),
        checks=findings,
        flags=evidence.flags,
        verdict=verdict_on(findings),
        run=_describe_run(seed, batch_size, device),
    )


def _check(threat: Threat, batch_size: int) -> None:
    if math.isinf(threat.eps):
        raise InputError(f"an audit compares attacks under a budget, got {threat}: name a finite eps")
    if type(batch_size) is not int or batch_size < 1:
        raise InputError(f"batch_size must be a whole number, 1 or more, got {batch_size!r}")


def _bench(model: nn.Module, data: ImageSet, threat: Threat, seed: int, batch_size: int, device: torch.device) -> Bench:
    subject = prepared(model, device)
    x, y = data.as_float().to(device), data.labels.to(device)
    check_images(x, y, data.num_classes)
    correct = decisions(subject, x, num_classes=data.num_classes, batch_size=batch_size) == y
    if int(correct.sum()) < FEWEST_IMAGES:
        found = f"{int(correct.sum())} of {len(data)}"
        raise InputError(f"an audit needs {FEWEST_IMAGES} correctly classified images, got {found}: pass more images")
    return Bench(subject, x[correct], y[correct], data.num_classes, threat, seed, batch_size)


def _describe_run(seed: int, batch_size: int, device: torch.device) -> dict[str, object]:
    return {
        "seed": seed,
        "batch_size": batch_size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "finished": now(),
        "versions": versions(),
        "code_sha256": code_sha256(),
    }
