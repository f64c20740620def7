"""Quantization survives kills and damaged files: run again, it ends with the same files, or says one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from safetensors.torch import save_file

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.quantize import Precision
from empir_plugin.training.networks import full_precision_network
from empir_plugin.training.quantization import QuantizationPlan, QuantizedNetwork, quantize_checkpoint
from empir_plugin.training.schedules import MemberRecipe

TUNED = MemberRecipe("low", 1, 2, 48, precision=Precision(4, 4), scale="max")
PLAN = QuantizationPlan("mnistconv", TUNED)
PUBLISHED = ("low.safetensors", "low.json")


class KilledError(BaseException):
    """Stands for SIGKILL: nothing is cleaned up behind it."""


@pytest.fixture
def quantize(tiny_mnist: ImageSet, tmp_path: Path) -> Callable[[Path], QuantizedNetwork]:
    checkpoint = tmp_path / "full.safetensors"
    save_file(full_precision_network(PLAN.definition(tiny_mnist), TUNED).state_dict(), checkpoint)
    test = ImageSet("mnist", "test", tiny_mnist.images, tiny_mnist.labels, tiny_mnist.class_names)
    return lambda out: quantize_checkpoint(PLAN, checkpoint, tiny_mnist, test, out)


def killed(run: Callable[[Path], Any], out: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run until the files of the disk are about to be replaced for the n-th time; whether it came that far."""
    calls, replace, unlink = [0], os.replace, Path.unlink

    def replace_or_die(*args: Any) -> None:
        if calls[0] >= call:
            raise KilledError
        calls[0] += 1
        replace(*args)

    def unlink_or_die(path: Path, *args: Any, **kwargs: Any) -> None:
        if calls[0] >= call:
            raise KilledError
        unlink(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace_or_die)
        patch.setattr(Path, "unlink", unlink_or_die)
        try:
            run(out)
        except KilledError:
            return True
    return False


def survivors(
    quantize: Callable[[Path], QuantizedNetwork], folder: Path, calls: range, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, int]:
    whole = quantize(folder / "whole")
    tried = survived = 0
    for call in calls:
        if not killed(quantize, folder / str(call), call, monkeypatch):
            break
        tried += 1
        again = quantize(folder / str(call))
        files = {path.name for path in (folder / str(call)).iterdir() if not path.name.startswith(".")}
        survived += again.sha256 == whole.sha256 and files == {path.name for path in (folder / "whole").iterdir()}
    return tried, survived


def test_kills_around_the_files_change_nothing(
    quantize: Callable[[Path], QuantizedNetwork],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tally: Callable[[str, int, int], None],
) -> None:
    tally("quantize, killed between files", *survivors(quantize, tmp_path, range(3, 4), monkeypatch))


@pytest.mark.slow
def test_a_kill_before_every_file_changes_nothing(
    quantize: Callable[[Path], QuantizedNetwork],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tally: Callable[[str, int, int], None],
) -> None:
    tried, survived = survivors(quantize, tmp_path, range(20), monkeypatch)
    assert tried == 5, "two checkpoints and the rotation between them, weights, report"
    tally("quantize, killed before every file", tried, survived)


def refused_or_same(
    quantize: Callable[[Path], QuantizedNetwork], folder: Path, name: str, toys: ModuleType, n: int
) -> int:
    """How many damages of a file end in one sentence, or in the same weights."""
    whole = quantize(folder)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    survived = 0
    for content in toys.damaged_bytes(files[folder / name], n, seed=5):
        for path in folder.iterdir():
            path.unlink()
        for path, before in files.items():
            path.write_bytes(before)
        (folder / name).write_bytes(content)
        try:
            again = quantize(folder)
        except (WeightsError, InputError):
            survived += 1
        else:
            survived += again.sha256 == whole.sha256
    return survived


@pytest.mark.parametrize("name", ["low.checkpoint.safetensors", "low.json", "low.safetensors"])
def test_damaged_files(
    name: str,
    quantize: Callable[[Path], QuantizedNetwork],
    toys: ModuleType,
    tmp_path: Path,
    tally: Callable[[str, int, int], None],
) -> None:
    tally(f"quantize, {name} damaged", 1, refused_or_same(quantize, tmp_path / "out", name, toys, 1))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["low.checkpoint.safetensors", "low.json", "low.safetensors"])
def test_many_damaged_files(
    name: str,
    quantize: Callable[[Path], QuantizedNetwork],
    toys: ModuleType,
    tmp_path: Path,
    tally: Callable[[str, int, int], None],
) -> None:
    tally(f"quantize, {name} damaged", 100, refused_or_same(quantize, tmp_path / "out", name, toys, 100))


@pytest.mark.parametrize("text", ["[" * 10_000 + "]" * 10_000, "1" * 5_000, '{"a": 1e999}', "[]", "\udcff"])
def test_a_report_of_another_form_is_one_sentence(
    text: str, quantize: Callable[[Path], QuantizedNetwork], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "low.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(WeightsError, match=r"low\.json .*--restart"):
        quantize(tmp_path / "out")


def test_the_files_are_in_the_folder_only(quantize: Callable[[Path], QuantizedNetwork], tmp_path: Path) -> None:
    quantize(tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "full.safetensors"}
    assert set(PUBLISHED) < {path.name for path in (tmp_path / "out").iterdir()}
