"""Every file that is written has the permissions that the umask gives to a new file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from empir_plugin import Threat, evaluate, load_images, load_model
from empir_plugin._files.atomic import locked, replacing, write_atomically
from empir_plugin.attacks import fgsm
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.models.quantize import Precision
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.training.schedules import MemberRecipe


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("mask", [0o002, 0o077])
def test_all_files_of_training_and_evaluation(mask: int, tiny_mnist: ImageSet, tmp_path: Path) -> None:
    member = MemberRecipe("low", 1, 2, 48, precision=Precision(2, 4))
    with umask(mask):
        train_recipe(Recipe("solo", "mnistconv", "mnist", (member,)), tiny_mnist, tmp_path / "train")
        record = evaluate(
            load_model("mnistconv-w2a4"),
            load_images("mnist", n_examples=2),
            Threat.parse("Linf:0.3"),
            [AttackSpec("FGSM", fgsm())],
            store=tmp_path / "store",
            images=tmp_path / "adversarial.safetensors",
        )
        record.write(tmp_path / "record.json")
    found = modes(tmp_path)
    assert len(found) >= 10
    assert found == dict.fromkeys(found, oct(0o666 & ~mask))


def test_a_writer_that_sets_other_permissions_does_not_keep_them(tmp_path: Path) -> None:
    with umask(0o022), replacing(tmp_path / "x") as partial:
        partial.unlink()
        partial.write_bytes(b"x")
        partial.chmod(0o600)
    assert modes(tmp_path) == {"x": "0o644"}


def test_a_replaced_file_gets_them_too(tmp_path: Path) -> None:
    (tmp_path / "x").touch(0o600)
    with umask(0o022):
        write_atomically(tmp_path / "x", b"x")
        with locked(tmp_path / "lock"):
            assert modes(tmp_path) == {"x": "0o644", "lock": "0o644"}
