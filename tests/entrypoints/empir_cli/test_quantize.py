"""``empir quantize``: its report, weight file and error messages."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import save_file

import empir_cli
import empir_plugin
from empir_plugin.data import image_set as data
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.judge import correct
from empir_plugin.models.layers import quantized_layers
from empir_plugin.zoo.quantized.architectures import network

ARGUMENTS = ("quantize", "WideResNet-10-1", "--precision", "w4a4")


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(empir_cli.main, arguments)


@pytest.fixture
def noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise instead of the data sets, whose files have to be the published ones."""
    images = torch.randint(0, 256, (40, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    noise = ImageSet("cifar10", "train", images, torch.arange(40) % 10, tuple("0123456789"))

    def load(name: str, *, data_dir: Path, split: str = "test") -> ImageSet:
        return replace(noise, name=name, split=split) if split == "train" else replace(noise, split=split).first(10)

    monkeypatch.setattr(data, "load_images", load)


def _checkpoint(architecture: str, path: Path) -> Path:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_file(network(architecture, num_classes=10).state_dict(), path)
    return path


@pytest.mark.usefixtures("noise")
def test_it_reports_the_conversion_and_the_accuracies(tmp_path: Path) -> None:
    checkpoint = _checkpoint("WideResNet-10-1", tmp_path / "full.safetensors")
    files = ("--checkpoint", str(checkpoint), "--data-dir", str(tmp_path), "--out", str(tmp_path / "out"))
    tuning = ("--finetune", "1", "--batch-size", "20", "--layers", "block?.layer.0.conv?", "--name", "tiny")
    result = _run("quantize", "WideResNet-10-1", "--precision", "w2a4", *files, *tuning)
    assert result.exit_code == 0, result.output
    text = " ".join(result.output.split())
    assert "WideResNet: 6 layers at w2a4, scale max" in text
    assert "full precision, not among layers=: 4 layers" in text
    report = json.loads((tmp_path / "out" / "tiny.json").read_text())
    for line, key in {"full precision": "full_precision", "converted": "converted", "fine-tuned": "fine_tuned"}.items():
        assert f" {line} {100 * report['accuracies'][key]:.2f} %" in text
    assert f"{report['bytes']:,} bytes, {report['bytes'] / report['full_precision_bytes']:.1%} of the" in text
    assert report["sha256"] in text
    assert report["recipe"] == {
        **{"activations": "auto", "batch_size": 20, "ema": 0.0, "epochs": 1, "flip": True, "label_smoothing": 0.0},
        **{"learning_rate": 1e-3, "name": "tiny", "precision": "w2a4", "scale": "max", "seed": 0, "shift": 3},
        **{"warmup": 0.0, "weight_decay": 0.0},
    }


@pytest.mark.usefixtures("noise")
def test_the_weights_load_as_a_checkpoint_of_the_named_network(tmp_path: Path) -> None:
    checkpoint = _checkpoint("mobilenetv3_small_100", tmp_path / "full.safetensors")
    files = ("--checkpoint", str(checkpoint), "--data-dir", str(tmp_path), "--out", str(tmp_path / "out"), "--json")
    result = _run("quantize", "mobilenetv3_small_100", "--precision", "w4a4", *files)
    assert result.exit_code == 0, result.output
    weights = tmp_path / "out" / "mobilenetv3_small_100-w4a4.safetensors"
    report = json.loads(result.stdout)
    assert report == json.loads(weights.with_suffix(".json").read_text())
    with pytest.warns(UserWarning, match="comes without weights"):
        model = empir_plugin.load_model("dorefa-w4a4-mobilenetv3_small_100", custom_checkpoint=weights)
    inputs = {name: "signed" in layer.extra_repr() for name, layer in quantized_layers(model)}
    assert inputs == {line["name"]: line["activations"] == "signed" for line in report["conversion"]["converted"]}
    assert set(inputs.values()) == {True, False}
    test = data.load_images("cifar10", data_dir=tmp_path)
    assert correct(model, test.as_float(), test.labels).float().mean() == report["accuracies"]["converted"]


BAD = {
    "precision": (("--precision", "w9a4"), "weight_bits must be 1 to 8, or 32 for full precision, got 9"),
    "precision text": (("--precision", "four"), "a precision is written"),
    "full precision": (("--precision", "fp"), "leaves every layer as it is"),
    "no data": ((), "bundled sample holds only test images"),
    "no data to fine-tune on": (("--finetune", "3"), "--data-dir is missing"),
    "data folder": (("--data-dir", "nowhere"), "nowhere"),
    "data set": (("--dataset", "cifar", "--data-dir", "."), "must be one of mnist, cifar10, cifar100, imagenet"),
    "no such GPU": (("--device", "cuda:99"), "use --device cpu"),
    "learning rate": (("--learning-rate", "0", "--data-dir", "."), "learning_rate of member"),
    "name": (("--name", "../up"), "the name of a member or a recipe must begin with a letter or digit"),
}


@pytest.mark.parametrize(("arguments", "sentence"), BAD.values(), ids=BAD)
def test_bad_input_prints_one_sentence_and_exits_with_2(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _check_error(_run(*ARGUMENTS, "--checkpoint", "nowhere.safetensors", *arguments), sentence)
    assert not list(tmp_path.iterdir()), "nothing half-written"


BAD_NETWORKS = {
    "architecture": (("resnet99", "--checkpoint", "full.safetensors"), "no architecture 'resnet99'"),
    "checkpoint": (("WideResNet-10-1", "--checkpoint", "nowhere.safetensors"), "no weight file at nowhere.safetensors"),
    "another depth": (("WideResNet-16-1", "--checkpoint", "full.safetensors"), "it lacks block1.layer.1.bn1"),
    "scale": (("WideResNet-10-1", "--checkpoint", "full.safetensors", "--scale", "min"), "scale must be one of"),
    "layers": (("WideResNet-10-1", "--checkpoint", "full.safetensors", "--layers", "stem"), "layers names 'stem'"),
    "batch": (
        ("WideResNet-10-1", "--checkpoint", "full.safetensors", "--finetune", "1"),
        "40 training images are fewer than a batch of 128",
    ),
}


@pytest.mark.usefixtures("noise")
@pytest.mark.parametrize(("arguments", "sentence"), BAD_NETWORKS.values(), ids=BAD_NETWORKS)
def test_an_unsuitable_network_prints_one_sentence(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _checkpoint("WideResNet-10-1", tmp_path / "full.safetensors")
    _check_error(_run("quantize", *arguments, "--precision", "w4a4", "--data-dir", "."), sentence)
    assert [path.name for path in tmp_path.iterdir()] == ["full.safetensors"]


def _check_error(result: Result, sentence: str) -> None:
    assert result.exit_code == 2, result.output
    assert sentence in result.output
    assert "Traceback" not in result.output
    errors = [line for line in result.output.strip().splitlines() if not line.startswith("accuracy, ")]
    assert len(errors) == 1, "beside the progress of what was measured before"


def _train_a_little(model: torch.nn.Module, steps: int = 2) -> None:
    """A few training steps on noise, so that weights and statistics are no longer the initial ones."""
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model.train()(images), torch.arange(8)).backward()
        optimizer.step()


@pytest.mark.slow
@pytest.mark.usefixtures("noise")
def test_from_a_checkpoint_of_robustbench_s_resnet_to_an_evaluated_ensemble(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = network("ResNet-18", num_classes=10)
        _train_a_little(model)
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, "full.pth")
    files = ("--checkpoint", "full.pth", "--data-dir", ".", "--out", "out")
    for precision in ("w4a4", "w2a2"):
        result = _run("quantize", "ResNet-18", "--precision", precision, *files)
        assert result.exit_code == 0, result.output
    parts = ["full.pth", "out/resnet-18-w4a4.json", "out/resnet-18-w2a2.json"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    arguments = ("--n-examples", "2", "--attack", "fgsm", "--json")
    single = _run("evaluate", parts[1], *arguments)
    assert single.exit_code == 0, single.output
    assert json.loads(single.stdout)["model"]["name"] == "resnet-18-w4a4"
    named = _run("evaluate", "ResNet-18", "--checkpoint", "out/resnet-18-w4a4.safetensors", *arguments)
    assert json.loads(named.stdout)["model"]["sha256"] == json.loads(single.stdout)["model"]["sha256"]
    members = [part for path in parts[1:] for part in ("--member", path)]
    ensemble = json.loads(_run("evaluate", *members, "--rule", "mean_probability", *arguments).stdout)
    assert ensemble["model"]["name"] == "resnet-18-w4a4 + resnet-18-w2a2 (mean_probability)"
    with pytest.warns(UserWarning, match="quantized after training|comes without weights"):
        dorefa = empir_plugin.load_model("dorefa-w4a4-resnet18", custom_checkpoint="full.pth")
    again = empir_plugin.load_model(parts[1])
    assert [name for name, _ in quantized_layers(dorefa)] == [name for name, _ in quantized_layers(again)]


@pytest.mark.usefixtures("noise")
def test_a_callable_with_arguments_and_a_normalisation_is_quantized_and_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    callable_, arguments = "robustbench.model_zoo.architectures.wide_resnet:WideResNet", ("depth=10", "widen_factor=1")
    settings = [part for each in arguments for part in ("--model-args", each)]
    checkpoint = _checkpoint("WideResNet-10-1", tmp_path / "full.safetensors")
    files = ("--checkpoint", str(checkpoint), "--data-dir", ".", "--out", "out", "--name", "tiny")
    channels = ("--mean", "0.49,0.48,0.45", "--std", "0.25,0.24,0.26")
    result = _run("quantize", callable_, "--precision", "w4a4", *settings, *channels, *files, "--activations", "pact")
    assert result.exit_code == 0, result.output
    definition = json.loads(Path("out/tiny.json").read_text())["network"]
    assert definition["settings"] == {"depth": 10, "widen_factor": 1}
    assert definition["mean"] == [0.49, 0.48, 0.45]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    evaluated = _run("evaluate", callable_, "--checkpoint", "out/tiny.safetensors", "--n-examples", "2", "--json")
    assert evaluated.exit_code == 0, evaluated.output


@pytest.mark.usefixtures("noise")
def test_a_named_model_and_a_report_bring_their_weights(tmp_path: Path) -> None:
    files = ("--precision", "w4a4", "--data-dir", str(tmp_path), "--out", str(tmp_path), "--scale", "none")
    result = _run("quantize", "cifarconv-fp", "--activations", "unsigned", *files)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "cifarconv-fp-w4a4.json").is_file()
    again = _run("quantize", str(tmp_path / "cifarconv-fp-w4a4.json"), *files)
    _check_error(again, "is quantized already (w4a4): start from full precision")
    _check_error(_run("quantize", "empir-cifar", *files), "is an ensemble: name one of its networks")
    _check_error(_run("quantize", "ResNet-18", *files), "ResNet-18 comes without weights: pass --checkpoint")
