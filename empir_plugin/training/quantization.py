"""From a full-precision checkpoint to a network of few bits: converted, calibrated, fine-tuned, packed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import cast

import torch
from torch import nn

from empir_plugin.data.image_set import BUNDLED, ImageSet
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.evaluation.identity import describe
from empir_plugin.evaluation.judge import correct
from empir_plugin.evaluation.overhead.count import packed_bytes
from empir_plugin.evaluation.prepare import prepare
from empir_plugin.models.convert.probe import preserve_modes, run
from empir_plugin.models.convert.report import ConversionReport
from empir_plugin.models.packing import save_packed, sha256
from empir_plugin.training.checkpoint import REPORT, identity_of
from empir_plugin.training.loop import Step, Task, fit
from empir_plugin.training.networks import Extent, converted, full_precision_network, load_pretrained
from empir_plugin.training.objectives import DistilledFrom, Objective
from empir_plugin.training.schedules import MemberRecipe, reported
from empir_plugin.training.selection import select


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


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """What came of a checkpoint.

    Args:
        model: The network, in evaluation mode.
        weights: Its packed weight file.
        sha256: Of that file.
        conversion: Which layers are quantized, which are not, and why.
        accuracies: On the test images.
        full_precision_bytes: Size of the packed file of the network before.
        history: One mapping per epoch of fine-tuning: loss, accuracy on the training batches, seconds.
    """

    model: nn.Module
    weights: Path
    sha256: str
    conversion: ConversionReport
    accuracies: Accuracies
    full_precision_bytes: int
    history: tuple[dict[str, float], ...] = ()


def quantize_checkpoint(
    plan: QuantizationPlan,
    checkpoint: Path,
    training: ImageSet,
    test: ImageSet,
    out: Path,
    *,
    device: torch.device | None = None,
    resume: bool = True,
    on_conversion: Callable[[ConversionReport], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> QuantizedNetwork:
    """Quantize a trained network, fine-tune it if the plan says so, and write it down.

    Leaves in ``out``: packed weights ``<name>.safetensors``, the report ``<name>.json`` and, if it was fine-tuned, the
    checkpoint of that training, from which a killed run goes on to the same bits. Files of an earlier run stay as they
    are until the new ones are ready.

    Args:
        plan: What to do.
        checkpoint: Full-precision weights, see :func:`~empir_plugin.training.networks.load_pretrained`.
        training: Images to calibrate and to fine-tune on.
        test: Images to measure accuracies on; nothing is decided by them.
        out: Folder for the files; made if it is missing.
        device: Where to train and measure; the CPU by default.
        resume: Go on from a checkpoint in ``out``, and refuse to replace what other settings left there.
        on_conversion: Told what was quantized, before the fine-tuning.
        on_step: Told after every step of the fine-tuning.

    Raises:
        InputError: If the images are of the wrong kind, or the network cannot be quantized so.
        WeightsError: If the checkpoint does not fit, or ``out`` holds the work of another run.
        EvaluationError: If a loss is no longer finite.
    """
    _check_images(plan, training, test)
    model = full_precision_network(plan.architecture, plan.member, training)
    load_pretrained(model, checkpoint)
    workplace = Workplace.of(plan, checkpoint, training, out, resume=resume)
    _check_fit(model, training)
    device = device or torch.device("cpu")
    full, size = _accuracy(model, test, device), packed_bytes(model)
    model, conversion = converted(model, plan.architecture, plan.member, training, plan.extent)
    if on_conversion is not None:
        on_conversion(conversion)
    after = _accuracy(model, test, device)
    tuned, history = _fine_tuned(model, workplace, training, device, on_step)
    reached = Accuracies(full, after, _accuracy(tuned, test, device) if plan.member.epochs else None)
    digest = workplace.publish(tuned, conversion, reached, size, history, test)
    return QuantizedNetwork(tuned, workplace.weights, digest, conversion, reached, size, history)


def _fine_tuned(
    model: nn.Module,
    workplace: Workplace,
    training: ImageSet,
    device: torch.device,
    on_step: Callable[[Step], None] | None,
) -> tuple[nn.Module, tuple[dict[str, float], ...]]:
    member = workplace.plan.member
    if not member.epochs:
        return model.eval(), ()
    task = Task(member, workplace.plan.objective, (member.ema,), {"made_from": workplace.made_from})
    workplace.out.mkdir(parents=True, exist_ok=True)
    where = workplace.checkpoint
    trained = fit(model, task, training, where, device=device, resume=workplace.resume, on_step=on_step)
    return select(trained, task.decays, None, None).model, trained.history


def _accuracy(model: nn.Module, test: ImageSet, device: torch.device) -> float:
    subject = prepare(model, device)
    right = correct(subject, test.as_float().to(device), test.labels.to(device))
    return right.sum().item() / len(test)


def _check_images(plan: QuantizationPlan, training: ImageSet, test: ImageSet) -> None:
    if training.source == BUNDLED or training.split != "train":
        raise InputError(
            f"got {training.split} images of {training.name} ({training.source}) to calibrate and fine-tune on: the "
            "bundled sample is for evaluation only, pass --data-dir with the training images"
        )
    if (training.name, training.num_classes) != (test.name, test.num_classes):
        raise InputError(f"training images are of {training.name}, test images of {test.name}: pass the same data set")
    if plan.member.epochs and len(training) < plan.member.batch_size:
        size = plan.member.batch_size
        raise InputError(f"{len(training)} training images are fewer than a batch of {size}: lower batch_size")


def _check_fit(model: nn.Module, training: ImageSet) -> None:
    with preserve_modes(model), torch.no_grad():
        run(model.eval(), training.batch(0, 1)[0])
