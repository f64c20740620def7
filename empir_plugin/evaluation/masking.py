"""The masking audit: can attacks that follow a model's own gradient be believed?"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import ImageSet, check_images
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.judge import decisions
from empir_plugin.evaluation.masking_checks import CHECKS
from empir_plugin.evaluation.masking_checks import Check as Check
from empir_plugin.evaluation.masking_checks import Finding as Finding
from empir_plugin.evaluation.masking_evidence import Bench, Effort, OnProgress
from empir_plugin.evaluation.masking_evidence import Evidence as Evidence
from empir_plugin.evaluation.subject import exact_float32, prepared, require_weights

FEWEST_IMAGES = 50
"""With fewer, a tenth of the images is too few for a sign test to tell from chance."""


@dataclass(frozen=True)
class AuditSettings:
    """How an audit runs.

    Args:
        seed: Of everything random.
        batch_size: Images per forward pass.
        device: Where to compute, as text.
        effort: How hard its attacks try.
    """

    seed: int = 0
    batch_size: int = 250
    device: str = "cpu"
    effort: Effort = field(default_factory=Effort)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        model: Name and SHA-256.
        data: Name, split, number of images and SHA-256.
        threat: As text, such as ``"Linf:8/255"``.
        images: How many of the images the model classifies correctly; all measurements are on these.
        findings: One per check.
        flags: AutoAttack's warnings, all of them.
        settings: Seed, batch size, device and effort.
    """

    model: dict[str, str]
    data: dict[str, str | int]
    threat: str
    images: int
    findings: tuple[Finding, ...]
    flags: tuple[str, ...]
    settings: dict[str, object]

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The checks that found a sign of masking."""
        return tuple(finding for finding in self.findings if not finding.passed)

    @property
    def passed(self) -> bool:
        """Whether no check found a sign of masking."""
        return not self.failed

    @property
    def verdict(self) -> str:
        """The outcome in a sentence or two."""
        count = f"{len(self.findings)} checks on {self.images} images under {self.threat}"
        if self.passed:
            return f"No sign of gradient masking in {count}. That is no proof of its absence."
        names = ", ".join(finding.name for finding in self.failed)
        return (
            f"Gradient masking: {len(self.failed)} of {count} failed ({names}). Attacks on this model's own gradient "
            "overestimate it: trust no number but the worst case of the protocol adaptive."
        )

    def to_json(self) -> str:
        """The audit as JSON text, the verdict included."""
        table = {**asdict(self), "passed": self.passed, "verdict": self.verdict}
        return json.dumps(table, indent=2, allow_nan=False) + "\n"


def audit(
    model: nn.Module,
    data: ImageSet,
    threat: Threat,
    *,
    name: str = "",
    settings: AuditSettings | None = None,
    on_progress: OnProgress | None = None,
) -> Audit:
    """Look for signs of gradient masking, with many small attacks that ought to agree.

    The model is copied, and left as it is. The same seed, data and batch size give the same audit.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        data: Images and true labels; 200 are plenty.
        threat: The budget of the evaluation in question.
        name: What the audit calls the model; its class by default.
        settings: How to run.
        on_progress: Told before every measurement.

    Raises:
        InputError: If the model classifies fewer than 50 images correctly, or a tensor is not what it must be.
        EvaluationError: If the model has no weights, gives no gradient, or returns NaN.

    Example:
        >>> from empir_plugin import load_images, load_model
        >>> network, data = load_model("cifarconv-fp"), load_images("cifar10").first(80)
        >>> quick = AuditSettings(effort=Effort(steps=2, few=1, many=2, queries=2, trials=1))
        >>> len(audit(network, data, Threat.parse("Linf:8/255"), settings=quick).findings) == len(CHECKS)
        True
    """
    settings = settings or AuditSettings()
    require_weights(model, name or type(model).__name__)
    with exact_float32():
        evidence = _bench(model, data, threat, settings).gather(on_progress)
    return Audit(
        model={"name": name or type(model).__name__, "sha256": model_fingerprint(model)},
        data={"name": data.name, "split": data.split, "n": len(data), "sha256": data.fingerprint},
        threat=str(threat),
        images=len(evidence.one_step),
        findings=tuple(check(evidence) for check in CHECKS),
        flags=evidence.flags,
        settings=asdict(settings),
    )


def _bench(model: nn.Module, data: ImageSet, threat: Threat, settings: AuditSettings) -> Bench:
    subject = prepared(model, torch.device(settings.device))
    x, y = data.as_float().to(settings.device), data.labels.to(settings.device)
    check_images(x, y, data.num_classes)
    correct = decisions(subject, x, num_classes=data.num_classes, batch_size=settings.batch_size) == y
    if int(correct.sum()) < FEWEST_IMAGES:
        found = f"{int(correct.sum())} of {len(data)}"
        raise InputError(f"an audit needs {FEWEST_IMAGES} correctly classified images, got {found}: pass more images")
    x = x[correct].contiguous(memory_format=torch.channels_last)
    return Bench(subject, x, y[correct], threat, settings.effort, settings.seed, settings.batch_size)
