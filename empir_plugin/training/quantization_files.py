"""What quantizing a checkpoint is made from, and the files it leaves."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn

from empir_plugin.errors import InputError, WeightsError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.evaluation.identity import describe
from empir_plugin.models.convert_report import ConversionReport
from empir_plugin.models.packing import save_packed, sha256
from empir_plugin.training.checkpoint import REPORT, identity_of
from empir_plugin.training.distillation import DistilledFrom
from empir_plugin.training.networks import Extent
from empir_plugin.training.objectives import Objective
from empir_plugin.training.schedules import MemberRecipe, reported


@dataclass(frozen=True)
class QuantizationPlan:
    """What is to become of a checkpoint.

    Args:
        architecture: Of the checkpoint, see :func:`~empir_plugin.training.networks.first_network`.
        member: Precision and quantizers, and how the network is fine-tuned; with no epochs it is quantized after
            training, and that is all.
        extent: How much of the network is quantized.

    Raises:
        InputError: If the precision is full, the name is none for a file, or the member needs another one, of which
            there is none here.
    """

    architecture: str
    member: MemberRecipe
    extent: Extent = field(default_factory=Extent)

    def __post_init__(self) -> None:
        if self.member.precision.is_full:
            raise InputError("precision 'fp' leaves every layer as it is: pass one such as 'w4a4'")
        if Path(self.member.name).name != self.member.name:
            raise InputError(f"the name must be one for files, without a folder, got {self.member.name!r}")
        if self.member.start or isinstance(self.member.objective, DistilledFrom):
            raise InputError(f"member {self.member.name!r} is alone: it can neither start from another nor learn of it")

    @property
    def objective(self) -> Objective:
        """What the fine-tuning lowers."""
        return cast(Objective, self.member.objective)


@dataclass(frozen=True)
class Accuracies:
    """Shares of the test images classified correctly, 0 to 1.

    Args:
        full_precision: Of the checkpoint.
        converted: After conversion and calibration.
        fine_tuned: After fine-tuning; None if there was none.
    """

    full_precision: float
    converted: float
    fine_tuned: float | None = None


@dataclass(frozen=True)
class Workplace:
    """Where one run leaves its files.

    Args:
        plan: What is done.
        out: Folder.
        made_from: All that decides the result, as JSON text.
        resume: Whether to go on from what is there.
    """

    plan: QuantizationPlan
    out: Path
    made_from: str
    resume: bool

    @classmethod
    def of(
        cls, plan: QuantizationPlan, checkpoint: Path, training: ImageSet, out: Path, *, resume: bool = True
    ) -> Workplace:
        """The workplace of a run.

        Raises:
            WeightsError: If it is to be resumed, but the folder holds the work of another one.
        """
        facts = {
            "architecture": plan.architecture,
            "extent": describe(plan.extent),
            "recipe": reported(plan.member),
            "checkpoint_sha256": sha256(checkpoint),
            "training_images": training.fingerprint,
        }
        workplace = cls(plan, out, json.dumps(facts, sort_keys=True), resume)
        if resume:
            workplace._check_free()
        return workplace

    @property
    def weights(self) -> Path:
        """Of the packed weights."""
        return self.out / f"{self.plan.member.name}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """Of the checkpoint of the fine-tuning."""
        return self.out / f"{self.plan.member.name}.checkpoint.safetensors"

    @property
    def report(self) -> Path:
        """Of the report."""
        return self.out / f"{self.plan.member.name}.json"

    def publish(
        self,
        model: nn.Module,
        conversion: ConversionReport,
        reached: Accuracies,
        full_precision_bytes: int,
        history: Sequence[dict[str, float]],
        test: ImageSet,
    ) -> str:
        """Write weights and report, and return the SHA-256 of the weights.

        Raises:
            WeightsError: If they cannot be written.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        digest = save_packed(model, self.weights)
        report = {
            **json.loads(self.made_from),
            "sha256": digest,
            "bytes": self.weights.stat().st_size,
            "full_precision_bytes": full_precision_bytes,
            "accuracies": asdict(reached),
            "test_images": {"source": test.source, "number": len(test), "sha256": test.fingerprint},
            "conversion": conversion.to_dict(),
            "history": list(history),
            "threads": torch.get_num_threads(),
        }
        REPORT.write(self.report, report)
        return digest

    def _check_free(self) -> None:
        if self.report.is_file():
            if not self._is_ours():
                raise WeightsError(f"{self.report} is of another checkpoint or other settings: {_CURE}")
        elif self.weights.exists() and not self._was_tuned():
            raise WeightsError(f"{self.weights} exists, and nothing tells what it was made from: {_CURE}")
        elif self.checkpoint.exists() and not self.plan.member.epochs:
            raise WeightsError(f"{self.checkpoint} is of a fine-tuning, but none is asked for now: {_CURE}")

    def _was_tuned(self) -> bool:
        """Whether the fine-tuning of this very run is there: it was stopped before it had written its report."""
        if not self.checkpoint.is_file():
            return False
        return json.loads(identity_of(self.checkpoint) or "{}").get("made_from") == self.made_from

    def _is_ours(self) -> bool:
        try:
            found = json.loads(self.report.read_text("utf-8"))
        except ValueError as error:
            raise WeightsError(f"{self.report} is damaged ({error}): {_CURE}") from error
        return isinstance(found, dict) and json.loads(self.made_from).items() <= found.items()


_CURE = "choose another --out or --name, or pass --restart to replace it"
