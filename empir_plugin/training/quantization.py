"""From a full-precision checkpoint to a network of few bits: converted, calibrated, fine-tuned, packed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.data import BUNDLED, ImageSet
from empir_plugin.evaluation.judge import correct
from empir_plugin.evaluation.overhead_storage import packed_bytes
from empir_plugin.evaluation.subject import prepared
from empir_plugin.models.convert_probe import modes_kept, run
from empir_plugin.models.convert_report import ConversionReport
from empir_plugin.training.loop import Step, Task, fit
from empir_plugin.training.networks import converted, full_precision_network
from empir_plugin.training.pretrained import load_pretrained
from empir_plugin.training.quantization_files import Accuracies, QuantizationPlan, Workplace
from empir_plugin.training.selection import select


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
        checkpoint: Full-precision weights, see :func:`~empir_plugin.training.pretrained.load_pretrained`.
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
    subject = prepared(model, device)
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
    with modes_kept(model), torch.no_grad():
        run(model.eval(), training.batch(0, 1)[0])
