"""Adversarial images for RobustBench are judged again, and refused if they are of another model, data set or threat."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import Threat, fgsm
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.identity import IDENTITY, model_fingerprint
from empir_plugin.evaluation.outcome import write_images
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate
from empir_plugin.leaderboard.adversarial_images import export_images

PIXELS = [[10, 200], [120, 125], [128, 122], [50, 60], [200, 10], [130, 128]]
LABELS = [1, 1, 0, 1, 0, 0]
DATA = ImageSet(
    "toy", "test", torch.tensor(PIXELS, dtype=torch.uint8).view(6, 1, 1, 2), torch.tensor(LABELS), ("left", "right")
)
MODEL = nn.Flatten()
"""Decides for the brighter pixel. FGSM moves the two 16/255 closer, and so breaks images 1, 2, 3 and 5."""


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Record]:
    """What ``evaluate`` writes, and its record: the model is robust on 2 of 6 images."""
    path = tmp_path / "images.safetensors"
    attacks = [AttackSpec("FGSM", fgsm())]
    threat = Threat.parse("Linf:8/255")
    record = evaluate(MODEL, DATA, threat, attacks, store=tmp_path / "store", images=path)
    return path, record


def metadata(record: Record, version: int = IDENTITY) -> dict[str, str]:
    model = {"model_sha256": model_fingerprint(MODEL, version), "model_identity": str(version)}
    return {**model, "data_sha256": record.data["sha256"], "threat": record.threat}


def test_one_float32_tensor_of_all_images(images: tuple[Path, Record], tmp_path: Path) -> None:
    path, record = images
    target = tmp_path / "new" / "Toy2020Model.pt"
    exported = export_images(path, target, MODEL, record, below=50.0, clean=DATA)
    assert (exported.accuracy, exported.n, exported.checked) == (33.33, 6, True)
    assert exported.accuracy == record.worst_case_accuracy
    tensor = torch.load(target, weights_only=True)
    assert isinstance(tensor, Tensor)
    assert (tensor.shape, tensor.dtype) == (torch.Size([6, 1, 1, 2]), torch.float32)
    assert MODEL(tensor).argmax(1).eq(DATA.labels).tolist() == [True, False, False, False, True, False]
    assert not export_images(path, target, MODEL, record, below=50.0).checked


def test_images_that_do_not_lower_the_accuracy_are_refused(images: tuple[Path, Record], tmp_path: Path) -> None:
    path, record = images
    with pytest.raises(EvaluationError, match=r"33\.33 %.*33\.33 % is known.*stronger"):
        export_images(path, tmp_path / "x.pt", MODEL, record, below=33.33)
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": {"sha256": "ab", "identity": 2}}, "another model .*ab"),
        ({"model": {"sha256": "ab"}}, "another model .*ab"),
        ({"data": {"sha256": "ab", "n": 6}}, "another data set .*ab"),
        ({"threat": "Linf:4/255"}, "another threat .*4/255"),
    ],
)
def test_images_of_another_subject_are_refused(
    change: dict[str, object], what: str, images: tuple[Path, Record], tmp_path: Path
) -> None:
    path, record = images
    with pytest.raises(EvaluationError, match=what):
        export_images(path, tmp_path / "x.pt", MODEL, replace(record, **change), below=50.0)


def test_fewer_images_than_the_test_set_are_refused(images: tuple[Path, Record], tmp_path: Path) -> None:
    _, record = images
    path = tmp_path / "few.safetensors"
    about = metadata(record)
    write_images(path, DATA.as_float()[:5], DATA.labels[:5], about)
    with pytest.raises(EvaluationError, match=r"5 images.*6: attack all"):
        export_images(path, tmp_path / "x.pt", MODEL, record, below=50.0)


def test_images_outside_of_the_budget_and_wrong_labels_are_refused(images: tuple[Path, Record], tmp_path: Path) -> None:
    _, record = images
    path = tmp_path / "far.safetensors"
    about = metadata(record)
    write_images(path, 1 - DATA.as_float(), DATA.labels, about)
    assert export_images(path, tmp_path / "x.pt", MODEL, record, below=50.0).accuracy == 0.0
    with pytest.raises(EvaluationError, match="left its budget"):
        export_images(path, tmp_path / "x.pt", MODEL, record, below=50.0, clean=DATA)
    write_images(path, DATA.as_float(), 1 - DATA.labels, about)
    with pytest.raises(EvaluationError, match=r"labels.*official.*anew"):
        export_images(path, tmp_path / "x.pt", MODEL, record, below=50.0, clean=DATA)
    other = replace(DATA, labels=1 - DATA.labels)
    with pytest.raises(EvaluationError, match=r"toy.*--data-dir"):
        export_images(path, tmp_path / "x.pt", MODEL, record, below=50.0, clean=other)


def test_a_file_without_images_is_refused(images: tuple[Path, Record], tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no safetensors")
    for name in ("bad", "none"):
        with pytest.raises(InputError, match=rf"{name}.*evaluate\(images=\)"):
            export_images(tmp_path / name, tmp_path / "x.pt", MODEL, images[1], below=50.0)


def test_an_unwritable_target_is_refused(images: tuple[Path, Record], tmp_path: Path) -> None:
    path, record = images
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/x\.pt.*another folder"):
        export_images(path, tmp_path / "file" / "x.pt", MODEL, record, below=50.0)


@pytest.mark.parametrize("versions", [(1, 1), (1, 2), (2, 1)], ids=str)
def test_images_and_records_may_state_different_versions_of_the_identity(
    versions: tuple[int, int], images: tuple[Path, Record], tmp_path: Path
) -> None:
    of_images, of_record = versions
    path, record = tmp_path / "old.safetensors", images[1]
    about = metadata(record, of_images)
    if of_images == 1:  # Files of earlier releases state no version.
        del about["model_identity"]
    write_images(path, 1 - DATA.as_float(), DATA.labels, about)
    record = replace(record, model={"sha256": model_fingerprint(MODEL, of_record), "identity": of_record})
    assert export_images(path, tmp_path / "x.pt", MODEL, record, below=50.0).n == 6
    with pytest.raises(EvaluationError, match="another model"):
        export_images(path, tmp_path / "x.pt", nn.Flatten(2), replace(record, model={"sha256": "ab"}), below=50.0)
