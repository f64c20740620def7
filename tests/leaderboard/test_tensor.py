"""Adversarial images for RobustBench: judged once more, and refused if they are of something else."""

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
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate, write_images
from empir_plugin.leaderboard.tensor import export

PIXELS = [[10, 200], [120, 125], [128, 122], [50, 60], [200, 10], [130, 128]]
LABELS = [1, 1, 0, 1, 0, 0]
DATA = ImageSet(
    "toy", "test", torch.tensor(PIXELS, dtype=torch.uint8).view(6, 1, 1, 2), torch.tensor(LABELS), ("left", "right")
)
MODEL = nn.Flatten()
"""Decides for the brighter pixel: FGSM moves the two 16/255 closer, and so breaks images 1, 2, 3 and 5."""


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, Record]:
    """What ``evaluate`` writes, and its record: 2 of 6 are left."""
    path = tmp_path / "images.safetensors"
    attacks = [AttackSpec("FGSM", fgsm())]
    threat = Threat.parse("Linf:8/255")
    record = evaluate(MODEL, DATA, threat, attacks, store=tmp_path / "store", images=path)
    return path, record


def test_one_float32_tensor_of_all_images(images: tuple[Path, Record], tmp_path: Path) -> None:
    path, record = images
    target = tmp_path / "new" / "Toy2020Model.pt"
    left = export(path, target, MODEL, record, below=50.0, clean=DATA)
    assert (left.accuracy, left.n, left.checked) == (33.33, 6, True)
    assert left.accuracy == record.worst_case_accuracy
    found = torch.load(target, weights_only=True)
    assert isinstance(found, Tensor)
    assert (found.shape, found.dtype) == (torch.Size([6, 1, 1, 2]), torch.float32)
    assert MODEL(found).argmax(1).eq(DATA.labels).tolist() == [True, False, False, False, True, False]
    assert not export(path, target, MODEL, record, below=50.0).checked


def test_images_that_leave_no_less_than_known_are_no_news(images: tuple[Path, Record], tmp_path: Path) -> None:
    path, record = images
    with pytest.raises(EvaluationError, match=r"leave 33\.33 %, and 33\.33 % is known: that is no news"):
        export(path, tmp_path / "x.pt", MODEL, record, below=33.33)
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"model": {"sha256": "ab"}}, "another model"),
        ({"data": {"sha256": "ab", "n": 6}}, "another data"),
        ({"threat": "Linf:4/255"}, "another threat"),
    ],
)
def test_images_of_something_else(
    change: dict[str, object], what: str, images: tuple[Path, Record], tmp_path: Path
) -> None:
    path, record = images
    with pytest.raises(EvaluationError, match=f"the images are of {what}"):
        export(path, tmp_path / "x.pt", MODEL, replace(record, **change), below=50.0)


def test_fewer_images_than_the_test_set(images: tuple[Path, Record], tmp_path: Path) -> None:
    _, record = images
    path = tmp_path / "few.safetensors"
    about = {"model_sha256": record.model["sha256"], "data_sha256": record.data["sha256"], "threat": record.threat}
    write_images(path, DATA.as_float()[:5], DATA.labels[:5], about)
    with pytest.raises(EvaluationError, match="has 5 images, the test set 6: attack all"):
        export(path, tmp_path / "x.pt", MODEL, record, below=50.0)


def test_images_beyond_the_budget_and_labels_that_are_none(images: tuple[Path, Record], tmp_path: Path) -> None:
    _, record = images
    path = tmp_path / "far.safetensors"
    about = {"model_sha256": record.model["sha256"], "data_sha256": record.data["sha256"], "threat": record.threat}
    write_images(path, 1 - DATA.as_float(), DATA.labels, about)
    assert export(path, tmp_path / "x.pt", MODEL, record, below=50.0).accuracy == 0.0
    with pytest.raises(EvaluationError, match="left its budget"):
        export(path, tmp_path / "x.pt", MODEL, record, below=50.0, clean=DATA)
    write_images(path, DATA.as_float(), 1 - DATA.labels, about)
    with pytest.raises(EvaluationError, match="labels beside the adversarial images are not the official ones"):
        export(path, tmp_path / "x.pt", MODEL, record, below=50.0, clean=DATA)
    other = replace(DATA, labels=1 - DATA.labels)
    with pytest.raises(EvaluationError, match="the official images of toy are not those of the record"):
        export(path, tmp_path / "x.pt", MODEL, record, below=50.0, clean=other)


def test_a_file_that_holds_no_images(images: tuple[Path, Record], tmp_path: Path) -> None:
    (tmp_path / "bad").write_bytes(b"no safetensors")
    for name in ("bad", "none"):
        with pytest.raises(InputError, match="holds no adversarial images"):
            export(tmp_path / name, tmp_path / "x.pt", MODEL, images[1], below=50.0)


def test_a_target_that_cannot_be_written(images: tuple[Path, Record], tmp_path: Path) -> None:
    path, record = images
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match="the images cannot be written to"):
        export(path, tmp_path / "file" / "x.pt", MODEL, record, below=50.0)
