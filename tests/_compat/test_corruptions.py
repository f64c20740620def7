"""RobustBench's evaluation under corruptions runs, with known accuracies, and its files can be read here."""

from __future__ import annotations

import json
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from empir_plugin._compat.corruptions import repair_corruptions
from empir_plugin._compat.hooks import silence_harmless_warnings
from empir_plugin.leaderboard.foreign import BY_CORRUPTIONS, ForeignEntry

with silence_harmless_warnings():
    from robustbench import data
    from robustbench import eval as evaluation
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

CIFAR, CORRUPTIONS = BenchmarkDataset.cifar_10, ThreatModel.corruptions


class FirstPixel(nn.Module):
    """The class is the first pixel, in tenths."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.one_hot((x[:, 0, 0, 0] * 10).round().long(), 10).float()


def images_with(labels: Tensor) -> Tensor:
    return (labels / 10)[:, None, None, None].expand(-1, 3, 4, 4)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., tuple[float, float]]:
    """RobustBench's function on 10 images; at severity s, the first s of them have another class."""
    labels = torch.arange(10)

    def load(n_examples: int, severity: int, data_dir: str, shuffle: bool, corruptions: list[str], **more: Any) -> Any:
        if len(corruptions) != 1 or corruptions[0] not in data.CORRUPTIONS or "prepr" not in more:
            raise AssertionError(corruptions)
        shown = labels.clone()
        shown[:severity] += 1
        return images_with(shown)[:n_examples], labels[:n_examples]

    monkeypatch.setitem(data.CORRUPTION_DATASET_LOADERS[CIFAR], CORRUPTIONS, load)  # pyright: ignore[reportArgumentType, reportCallIssue]
    monkeypatch.setattr(evaluation, "load_clean_dataset", lambda *_: (images_with(labels), labels))
    monkeypatch.chdir(tmp_path)

    def run(**options: Any) -> tuple[float, float]:
        return evaluation.benchmark(FirstPixel().eval(), 10, "cifar10", "corruptions", **options)

    return run


def test_the_loaders_take_the_keyword_that_the_evaluation_passes() -> None:
    for by_threat in data.CORRUPTION_DATASET_LOADERS.values():
        for loader in by_threat.values():  # pyright: ignore[reportAttributeAccessIssue]
            assert {"prepr", "kwargs"} & signature(loader).parameters.keys()


def test_a_second_repair_changes_nothing() -> None:
    before = evaluation.corruptions_evaluation, dict(data.CORRUPTION_DATASET_LOADERS[CIFAR])  # pyright: ignore
    repair_corruptions()
    assert (evaluation.corruptions_evaluation, dict(data.CORRUPTION_DATASET_LOADERS[CIFAR])) == before  # pyright: ignore


def test_the_mean_and_every_accuracy_are_reported(
    benchmark: Callable[..., Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert benchmark() == pytest.approx((1.0, 0.7))
    lines = [line for line in capsys.readouterr().out.splitlines() if "severity=" in line]
    assert len(lines) == 75
    assert lines[0] == "corruption=shot_noise, severity=1: 90.00% accuracy"
    assert lines[-1] == "corruption=elastic_transform, severity=5: 50.00% accuracy"
    assert list(tmp_path.iterdir()) == [], "nothing is written without to_disk"


def test_what_to_disk_writes_can_be_read(benchmark: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("Mine2026First", "Mine2026Second", "Mine2026First"):
        benchmark(to_disk=True, model_name=name)
    folder = tmp_path / "model_info" / "cifar10" / "corruptions"
    entry = ForeignEntry.read(folder / "Mine2026First.json", BY_CORRUPTIONS)
    assert (entry.clean_acc, entry.board_acc) == ("100.00", "70.00")
    assert entry.values["corruptions_mce"] is None
    rows = (folder / "unaggregated_results.csv").read_text().splitlines()
    assert [row.partition(",")[0] for row in rows] == ["", "", "Mine2026Second", "Mine2026First"]
    assert [float(cell) for cell in rows[2].split(",")[1:6]] == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5])


def test_an_error_in_an_existing_file_stays(benchmark: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "model_info" / "cifar10" / "corruptions" / "Mine2026First.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"name": "A Title", "corruptions_mce": "60.46", "clean_acc": "1.0"}')
    benchmark(to_disk=True, model_name="Mine2026First")
    table = json.loads(path.read_text())
    assert (table["name"], table["corruptions_mce"], table["clean_acc"]) == ("A Title", "60.46", "100.0")
    path.write_text('{"name": "A Title"}')
    benchmark(to_disk=True, model_name="Mine2026First")
    assert "corruptions_mce" not in json.loads(path.read_text())


def test_robustbench_computes_the_error_where_alexnet_has_results(
    benchmark: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark(to_disk=True, model_name="AlexNet2")
    path = tmp_path / "model_info" / "cifar10" / "corruptions" / "unaggregated_results.csv"
    path.write_text(path.read_text().replace("AlexNet2", "AlexNet"))
    benchmark(to_disk=True, model_name="Mine2026First")
    table = json.loads((path.parent / "Mine2026First.json").read_text())
    assert table["corruptions_mce"] == "100.0", "as bad as AlexNet, which has the same accuracies"


def test_to_disk_needs_a_name(benchmark: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="`model_name` should be specified"):
        benchmark(to_disk=True)


@pytest.mark.slow
@pytest.mark.data
def test_files_laid_out_as_robustbench_wants_them(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loaders of RobustBench itself, on files of full size, of which only the first images are not empty."""
    folder = tmp_path / "CIFAR-10-C"
    folder.mkdir()
    (tmp_path / "cifar-10-batches-py").symlink_to(data_dir / "cifar-10-batches-py")
    clean, labels = data.load_cifar10(20, str(tmp_path))
    np.save(folder / "labels.npy", np.tile(np.resize(labels.numpy(), 10_000), 5))
    for name in data.CORRUPTIONS:
        images = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.uint8, (50_000, 32, 32, 3))
        for severity in range(5):
            images[10_000 * severity : 10_000 * severity + 20] = (clean.permute(0, 2, 3, 1) * 255).round().numpy()
        images.flush()
    monkeypatch.chdir(tmp_path)
    from empir_plugin import load_model

    model = load_model("empir-cifar", threat_model="corruptions")
    accuracy, corrupted = evaluation.benchmark(model, 20, "cifar10", "corruptions", data_dir=str(tmp_path))
    assert accuracy == pytest.approx(corrupted)
    assert accuracy > 0.5
