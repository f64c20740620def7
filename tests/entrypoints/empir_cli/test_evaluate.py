"""``empir evaluate --threat corruptions``: what it prints and records, and its error messages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from empir_cli import main
from empir_plugin.data import image_set
from empir_plugin.evaluation.record import Record


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["evaluate", *arguments])


@pytest.fixture
def bundled_clean_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clean images of every folder are those of the bundled sample."""
    load = image_set.load_images

    def load_sample(name: str, *, data_dir: object = None, n_examples: int | None = None) -> Any:
        return load(name, n_examples=n_examples or 12)

    monkeypatch.setattr(image_set, "load_images", load_sample)


def test_the_mean_and_every_corruption_are_printed(
    corrupted_dir: Path, bundled_clean_images: None, tmp_path: Path
) -> None:
    path = tmp_path / "record.json"
    result = run("cifarconv-w2a2", "--threat", "corruptions", "--data-dir", str(corrupted_dir), "--out", str(path))
    assert result.exit_code == 0, result.output
    record = Record.read(path)
    assert "12 images of CIFAR-10-C (folder)" in result.output
    assert "These are not the published images: the numbers make no leaderboard entry." in result.output
    (mean,) = (line for line in result.output.splitlines() if "mean over corruptions" in line)
    assert f"{record.headline_accuracy:.2f} %" in mean
    assert "jpeg_compression" in result.output
    assert (record.threat, len(record.attacks)) == ("corruptions", 75)


BAD = {
    "nothing": ((), "corrupted images are not bundled: pass --data-dir with CIFAR-10-C"),
    "attack": (("--attack", "FGSM", "--cascade"), "runs no attack, got --attack, --cascade: leave that out"),
    "protocol": (("--protocol", "standard"), "runs no attack, got --protocol"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    result = run("cifarconv-w2a2", "--threat", "corruptions", *arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_missing_images_are_one_sentence_with_the_cure(tmp_path: Path, bundled_clean_images: None) -> None:
    result = run("cifarconv-w2a2", "--threat", "corruptions", "--data-dir", str(tmp_path))
    assert result.exit_code == 2
    assert f"CIFAR-10-C needs the folder {tmp_path / 'CIFAR-10-C'}, which is not there" in result.output
    assert "https://zenodo.org/records/2535967" in result.output


def test_corruptions_are_made_only_for_corruptions() -> None:
    result = run("cifarconv-w2a2", "--make-corruptions")
    assert result.exit_code == 2
    assert "--make-corruptions is for --threat corruptions" in result.output


def test_a_model_of_small_images_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("empir_plugin.data.corruptions._require_library", lambda: None)
    result = run("mnistconv-fp", "--threat", "corruptions", "--make-corruptions")
    assert result.exit_code == 2
    assert "got 1 x 28 x 28 of mnist" in result.output
