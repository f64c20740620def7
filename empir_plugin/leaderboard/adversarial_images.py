"""Export adversarial images in RobustBench's format: one tensor for the whole test set, saved by torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from empir_plugin._files.atomic import replacing
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, check_images
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.identity import ModelIdentity, model_fingerprint
from empir_plugin.evaluation.judge import check_attack_result, correct
from empir_plugin.evaluation.prepare import exact_float32, prepare_for_images
from empir_plugin.evaluation.record import Record, bits, percent

_BATCH = 500


@dataclass(frozen=True)
class ExportedImages:
    """Adversarial images that were judged and exported.

    Args:
        accuracy: Percent of them that the model classifies correctly.
        n: Number of images.
        checked: Whether their distances from the official images were measured.
    """

    accuracy: float
    n: int
    checked: bool


def export_images(
    path: Path, target: Path, model: nn.Module, record: Record, *, below: float, clean: ImageSet | None = None
) -> ExportedImages:
    """Judge the adversarial images of an evaluation again and write them as one tensor.

    Args:
        path: What :func:`empir_plugin.evaluation.run.evaluate` wrote as ``images``.
        target: The ``.pt`` file to write, one float32 tensor ``(N, C, H, W)``.
        model: The model under attack.
        record: Of that model, on the same images and under the same threat.
        below: The robust accuracy known so far, in percent: the images must lower it.
        clean: The official images, if available: norms and labels are checked against them.

    Raises:
        InputError: If the file holds no adversarial images, or the tensor cannot be written.
        EvaluationError: If the images are of another model, data set or threat, or do not lower the robust accuracy.
    """
    images, labels, about = _read(path)
    _require_same_subject(about, record, model)
    if len(images) != record.data["n"]:
        raise EvaluationError(f"{path} has {len(images):,} images, the test set {record.data['n']:,}: attack all")
    if clean is not None:
        _require_budget(images, labels, clean, record)
    with exact_float32():
        accuracy = percent(
            bits(correct(prepare_for_images(model, torch.device("cpu"), images[:2]).model, images, labels))
        )
    if accuracy >= below:
        raise EvaluationError(
            f"the images of {path} give a robust accuracy of {accuracy:.2f} %, and {below:.2f} % is known already: "
            "submit stronger ones"
        )
    _write(target, images)
    return ExportedImages(accuracy, len(images), clean is not None)


def _read(path: Path) -> tuple[Tensor, Tensor, Mapping[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            images, labels, about = file.get_tensor("images"), file.get_tensor("labels"), file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} holds no adversarial images ({error}): write them with evaluate(images=)") from error
    check_images(images, labels)
    return images, labels, about


def _require_same_subject(about: Mapping[str, str], record: Record, model: nn.Module) -> None:
    identity = ModelIdentity(about.get("model_sha256"), _parse_version(about.get("model_identity", "1")))
    expected = ModelIdentity.of_table(record.model)
    if not identity.is_same(expected, partial(model_fingerprint, model)):
        raise _of_another("model", identity.sha256, expected.sha256)
    if about.get("data_sha256") != record.data["sha256"]:
        raise _of_another("data set", about.get("data_sha256"), record.data["sha256"])
    if about.get("threat") != record.threat:
        raise _of_another("threat", about.get("threat"), record.threat)


def _of_another(what: str, got: object, expected: object) -> EvaluationError:
    return EvaluationError(f"the images are of another {what} ({got}) than the entry ({expected}): make them for it")


def _parse_version(text: str) -> int:
    if not text.isdecimal():
        raise EvaluationError(f"model_identity of the images must be a whole number, got {text!r}: write them anew")
    return int(text)


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
