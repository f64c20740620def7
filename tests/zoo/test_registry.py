"""Models: discovery by entry point, registration with timm, and loading under RobustBench's rules."""

from __future__ import annotations

import re
import sys
import warnings
from importlib.metadata import EntryPoint
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.zoo import registry
from empir_plugin.zoo.builders import ModelBuilder, build_model
from empir_plugin.zoo.card import cards
from empir_plugin.zoo.quantized.build import curated_networks
from empir_plugin.zoo.registry import load_model, timm_name


def test_every_card_is_an_entry_point_and_the_other_way_round() -> None:
    assert set(registry.builders()) == set(cards())


@pytest.mark.parametrize("name", list(cards()))
def test_every_model_is_registered_with_timm_for_its_threats(name: str) -> None:
    card = cards()[name]
    assert all(timm.is_model(timm_name(name, card.dataset, threat)) for threat in card.threats)


def test_timm_s_own_call_gives_the_model_whatever_keywords_its_release_adds() -> None:
    model = timm.create_model("cifarconv_fp_cifar10_linf", pretrained=True, num_classes=10, unheard_of=None)
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.parametrize(
    ("name", "keywords", "message"),
    [
        ("empir_cifar_cifar10_linf", {"num_classes": 100}, "empir-cifar has 10 classes, got num_classes=100"),
    ],
)
def test_timm_s_errors_say_what_to_do(name: str, keywords: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        timm.create_model(name, pretrained=True, **keywords)


def test_timm_s_registry_grows_by_names_that_can_be_built_alone() -> None:
    # One for each data set and threat model that a model is for; test models of other packages may add theirs.
    families = {**{key: (value,) for key, value in registry.builders().items()}, **curated_networks()}
    own = {
        timm_name(name, each.dataset, threat)
        for name, family in families.items()
        for each in family
        for threat in each.threats
    }
    assert all(timm.is_model(name) for name in own)
    assert not timm.is_model("empir_mnist_cifar10_linf")
    assert not timm.is_model("empir_imagenet_imagenet_corruptions")
    module = sys.modules[registry._TIMM_MODULE]
    assert all(hasattr(getattr(module, name), "builder") for name in module.__all__)


def test_load_model_knows_each_model_s_data_set_and_ignores_case_and_dashes() -> None:
    model = load_model("EMPIR_mnist")
    assert isinstance(model, Ensemble)
    assert not model.training
    assert model(torch.rand(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_name": "empir-cifar", "dataset": "mnist"}, "empir-cifar is a model for cifar10, got dataset='mnist'"),
        (
            {"model_name": "empir-mnist", "dataset": "cifar10"},
            "empir-mnist is a model for mnist, got dataset='cifar10'",
        ),
        (
            {"model_name": "empir-imagenet", "threat_model": "corruptions"},
            "empir-imagenet is registered for 'Linf' or 'L2', got threat_model='corr",
        ),
        ({"model_name": "empir-cifar", "threat_model": "L7"}, "is registered for 'Linf' or 'L2' or 'corruptions', got"),
    ],
)
def test_load_model_refuses_what_does_not_fit(arguments: dict[str, str], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        load_model(**arguments)


def test_a_checkpoint_replaces_the_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    other = build_model(cards()["cifarconv-w2a2"])
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    other.train().eval()
    save_file({key: value.contiguous() for key, value in other.state_dict().items()}, tmp_path / "mine.safetensors")
    x = torch.rand(4, 3, 32, 32)
    assert torch.equal(load_model("cifarconv-w2a2", custom_checkpoint=tmp_path / "mine.safetensors")(x), other(x))
    through_timm = timm.create_model(
        "cifarconv_w2a2_cifar10_linf", pretrained=True, checkpoint_path=str(tmp_path / "mine.safetensors")
    )
    assert torch.equal(through_timm.eval()(x), other(x))


def test_a_checkpoint_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, file)
    with pytest.raises(WeightsError, match="was made for another architecture"):
        load_model("cifarconv-fp", custom_checkpoint=file)
    file.write_bytes(b"<html>")
    with pytest.raises(WeightsError, match=r"safetensors.*get it again"):
        load_model("cifarconv-fp", custom_checkpoint=file)
    with pytest.raises(WeightsError, match="no weight file at"):
        load_model("cifarconv-fp", custom_checkpoint=tmp_path / "missing.safetensors")


def test_a_checkpoint_of_another_project_is_unwrapped(tmp_path: Path) -> None:
    model, x = load_model("cifarconv-fp"), torch.rand(4, 3, 32, 32)
    state = {f"module.{key}": value for key, value in model.state_dict().items()}
    zeros = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"net": state, "net_ema": zeros, "acc": 80.1}, file := tmp_path / "ckpt.pth")
    with pytest.raises(WeightsError, match="say which to load, ema=True or ema=False"):
        load_model("cifarconv-fp", custom_checkpoint=file)
    assert torch.equal(load_model("cifarconv-fp", custom_checkpoint=file, ema=False)(x), model(x))
    assert not load_model("cifarconv-fp", custom_checkpoint=file, ema=True)(x).any()
    with pytest.raises(InputError, match="pass custom_checkpoint"):
        load_model("cifarconv-fp", ema=True)


def test_a_checkpoint_gives_a_model_of_another_package_weights(tmp_path: Path) -> None:
    def build(num_classes: int) -> nn.Module:
        model = nn.Linear(3, num_classes)
        vars(model)["weights_loaded"] = False
        return model

    registry.register_family("bare", (ModelBuilder(build, "cifar10"),))
    torch.save(build(10).state_dict(), tmp_path / "bare.pt")
    assert not load_model("bare").weights_loaded
    assert load_model("bare", custom_checkpoint=tmp_path / "bare.pt").weights_loaded


def test_a_checkpoint_replaces_the_weights_that_robustbench_would_download(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel
    from robustbench.model_zoo.models import model_dicts

    rows = model_dicts[BenchmarkDataset("cifar10")][ThreatModel("Linf")]
    monkeypatch.setitem(rows, "Someone2020Robust", {"model": lambda: nn.Linear(2, 1), "gdrive_id": "nowhere"})
    state = {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "theirs.pt")
    model = load_model("Someone2020Robust", custom_checkpoint=tmp_path / "theirs.pt")
    assert not model.training
    assert model(torch.tensor([[2.0, 3.0]])).item() == 5
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["cifarconv-w2a2", "cifarconv-fp"])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_codes_under_the_right_names_are_refused(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    state = build_model(cards()[name]).state_dict()
    codes = {key: (127 * value / value.abs().max()).to(dtype).contiguous() for key, value in state.items()}
    save_file(codes, tmp_path / "codes.safetensors")
    with pytest.raises(WeightsError, match=rf"conv1.weight' as {dtype}.*as torch.float32.*without their scale"):
        load_model(name, custom_checkpoint=tmp_path / "codes.safetensors")
    with pytest.raises(WeightsError, match=rf"conv1.weight' as {dtype}"):  # as RobustBench does
        timm.create_model(
            timm_name(name, "cifar10", "Linf"), pretrained=True, checkpoint_path=str(tmp_path / "codes.safetensors")
        )
    model = build_model(cards()[name])
    with pytest.raises(WeightsError, match=rf"conv1.weight' as {dtype}"):
        model.load_state_dict(codes)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_codes_for_members_of_an_ensemble_and_networks_without_weights_are_refused() -> None:
    ensemble = build_model(cards()["empir-mnist"])
    state = {**ensemble.state_dict(), "members.1.conv2.weight": torch.zeros(1, dtype=torch.int8)}
    with pytest.raises(WeightsError, match=r"members.1.conv2.weight' as torch.int8"):
        ensemble.load_state_dict(state, strict=False)
    member: Any = ensemble.members[1]
    with pytest.raises(WeightsError, match=r"conv2.weight' as torch.int8"):
        member.load_state_dict({"conv2.weight": torch.zeros_like(member.conv2.weight, dtype=torch.int8)}, strict=False)
    with pytest.warns(UserWarning, match="without weights"):
        model = load_model("dorefa-w4a4-preact_resnet18")
    state = {key: value.to(torch.int32) for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"as torch.int32"):
        model.load_state_dict(state)
    assert not model.weights_loaded


@pytest.mark.slow
def test_a_model_without_weights_warns_and_takes_a_checkpoint() -> None:
    with pytest.warns(UserWarning, match=r"alexnet-w2a2 has no weights.*train"):
        model = load_model("alexnet-w2a2")
    assert not model.weights_loaded
    model.load_state_dict(model.state_dict())
    assert model.weights_loaded


def _point(name: str, value: str, distribution: str) -> EntryPoint:
    point = EntryPoint(name, value, registry.GROUP)
    vars(point).update(dist=SimpleNamespace(name=distribution))
    return point


def _discover(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> list[str]:
    monkeypatch.setattr(registry, "entry_points", lambda group: points)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monkeypatch.setattr(registry, "builders", registry.builders.__wrapped__)
        found = registry.builders()
    assert "good" in found, "one broken package must not cost the others"
    return [str(warning.message) for warning in caught]


GOOD = _point("good", "empir_plugin.zoo.builders:empir_cifar", "empir-plugin")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("not_there:builder", "cannot be loaded (ModuleNotFoundError"),
        ("empir_plugin:nothing", "cannot be loaded (AttributeError"),
        ("empir_plugin:Threat", "is no empir_plugin.ModelBuilder but a type"),
    ],
)
def test_a_broken_package_is_a_warning_that_names_it(monkeypatch: pytest.MonkeyPatch, value: str, problem: str) -> None:
    (message,) = _discover(monkeypatch, _point("bad", value, "their-package"), GOOD)
    assert message.startswith(f"model 'bad' of their-package is ignored: it {problem}")


def test_a_name_taken_twice_stays_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = _point("good", "empir_plugin.zoo.builders:empir_mnist", "a-package")
    assert _discover(monkeypatch, theirs, GOOD) == ["model 'good' of a-package is ignored: the name is taken"]


class TakesNothing(nn.Module):
    """A network that cannot be given attributes once it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.ready = True

    def __setattr__(self, name: str, value: object) -> None:
        if self.__dict__.get("ready") and name != "training":
            raise AttributeError(f"no attribute {name}")
        super().__setattr__(name, value)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)[:, :10]


def test_a_builder_that_returns_no_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1)

    builder = ModelBuilder(lambda num_classes: function, "cifar10")  # type: ignore[arg-type,return-value]
    monkeypatch.setattr(registry, "builders", lambda: {"their-function": builder})
    registry.register()
    for load in (lambda: load_model("their-function"), lambda: timm.create_model("their_function_cifar10_linf")):
        with pytest.raises(InputError, match=r"builder of their-function .*torch.nn.Module.*got a function: wrap it"):
            load()


def exported(num_classes: int) -> nn.Module:
    network = nn.Sequential(nn.Flatten(), nn.Linear(48, num_classes)).eval()
    return torch.export.export(network, (torch.rand(2, 3, 4, 4),)).module()


@pytest.mark.parametrize(
    ("name", "build", "message"),
    [
        ("their-simple", lambda: nn.Flatten(), r"builder of their-simple .*num_classes.*add that keyword to .*lambda"),
        ("their-export", exported, r"builder of their-export .*GraphModule.*no evaluation mode.*return the network"),
    ],
    ids=["no keyword", "exported"],
)
def test_a_builder_that_cannot_be_used_as_timm_and_robustbench_do_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, build: Any, message: str
) -> None:
    monkeypatch.setattr(registry, "builders", lambda: {name: ModelBuilder(build, "cifar10")})
    registry.register()
    for load in (lambda: load_model(name), lambda: timm.create_model(timm_name(name, "cifar10", "Linf"))):
        with pytest.raises(InputError, match=message):
            load()


def test_a_builder_may_take_any_keyword_and_its_modes_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(**settings: Any) -> nn.Module:
        network = nn.Sequential(nn.Dropout(), nn.Linear(3, settings["num_classes"]))
        network[0].eval()
        return network

    monkeypatch.setattr(registry, "builders", lambda: {"their-keywords": ModelBuilder(build, "cifar10")})
    registry.register()
    model = timm.create_model("their_keywords_cifar10_linf")
    assert [module.training for module in model.modules()] == [True, False, True]
    assert not load_model("their-keywords").training


def test_a_network_that_takes_no_attribute_is_named_where_timm_sets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = ModelBuilder(lambda num_classes: TakesNothing(), "cifar10")
    monkeypatch.setattr(registry, "builders", lambda: {"their-strict-model": builder})
    registry.register()
    assert load_model("their-strict-model")(torch.rand(2, 3, 4, 4)).shape == (2, 10)
    with pytest.raises(InputError, match=r"their-strict-model .*TakesNothing.*_model_args.*wrap it"):
        timm.create_model("their_strict_model_cifar10_linf", pretrained=True)


def test_another_package_s_model_is_registered_like_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = ModelBuilder(lambda num_classes: nn.Linear(3, num_classes), "cifar100", ("L2",), num_classes=100)
    monkeypatch.setattr(registry, "builders", lambda: {"their-model": builder})
    registry.register()
    assert timm.create_model("their_model_cifar100_l2", pretrained=True).out_features == 100
    assert load_model("their-model", threat_model="L2").out_features == 100
