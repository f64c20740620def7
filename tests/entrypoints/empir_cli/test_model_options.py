"""Which model a command is about: names, callables, architectures with a checkpoint, reports, members; and errors."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import nn

import empir_cli
from empir_cli.model_options import RULE_NAMES
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.record import Record
from empir_plugin.models.packing import save_packed
from empir_plugin.training.recipe import Recipe
from empir_plugin.training.run import train_recipe
from empir_plugin.zoo.card import RULES
from empir_plugin.zoo.definition import REPORT, NetworkDefinition, network_table
from empir_plugin.zoo.quantized.architectures import network

RECIPE = """
name = "tiny"
architecture = "mnistconv"
dataset = "mnist"

[defaults]
epochs = 1
batch_size = 16

[[members]]
name = "tiny-fp"
precision = "fp"
seed = 1

[[members]]
name = "tiny-w2a4"
precision = "w2a4"
seed = 2

[holdout]
images = 4
threat = "Linf:0.2"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained")
    (out / "tiny.toml").write_text(RECIPE)
    images = torch.randint(0, 256, (20, 1, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    train_recipe(
        Recipe.parse(RECIPE), ImageSet("mnist", "train", images, torch.arange(20) % 10, tuple("0123456789")), out
    )
    return out


def _run(model: str, *arguments: str, record: Path) -> Result:
    options = ("--n-examples", "4", "--attack", "fgsm", "--out", str(record))
    return CliRunner().invoke(empir_cli.main, ["evaluate", *([model] if model else []), *options, *arguments])


def _evaluated(tmp_path: Path, model: str, *arguments: str) -> Record:
    result = _run(model, *arguments, record=tmp_path / "record.json")
    assert result.exit_code == 0, result.output
    return Record.read(tmp_path / "record.json")


def _error(tmp_path: Path, model: str, *arguments: str) -> str:
    result = _run(model, *arguments, record=tmp_path / "record.json")
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not (tmp_path / "record.json").exists()
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("file", "arguments", "name", "threat"),
    [
        ("", (), "tiny (max_vote)", "Linf:0.2"),
        ("tiny.json", ("--rule", "mean_probability"), "tiny (mean_probability)", "Linf:0.2"),
        ("tiny-w2a4.json", (), "tiny-w2a4", "Linf:0.3"),
        ("tiny-fp.safetensors", (), "tiny-fp", "Linf:0.3"),
    ],
)
def test_what_training_wrote_is_evaluated_by_its_path(
    folder: Path, tmp_path: Path, file: str, arguments: tuple[str, ...], name: str, threat: str
) -> None:
    record = _evaluated(tmp_path, str(folder / file), *arguments)
    assert (record.model["name"], record.threat, record.data["name"]) == (name, threat, "mnist")


def test_every_rule_and_member_is_another_model(folder: Path, tmp_path: Path) -> None:
    calls = [(str(folder), "--rule", rule) for rule in RULE_NAMES]
    calls += [(str(folder / f"{name}.json"),) for name in ("tiny-fp", "tiny-w2a4")]
    assert len({_evaluated(tmp_path, *call).model["sha256"] for call in calls}) == 5


def test_members_named_one_by_one_are_the_trained_ensemble(folder: Path, tmp_path: Path) -> None:
    members = [part for name in ("tiny-fp", "tiny-w2a4") for part in ("--member", str(folder / f"{name}.json"))]
    combined = _evaluated(tmp_path, "", *members, "--threat", "linf:0.2")
    assert combined.model["name"] == "tiny-fp + tiny-w2a4 (max_vote)"
    whole = _evaluated(tmp_path, str(folder))
    assert combined.model["sha256"] == whole.model["sha256"]
    assert combined.worst_case == whole.worst_case


def test_the_rule_names_are_those_of_the_model_cards() -> None:
    assert tuple(RULES) == RULE_NAMES


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's in the current folder."""
    (tmp_path / "my_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return "my_nets"


NETS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=10, width=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(3, width, 3, stride=4), nn.Linear(width * 64, num_classes)
    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))

def fixed():
    return Net(7)

def broken():
    raise RuntimeError("no such GPU")

ready = Net()
number = 3
"""


def test_a_callable_is_called_with_the_classes_and_its_arguments(nets: str, tmp_path: Path) -> None:
    record = _evaluated(tmp_path, f"{nets}:Net", "--dataset", "cifar10", "--model-args", "width=8")
    assert record.model["name"] == "Net"
    module = __import__(nets)
    assert record.model["sha256"] == model_fingerprint(module.Net(width=8).eval())
    assert _evaluated(tmp_path, f"{nets}:ready").model["sha256"] == model_fingerprint(module.Net())


def test_a_checkpoint_is_loaded_into_a_callable_and_into_an_architecture(nets: str, tmp_path: Path) -> None:
    networks = {f"{nets}:Net": lambda: __import__(nets).Net(), "WideResNet-10-1": lambda: network(ARCH, num_classes=10)}
    for text, build in networks.items():
        model = build().eval()
        torch.nn.init.constant_(model.fc.bias, 3.0)
        torch.save({"state_dict": model.state_dict()}, tmp_path / "full.pth")
        record = _evaluated(tmp_path, text, "--checkpoint", "full.pth")
        assert record.model["sha256"] == model_fingerprint(model)
        assert str(record.model["name"]).endswith(" (full)")


ARCH = "WideResNet-10-1"


def test_a_normalisation_is_put_before_the_network(nets: str, tmp_path: Path) -> None:
    plain = _evaluated(tmp_path, f"{nets}:Net")
    arguments = ("--mean", "0.5,0.5,0.5", "--std", "1/4,1/4,1/4")
    assert _evaluated(tmp_path, f"{nets}:Net", *arguments).model["sha256"] != plain.model["sha256"]


ERRORS = {
    "no module": (("my_netz:Net",), "module my_netz of my_netz:Net cannot be imported (ModuleNotFoundError"),
    "no such name": (("my_nets:Nett",), "my_nets has no 'Nett' (my_nets:Nett): did you mean 'Net'?"),
    "not callable": (("my_nets:number",), "must be a function or class that returns a torch.nn.Module, got 3"),
    "it fails": (("my_nets:broken",), "cannot be called with no settings (RuntimeError: no such GPU)"),
    "unknown keyword": (("my_nets:Net", "--model-args", "depth=3"), "cannot be called with depth=3 (TypeError"),
    "other classes": (("my_nets:fixed",), "another data set"),
    "no equals sign": (("my_nets:Net", "--model-args", "depth"), "written KEY=VALUE, such as depth=28, got 'depth'"),
    "twice": (("my_nets:Net", "--model-args", "a=1", "--model-args", "a=2"), "gives a twice"),
    "data set": (("my_nets:Net", "--dataset", "cifar"), "must be one of mnist, cifar10, cifar100, imagenet, got"),
    "channels": (("my_nets:Net", "--mean", "half"), "--mean is written as numbers with commas"),
    "std alone": (("my_nets:Net", "--std", "0.5"), "a mean and a std for each channel, got None and (0.5,)"),
    "no checkpoint": (("ResNet-18",), "results with random weights mean nothing: pass --checkpoint"),
    "no such checkpoint": (("ResNet-18", "--checkpoint", "nowhere.pth"), "no weight file at nowhere.pth"),
    "ema alone": (("empir-cifar", "--ema"), "choose among the weights in a file: pass --checkpoint, too"),
    "arguments of a name": (("empir-cifar", "--model-args", "a=1"), "which is complete, takes no --model-args"),
    "rule of a name": (("empir-cifar", "--rule", "mean_logits"), "the rule of empir-cifar is fixed"),
    "unknown rule": (("empir-cifar", "--rule", "majority"), "'majority' is not one of"),
    "nothing": (("",), "pass MODEL, or --member for each member of an ensemble, got neither"),
    "both": (("empir-cifar", "--member", "cifarconv-fp"), "got empir-cifar and --member"),
    "data sets": (("", "--member", "cifarconv-fp", "--member", "mnistconv-fp"), "cifarconv-fp cifar10, mnistconv-fp"),
    "no path": (("runs/nothing.json",), "no report runs/nothing.json, which says how the network is built"),
}


@pytest.mark.parametrize(("arguments", "sentence"), ERRORS.values(), ids=ERRORS)
def test_wrong_models_are_one_sentence(nets: str, tmp_path: Path, arguments: tuple[str, ...], sentence: str) -> None:
    assert sentence in _error(tmp_path, *arguments)


def test_a_report_never_runs_code_that_the_caller_did_not_name(nets: str, tmp_path: Path) -> None:
    weights = tmp_path / "mine.safetensors"
    with torch.random.fork_rng():
        digest = save_packed(__import__(nets).Net().eval(), weights)
    table = network_table(NetworkDefinition(f"{nets}:Net", image_shape=(3, 32, 32)))
    REPORT.write(tmp_path / "mine.json", {"sha256": digest, **table})
    sentence = _error(tmp_path, "mine.json")
    assert f"only you can ask for: name it, {nets}:Net --checkpoint mine.safetensors" in sentence
    assert "describes my_nets:Net, got ResNet-18" in _error(tmp_path, "ResNet-18", "--checkpoint", "mine.safetensors")
    named = _evaluated(tmp_path, f"{nets}:Net", "--checkpoint", "mine.safetensors")
    assert named.model["sha256"] == model_fingerprint(__import__(nets).Net().eval())


BAD_REPORTS = {
    "a run record": ({"model": {}}, "does not say how a network is built"),
    "no weights": ({"sha256": "0", **network_table(NetworkDefinition(ARCH))}, "no weight file at"),
    "a missing key": ({"sha256": "0", "network": {"architecture": ARCH}}, "is not a training report (KeyError"),
    "itself": ({"ensemble": {"members": ["bad"], "rule": "max_vote", "dataset": "mnist", "threat": ""}}, "'network'"),
    "another rule": ({"ensemble": {"members": [], "rule": "any", "dataset": "mnist", "threat": ""}}, "got 'any'"),
    "a path": ({"ensemble": {"members": ["../x"], "rule": "max_vote", "dataset": "a", "threat": ""}}, "x.json cannot"),
}


@pytest.mark.parametrize(("table", "sentence"), BAD_REPORTS.values(), ids=BAD_REPORTS)
def test_a_damaged_report_is_one_sentence(tmp_path: Path, table: dict[str, object], sentence: str) -> None:
    REPORT.write(tmp_path / "bad.json", table)
    assert sentence in _error(tmp_path, str(tmp_path / "bad.json"))


def test_weights_that_were_changed_are_refused(folder: Path, tmp_path: Path) -> None:
    for name in ("tiny-fp.json", "tiny-fp.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "tiny-fp.safetensors").write_bytes((folder / "tiny-w2a4.safetensors").read_bytes())
    assert "its SHA-256 is not that of the model card or report" in _error(tmp_path, str(tmp_path / "tiny-fp.json"))


def test_a_folder_of_several_networks_asks_for_one(folder: Path, tmp_path: Path) -> None:
    assert "got none" in _error(tmp_path, str(tmp_path))
    for name in ("tiny-fp", "tiny-w2a4"):
        (tmp_path / f"{name}.json").write_bytes((folder / f"{name}.json").read_bytes())
    assert "got tiny-fp.json, tiny-w2a4.json: pass the path of the report" in _error(tmp_path, str(tmp_path))


def test_audit_and_overhead_take_the_same_models(folder: Path, tmp_path: Path) -> None:
    weights = str(folder / "tiny-w2a4.json")
    for arguments in (
        ("overhead", weights, "--no-latency"),
        ("overhead", "--member", weights, "--member", str(folder / "tiny-fp.json"), "--no-latency"),
    ):
        result = CliRunner().invoke(empir_cli.main, arguments)
        assert result.exit_code == 0, result.output
        assert "tiny-w2a4" in result.output.partition("compared")[0]
    refused = CliRunner().invoke(empir_cli.main, ["audit", "ResNet-18"])
    assert (refused.exit_code, "pass --checkpoint" in refused.output) == (2, True)


@pytest.mark.parametrize("model", ["Carmon2019Unlabeled", "Rebuffi2021Fixing_70_16_cutmix_extra"])
def test_a_model_of_robustbench_without_a_network_is_one_line(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import robustbench.utils
    from robustbench.model_zoo.models import model_dicts

    def offline(gdrive_id: str, path: object) -> None:
        raise ConnectionError("name resolution failed\nand more")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(robustbench.utils, "download_gdrive_new", offline)
    for threats in model_dicts.values():
        for rows in threats.values():
            if model in rows:
                monkeypatch.setitem(rows[model], "model", lambda: nn.Linear(1, 1))
    sentence = _error(tmp_path, model)
    assert f"models/cifar10/Linf/{model}.pt, and RobustBench could not download them (ConnectionError" in sentence
    assert "as --checkpoint" in sentence
    assert "and more" not in sentence
