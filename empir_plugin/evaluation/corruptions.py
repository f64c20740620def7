"""Accuracy under common corruptions: RobustBench's third threat model, https://arxiv.org/abs/1903.12261.

Each corruption at each severity is an attack that replaces every image by its corrupted version and ignores the model.
So shards, stores, resuming and the judge are those of any evaluation. The headline is the mean of the accuracies, as in
RobustBench, and not the worst case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import InitVar, dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor, nn

from empir_plugin.attacks.surrogates import Model
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.corruptions import CORRUPTIONS, SEVERITIES, CorruptedImages
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.distributed import Team
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.progress import OnProgress
from empir_plugin.evaluation.protocols import UNBOUNDED, Headline, Protocol
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate

THREAT = "corruptions"
"""The threat in records, as RobustBench names it."""

KIND = "corruption"


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity, as an attack.

    Args:
        name: Of the corruption.
        severity: 1 to 5.
        source: What identifies the corrupted images.
        images: The corrupted images.
    """

    kind: ClassVar[str] = KIND
    algorithm_version: ClassVar[int] = 1

    name: str
    severity: int
    source: str
    images: InitVar[CorruptedImages]

    def __post_init__(self, images: CorruptedImages) -> None:
        object.__setattr__(self, "_images", images)

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """The corrupted versions ``(N, C, H, W)`` of the images with these indices.

        Raises:
            InputError: If the indices are left out.
        """
        if indices is None:
            raise InputError("a corruption needs the indices of the images in their data set: pass indices")
        images: CorruptedImages = vars(self)["_images"]
        found = images.read(self.name, self.severity, indices.tolist())
        return found.to(x.device).to(x.dtype).div_(255)


def corruptions_protocol(images: CorruptedImages) -> Protocol:
    """The protocol of corruptions: every corruption at every severity, and the mean of the accuracies.

    Args:
        images: The corrupted images.
    """
    about = images.describe()
    identity = " ".join(f"{key}={value}" for key, value in about.items())
    specs = tuple(
        AttackSpec(
            f"{name} {severity}",
            Corruption(name, severity, identity, images),
            attack_all=True,
            aim=f"nothing: every image is replaced by its corrupted version ({about['source']})",
        )
        for name in CORRUPTIONS
        for severity in SEVERITIES
    )
    return Protocol(
        THREAT,
        f"{len(CORRUPTIONS)} common corruptions (https://arxiv.org/abs/1903.12261) at {len(SEVERITIES)} severities.",
        (f"The images are {about['name']} ({about['source']}); true labels; no adversary.",),
        lambda model, dataset: specs,
        headline=Headline.AVERAGE,
    )


def evaluate_corruptions(
    model: nn.Module,
    images: CorruptedImages,
    *,
    name: str = "",
    settings: Settings | None = None,
    store: Path | None = None,
    team: Team | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> Record:
    """Record, image by image, whether a model classifies each corrupted version correctly.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        images: The corrupted images, with the clean ones.
        name: As in :func:`empir_plugin.evaluation.run.evaluate`, also for the next five.
        settings: Likewise.
        store: Likewise.
        team: Likewise.
        progress: Likewise.
        on_progress: Likewise.

    Returns:
        A record whose attacks are the corruptions, and whose headline is the mean of their accuracies.

    Raises:
        EvaluationError: If the model does not return logits, or results cannot be stored.

    Example:
        >>> from empir_plugin import load_images, load_model
        >>> from empir_plugin.data.corruptions import PublishedCorruptions
        >>> clean = load_images("cifar10", data_dir="data")  # doctest: +SKIP
        >>> record = evaluate_corruptions(load_model("empir-cifar"), PublishedCorruptions(clean, "data"))
        ... # doctest: +SKIP
        >>> mean_accuracies(record)["fog"], record.headline_accuracy  # doctest: +SKIP
    """
    record = evaluate(
        model,
        images.clean,
        UNBOUNDED,
        protocol=corruptions_protocol(images),
        name=name,
        settings=settings,
        store=store,
        team=team,
        progress=progress,
        on_progress=on_progress,
    )
    attacks = tuple(replace(attack, threat=THREAT) for attack in record.attacks)
    return replace(record, threat=THREAT, attacks=attacks, data={**record.data, "corruptions": images.describe()})


def mean_accuracies(record: Record) -> Mapping[str, float]:
    """The accuracy under each corruption, averaged over severities, in percent to two decimals.

    Example:
        >>> from empir_plugin.evaluation.record import AttackRecord
        >>> attacks = (AttackRecord("fog 1", "", "11", 100.0, 0.0), AttackRecord("fog 2", "", "10", 50.0, 0.0))
        >>> mean_accuracies(Record({}, {"n": 2}, THREAT, "11", 100.0, attacks, "10", 50.0, {}))
        {'fog': 75.0}
    """
    by_name: dict[str, list[float]] = {}
    for attack in record.attacks:
        by_name.setdefault(attack.name.rpartition(" ")[0], []).append(attack.accuracy)
    return {name: round(sum(accuracies) / len(accuracies), 2) for name, accuracies in by_name.items()}
