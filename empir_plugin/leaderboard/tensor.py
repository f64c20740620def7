"""Adversarial images as RobustBench takes them: one tensor, saved by torch, as many as the test set has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from empir_plugin._files.atomic import replacing
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, check_images
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.judge import check_attack_result, correct
from empir_plugin.evaluation.prepare import exact_float32, prepare
from empir_plugin.evaluation.record import Record, bits, percent

_BATCH = 500


@dataclass(frozen=True)
class Left:
    """What adversarial images leave of a model.

    Args:
        accuracy: Percent of them it classifies correctly.
        n: How many they are.
        checked: Whether their distance from the official images was measured.
    """

    accuracy: float
    n: int
    checked: bool


def export(
    path: Path, target: Path, model: nn.Module, record: Record, *, below: float, clean: ImageSet | None = None
) -> Left:
    """Judge the images of an evaluation once more and write them as RobustBench takes them.

    Args:
        path: What :func:`empir_plugin.evaluation.run.evaluate` wrote as ``images``.
        target: The ``.pt`` file, to be loaded as one float32 tensor ``(N, C, H, W)``.
        model: The model they were made for.
        record: Of that model, on the same images and under the same threat.
        below: Percent that is known to be left: only fewer is news.
        clean: The official images, if they are there: norms and labels are checked against them.

    Raises:
        InputError: If the file is no such file, or the tensor cannot be written.
        EvaluationError: If the images are of another model, data set or threat, or leave no less than what is known.
    """
    images, labels, about = _read(path)
    _require_about(about, record)
    if len(images) != record.data["n"]:
        raise EvaluationError(f"{path} has {len(images):,} images, the test set {record.data['n']:,}: attack all")
    if clean is not None:
        _require_budget(images, labels, clean, record)
    with exact_float32():
        left = percent(bits(correct(prepare(model, torch.device("cpu")), images, labels)))
    if left >= below:
        raise EvaluationError(f"the images of {path} leave {left:.2f} %, and {below:.2f} % is known: that is no news")
    _write(target, images)
    return Left(left, len(images), clean is not None)


def _read(path: Path) -> tuple[Tensor, Tensor, Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            images, labels, about = file.get_tensor("images"), file.get_tensor("labels"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} holds no adversarial images ({error}): write them with evaluate(images=)") from error
    check_images(images, labels)
    return images, labels, about


def _require_about(about: Mapping[str, str], record: Record) -> None:
    expected = {
        "model_sha256": record.model["sha256"],
        "data_sha256": record.data["sha256"],
        "threat": record.threat,
    }
    for key, value in expected.items():
        if about.get(key) != value:
            what = key.removesuffix("_sha256")
            raise EvaluationError(f"the images are of another {what} ({about.get(key)}) than the entry ({value})")


def _require_budget(images: Tensor, labels: Tensor, clean: ImageSet, record: Record) -> None:
    if clean.fingerprint != record.data["sha256"]:
        raise EvaluationError(f"the official images of {clean.name} are not those of the record: check --data-dir")
    if not torch.equal(labels, clean.labels):
        raise EvaluationError("the labels beside the adversarial images are not the official ones: write them anew")
    for start in range(0, len(images), _BATCH):
        stop = start + _BATCH
        check_attack_result(clean.batch(start, stop)[0], images[start:stop], Threat.parse(record.threat))


def _write(target: Path, images: Tensor) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial:
            torch.save(images.contiguous(), partial)
    except (OSError, RuntimeError) as error:
        raise InputError(f"the images cannot be written to {target} ({error}): choose another folder") from error
