"""Quantization of a full-precision checkpoint: convert, calibrate, optionally fine-tune, measure, pack the weights."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from empir_plugin._files.tensor_files import sha256
from empir_plugin.data.image_set import BUNDLED, ImageSet
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.evaluation.identity import describe
from empir_plugin.evaluation.judge import correct
from empir_plugin.evaluation.overhead.count import packed_bytes
from empir_plugin.evaluation.prepare import prepare_for_images
from empir_plugin.evaluation.progress import OnProgress, Progress, progress_bars
from empir_plugin.models.convert.probe import preserve_modes, run
from empir_plugin.models.convert.report import ConversionReport
from empir_plugin.models.packing import save_packed
from empir_plugin.training.checkpoint import checkpoint_file, facts_of, has_checkpoint, make_folder
from empir_plugin.training.loop import Step, Task, fit
from empir_plugin.training.networks import (
    Extent,
    convert_network,
    full_precision_definition,
    full_precision_network,
    load_pretrained,
    quantized_definition,
)
from empir_plugin.training.objectives import DistilledFrom, Objective
from empir_plugin.training.schedules import MemberRecipe, report_settings
from empir_plugin.training.selection import select_weights
from empir_plugin.zoo.definition import REPORT, NetworkDefinition, network_table
from empir_plugin.zoo.quantized.build import Channels


@dataclass(frozen=True)
class QuantizationPlan:
    """How to quantize a checkpoint.

    Args:
        architecture: Architecture of the checkpoint, see :func:`~empir_plugin.training.networks.initial_network`.
        member: Precision, quantizers, and the schedule of the fine-tuning; with 0 epochs there is no fine-tuning.
        extent: Which part of the network is quantized.
        settings: Keywords of the architecture: values that JSON can hold.
        mean: Mean of each channel of images in [0, 1], for their normalisation; None if the network needs none.
        std: Standard deviation of each channel.

    Raises:
        InputError: If the precision is full, or the member refers to another one.
    """

    architecture: str
    member: MemberRecipe
    extent: Extent = field(default_factory=Extent)
    settings: Mapping[str, Any] = field(default_factory=dict)
    mean: Channels | None = None
    std: Channels | None = None

    def __post_init__(self) -> None:
        if self.member.precision.is_full:
            raise InputError("precision 'fp' leaves every layer as it is: pass one such as 'w4a4'")
        if self.member.start or isinstance(self.member.objective, DistilledFrom):
            raise InputError(
                f"member {self.member.name!r} must not refer to another member: leave out start and distillation"
            )

    @property
    def objective(self) -> Objective:
        """The objective of the fine-tuning."""
        return cast(Objective, self.member.objective)

    def definition(self, training: ImageSet) -> NetworkDefinition:
        """How the network of the checkpoint is built, in full precision."""
        return full_precision_definition(
            self.architecture, training, settings=self.settings, mean=self.mean, std=self.std
        )


@dataclass(frozen=True)
class Accuracies:
    """Shares of the test images classified correctly, 0 to 1.

    Args:
        full_precision: Accuracy of the checkpoint.
        converted: After conversion and calibration.
        fine_tuned: After fine-tuning; None if there was none.
    """

    full_precision: float
    converted: float
    fine_tuned: float | None = None


@dataclass(frozen=True)
class QuantizationFiles:
    """The files of one quantization run.

    Args:
        plan: How the checkpoint is quantized.
        out: Output folder.
        inputs: Everything that determines the result, as JSON text.
        resume: Whether to resume from existing files.
    """

    plan: QuantizationPlan
    out: Path
    inputs: str
    resume: bool

    @classmethod
    def for_run(
        cls,
        plan: QuantizationPlan,
        checkpoint: Path,
        training: ImageSet,
        out: Path,
        *,
        ema: bool | None = None,
        resume: bool = True,
    ) -> QuantizationFiles:
        """The files of a run.

        Raises:
            WeightsError: If the run is to be resumed, but the folder holds files of another run.
        """
        facts = {
            "architecture": plan.architecture,
            "extent": describe(plan.extent),
            "recipe": report_settings(plan.member),
            "checkpoint_sha256": sha256(checkpoint),
            **({} if ema is None else {"checkpoint_ema": ema}),
            **({"settings": dict(plan.settings)} if plan.settings else {}),
            **({} if plan.mean is None else {"mean": plan.mean, "std": plan.std}),
            "training_images": training.fingerprint,
        }
        files = cls(plan, out, json.dumps(facts, sort_keys=True), resume)
        if resume:
            files._check_unclaimed()
        return files

    @property
    def weights(self) -> Path:
        """The packed weights."""
        return self.out / f"{self.plan.member.name}.safetensors"

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of the fine-tuning."""
        return checkpoint_file(self.out, self.plan.member.name)

    @property
    def report(self) -> Path:
        """The report."""
        return self.out / f"{self.plan.member.name}.json"

    def publish(
        self,
        model: nn.Module,
        conversion: ConversionReport,
        reached: Accuracies,
        full_precision_bytes: int,
        history: Sequence[dict[str, float]],
        test: ImageSet,
        definition: NetworkDefinition,
    ) -> str:
        """Write weights and report; returns the SHA-256 of the weight file.

        Raises:
            WeightsError: If they cannot be written.
        """
        make_folder(self.out)
        digest = save_packed(model, self.weights)
        report = {
            **json.loads(self.inputs),
            "sha256": digest,
            **network_table(definition),
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

    def _check_unclaimed(self) -> None:
        if self.report.is_file():
            if not self._is_own_report():
                raise WeightsError(f"{self.report} belongs to another checkpoint or other settings: {_CURE}")
        elif self.weights.exists() and not self._has_own_checkpoint():
            raise WeightsError(f"{self.weights} exists without a report of how it was made: {_CURE}")
        elif has_checkpoint(self.checkpoint) and not self.plan.member.epochs:
            raise WeightsError(f"{self.checkpoint} belongs to a fine-tuning, but epochs are 0 now: {_CURE}")

    def _has_own_checkpoint(self) -> bool:
        """Whether there is a checkpoint of this run, which was then interrupted before it wrote its report."""
        if not has_checkpoint(self.checkpoint):
            return False
        return facts_of(self.checkpoint).get("made_from") == self.inputs

    def _is_own_report(self) -> bool:
        try:
            report = REPORT.load(self.report)
        except WeightsError as error:
            raise WeightsError(f"{error}: {_CURE}") from error
        return isinstance(report, dict) and json.loads(self.inputs).items() <= report.items()


_BATCH = 500
"""Test images at once."""
_CURE = "choose another --out or --name, or pass --restart to replace it"


@dataclass(frozen=True, eq=False)
class QuantizedNetwork:
    """A quantized network with its files and measurements.

    Args:
        model: The network, in evaluation mode.
        weights: Its packed weight file.
        sha256: SHA-256 of that file.
        conversion: Which layers are quantized, which are not, and why.
        accuracies: Accuracies on the test images.
        full_precision_bytes: Size of the packed file of the full-precision network.
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
    ema: bool | None = None,
    device: torch.device | None = None,
    resume: bool = True,
    on_conversion: Callable[[ConversionReport], None] | None = None,
    on_step: Callable[[Step], None] | None = None,
    progress: bool | None = None,
    on_progress: OnProgress | None = None,
) -> QuantizedNetwork:
    """Quantize a trained network, fine-tune it if the plan says so, and write weights and report.

    Writes to ``out``: packed weights ``<name>.safetensors``, the report ``<name>.json`` and, with fine-tuning, its
    checkpoint, from which an interrupted run resumes with bitwise the same result. Files of an earlier run are not
    touched until the new ones are ready.

    Args:
        plan: How to quantize.
        checkpoint: Full-precision weights, see :func:`~empir_plugin.training.networks.load_pretrained`.
        training: Images to calibrate and fine-tune on.
        test: Images to measure accuracies on; they influence nothing else.
        out: Output folder; created if missing.
        ema: Whether to start from the moving average in ``checkpoint``; needed only if it holds both.
        device: Device to train and measure on; the CPU by default.
        resume: Whether to resume from a checkpoint in ``out``; files of other settings are then never replaced.
        on_conversion: Called with the conversion report, before the fine-tuning.
        on_step: Called after every step of the fine-tuning.
        progress: Whether to show bars; by default in a terminal or notebook, unless ``on_progress`` is given.
        on_progress: Called as test images are decided on.

    Raises:
        InputError: If the images are of the wrong kind, or the network cannot be quantized this way.
        WeightsError: If the checkpoint does not match the architecture, or ``out`` holds files of another run.
        EvaluationError: If a loss is no longer finite.
    """
    _check_images(plan, training, test)
    definition = plan.definition(training)
    model = full_precision_network(definition, plan.member)
    load_pretrained(model, checkpoint, ema=ema)
    files = QuantizationFiles.for_run(plan, checkpoint, training, out, ema=ema, resume=resume)
    _check_forward(model, training)
    device = device or torch.device("cpu")
    with progress_bars(progress, on_progress) as report:
        accuracy = partial(_accuracy, test=test, device=device, report=report)
        before, size = accuracy(model, title="full precision"), packed_bytes(model)
        model, conversion = convert_network(model, definition, plan.member, training, plan.extent)
        if on_conversion is not None:
            on_conversion(conversion)
        after = accuracy(model, title="converted")
        tuned, history = _fine_tune(model, files, training, device, on_step or _steps_to(report))
        reached = Accuracies(before, after, accuracy(tuned, title="fine-tuned") if plan.member.epochs else None)
    quantized = quantized_definition(definition, plan.member, conversion)
    digest = files.publish(tuned, conversion, reached, size, history, test, quantized)
    return QuantizedNetwork(tuned, files.weights, digest, conversion, reached, size, history)


def _fine_tune(
    model: nn.Module,
    files: QuantizationFiles,
    training: ImageSet,
    device: torch.device,
    on_step: Callable[[Step], None] | None,
) -> tuple[nn.Module, tuple[dict[str, float], ...]]:
    member = files.plan.member
    if not member.epochs:
        return model.eval(), ()
    task = Task(member, files.plan.objective, (member.ema,), {"made_from": files.inputs})
    make_folder(files.out)
    trained = fit(model, task, training, files.checkpoint, device=device, resume=files.resume, on_step=on_step)
    return select_weights(trained, task.decays, None, None).model, trained.history


def _steps_to(report: OnProgress | None) -> Callable[[Step], None] | None:
    """Steps of the fine-tuning as progress."""
    if report is None:
        return None

    def on_step(step: Step) -> None:
        note = f"loss {step.loss:.3f}, accuracy {step.accuracy:.1%}"
        report(Progress(step.member, step.step, step.steps, step.step, note))

    return on_step


def _accuracy(
    model: nn.Module, *, test: ImageSet, device: torch.device, title: str, report: OnProgress | None
) -> float:
    evaluated = prepare_for_images(model, device, test.batch(0, 2)[0].to(device)).model
    found = done = 0
    for start in range(0, len(test), _BATCH):
        images, labels = test.batch(start, min(start + _BATCH, len(test)))
        found += int(correct(evaluated, images.to(device), labels.to(device)).sum())
        done += len(images)
        if report is not None:
            report(Progress(f"accuracy, {title}", done, len(test), done))
    return found / len(test)


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


def _check_forward(model: nn.Module, training: ImageSet) -> None:
    with preserve_modes(model), torch.no_grad():
        run(model.eval(), training.batch(0, 1)[0])
