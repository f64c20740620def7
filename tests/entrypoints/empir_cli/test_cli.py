"""The command ``empir``: ``list``, ``evaluate``, error messages and a start without torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import empir_cli
from empir_plugin.evaluation.record import Record
from empir_plugin.models.integer import convert as integer
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.zoo.registry import load_model


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(empir_cli.main, arguments)


def test_help_names_every_command() -> None:
    text = _run("--help").output
    commands = (
        "audit",
        "compare",
        "evaluate",
        "export",
        "leaderboard",
        "list",
        "overhead",
        "quantize",
        "reproduce",
        "train",
    )
    assert all(command in text for command in commands)


def test_list_shows_models_with_precision_accuracy_and_size() -> None:
    result = _run("list")
    assert result.exit_code == 0
    (line,) = (line for line in result.output.splitlines() if line.startswith(" empir-cifar "))
    assert "w4a2 + w2a2 + fp" in line
    assert "75." in line


def test_evaluate_prints_a_table_and_writes_a_record(tmp_path: Path) -> None:
    target = tmp_path / "new" / "record.json"
    result = _run("evaluate", "cifarconv-fp", "--n-examples", "6", "--threat", "Linf:16/255", "--out", str(target))
    assert result.exit_code == 0, result.output
    assert "cifarconv-fp under Linf:16/255, 6 images of cifar10 (bundled sample)" in " ".join(result.output.split())
    assert all(row in result.output for row in ("none (clean)", "FGSM", "PGD-100", "AutoAttack", "worst case"))
    record = Record.read(target)
    assert [len(attack.robust) for attack in record.attacks] == [6] * len(record.attacks)


def test_the_number_to_quote_is_the_bold_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    arguments = ("evaluate", "mnistconv-w2a4", "--n-examples", "4", "--out", str(tmp_path / "r"))
    averaged = _run(*arguments, "--protocol", "released").output.splitlines()
    (average,) = (line for line in averaged if "average of the attacks" in line)
    (worst,) = (line for line in averaged if "worst case per image" in line)
    assert f"{Record.read(tmp_path / 'r').headline_accuracy:.2f} %" in average
    assert ("\x1b[1m" in average, "\x1b[1m" in worst) == (True, False)
    single = _run(*arguments, "--attack", "FGSM").output.splitlines()
    assert not any("average" in line for line in single)
    assert any("\x1b[1m" in line for line in single if "worst case per image" in line)


def test_int8_kernels_are_used_by_default_and_one_option_turns_them_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "record.json"
    arguments = ("evaluate", "cifarconv-w2a2", "--n-examples", "4", "--attack", "FGSM", "--out", str(target))
    monkeypatch.setattr(integer, "kernel_for", lambda device: IntMM())
    _run(*arguments)
    int8 = Record.read(target)
    assert int8.run["backend"]["verdicts"] == "int8 (int_mm)"
    _run(*arguments, "--no-int8")
    float32 = Record.read(target)
    assert float32.run["backend"]["verdicts"] == "float32"
    assert (int8.clean, int8.attacks[0].robust) == (float32.clean, float32.attacks[0].robust)
    monkeypatch.undo()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    _run(*arguments)
    assert Record.read(target).run["backend"]["reason"].startswith("this build of PyTorch lacks")


def test_json_replaces_the_table(tmp_path: Path) -> None:
    target = tmp_path / "record.json"
    arguments = ("evaluate", "cifarconv-fp", "--n-examples", "2", "--json", "--out", str(target))
    result = CliRunner().invoke(empir_cli.main, arguments)
    assert json.loads(result.stdout) == json.loads(target.read_text())


def test_a_cascade_is_noted_and_images_are_written(tmp_path: Path) -> None:
    folders = ("--store", str(tmp_path / "store"), "--images", str(tmp_path / "adv.safetensors"))
    arguments = ("--n-examples", "6", "--attack", "FGSM", "--attack", "PGD-100", "--out", str(tmp_path / "r.json"))
    result = _run("evaluate", "cifarconv-fp", *arguments, *folders, "--cascade", "--threads", "1")
    assert result.exit_code == 0, result.output
    assert "only on images that the attacks above did not break" in " ".join(result.output.split())
    assert Record.read(tmp_path / "r.json").run["cascade"] is True
    assert load_file(tmp_path / "adv.safetensors")["images"].shape == (6, 3, 32, 32)
    independent = _run(
        "evaluate", "cifarconv-fp", "--n-examples", "2", "--attack", "FGSM", "--out", str(tmp_path / "s")
    )
    assert "attacks above" not in independent.output


BAD = {
    "unknown model": (("evaluate", "empir-cifra"), "did you mean 'empir-cifar'?"),
    "eps in 0..255": (("evaluate", "empir-cifar", "--threat", "Linf:8"), "so write 8/255"),
    "threat text": (("evaluate", "empir-cifar", "--threat", "8/255"), "a threat is written 'Linf:8/255'"),
    "unknown norm": (("evaluate", "empir-cifar", "--threat", "L7:1"), "L7"),
    "images without store": (("evaluate", "cifarconv-fp", "--images", "x.safetensors"), "pass one, too"),
    "no images": (("evaluate", "empir-cifar", "--n-examples", "0"), "n_examples must be"),
    "more than bundled": (("evaluate", "empir-cifar", "--n-examples", "5000"), "pass --data-dir for the full set"),
    "data folder": (("evaluate", "empir-cifar", "--data-dir", "nowhere"), "nowhere"),
    "no such GPU": (("evaluate", "empir-cifar", "--device", "cuda:99"), "use --device cpu"),
    "no device": (("evaluate", "empir-cifar", "--device", "tpu?"), "a device is written"),
    "checkpoint": (("evaluate", "empir-cifar", "--checkpoint", "nowhere.safetensors"), "no weight file at nowhere"),
    "record is a folder": (("evaluate", "cifarconv-fp", "--out", "."), "--out must be a file, got the folder ."),
    "images under a file": (
        ("evaluate", "cifarconv-fp", "--store", "s", "--images", f"{__file__}/x.safetensors"),
        "is a file: choose another path",
    ),
    "recipe": (("train", "empir-cifra", "--data-dir", "."), "no recipe 'empir-cifra'"),
    "training data": (("train", "empir-cifar", "--data-dir", "nowhere"), "nowhere"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_prints_one_sentence_and_exits_with_2(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = _run(*arguments)
    assert result.exit_code == 2
    assert sentence in result.output
    assert "Traceback" not in result.output
    assert result.output.strip().count("\n") == 0
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_a_checkpoint_for_another_architecture(tmp_path: Path) -> None:
    save_file({"members.0.weight": torch.zeros(3)}, tmp_path / "other.safetensors")
    result = _run("evaluate", "empir-cifar", "--checkpoint", str(tmp_path / "other.safetensors"))
    assert result.exit_code == 2
    assert "was made for another architecture" in result.output


def test_a_checkpoint_as_a_training_script_saves_it(tmp_path: Path) -> None:
    state = {f"module.{key}": value for key, value in load_model("cifarconv-w2a2").state_dict().items()}
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"model": state, "model_ema": zeros, "epoch": 3}, tmp_path / "last.pt")
    arguments = ("cifarconv-w2a2", "--checkpoint", str(tmp_path / "last.pt"))
    for command in ("evaluate", "audit", "overhead"):
        result = _run(command, *arguments)
        assert result.exit_code == 2
        assert "(--ema or --no-ema)" in result.output
    small = ("--n-examples", "20", "--attack", "FGSM", "--json", "--out", str(tmp_path / "record.json"))
    accuracies = []
    for ema in ("--no-ema", "--ema"):
        result = _run("evaluate", *arguments, *small, ema)
        assert result.exit_code == 0, result.output
        accuracies.append(Record.read(tmp_path / "record.json").clean_accuracy)
    assert accuracies[0] > 60
    assert accuracies[1] < 30
    assert "last.pt: loaded the weights under 'model_ema', without the prefix 'module.'" in result.stderr


def test_a_model_without_weights_is_rejected() -> None:
    name = "dorefa-w4a4-mobilenetv3_small_100"
    with pytest.warns(UserWarning, match="without weights"):
        result = _run("evaluate", name)
    assert result.exit_code == 2
    assert f"{name} has no weights" in result.output


def test_a_bug_is_one_sentence_and_a_traceback_with_debug(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: str) -> str:
        raise ZeroDivisionError

    monkeypatch.setattr("empir_plugin.zoo.find.default_threat", broken)
    result = _run("evaluate", "empir-cifar")
    assert result.exit_code == 2
    assert result.output == (
        "Error: empir did not expect ZeroDivisionError: run `empir --debug ...` for the traceback, and report it\n"
    )
    assert isinstance(_run("--debug", "evaluate", "empir-cifar").exception, ZeroDivisionError)
    assert _run("evaluate", "empir-cifar").exit_code == 2, "one command's --debug is not the next one's"


def test_starting_the_command_line_loads_no_torch() -> None:
    code = "import sys, empir_cli; sys.exit('torch' in sys.modules or 'empir_plugin' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    control = "import sys, torch; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", control], check=False).returncode == 1


def test_threads_apply_to_one_command_only(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    options = ("--n-examples", "2", "--attack", "FGSM", "--threads", str(before + 1))
    result = _run("evaluate", "cifarconv-fp", *options, "--out", str(tmp_path / "r.json"))
    assert result.exit_code == 0, result.output
    assert Record.read(tmp_path / "r.json").run["threads"] == [before + 1]
    assert torch.get_num_threads() == before


class Fails(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AttributeError("\x1b[31mno stage4\x1b[0m\nat line 3")


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.add_(1).flatten(1)


@pytest.mark.parametrize("command", ["evaluate", "audit", "overhead"])
@pytest.mark.parametrize(
    ("model", "sentence"),
    [(Fails(), "with AttributeError: no stage4"), (Writes(), "Error: the model writes to its input")],
)
def test_a_failing_model_is_one_sentence_without_traceback(
    model: nn.Module, sentence: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("empir_plugin.zoo.find.load_model", lambda *args, **kwargs: model)
    monkeypatch.chdir(tmp_path)
    result = _run(command, "cifarconv-fp")
    text = " ".join(result.output.split())
    assert result.exit_code == 2
    assert sentence in text
    assert "\x1b" not in text
    assert "Traceback" not in text
