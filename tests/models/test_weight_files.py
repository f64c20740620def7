"""Checkpoints as people have them: where the weights lie in a file, under what names, and which of several is meant."""

from __future__ import annotations

import logging
import warnings
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from empir_plugin.errors import WeightsError
from empir_plugin.models.packing import save_packed
from empir_plugin.models.weight_files import holds_codes, load_weights

State = dict[str, Tensor]
SKIPS_OBJECTS = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
"""Whether torch can read a file without the objects in it: from 2.6 on."""
needs_newer_torch = pytest.mark.skipif(not SKIPS_OBJECTS, reason="torch before 2.6 refuses files with objects")


def network(seed: int = 0) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            OrderedDict(body=nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2)), head=nn.Linear(2, 2))
        )
        model.get_submodule("body")(torch.rand(4, 3, 4, 4))
        return model.eval()


RAW, AVERAGE = network(1).state_dict(), network(2).state_dict()


def prefixed(prefix: str, state: State = RAW) -> State:
    return {f"{prefix}{key}": value for key, value in state.items()}


def without_counters(state: State) -> State:
    return {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}


def same(model: nn.Module, state: State) -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items())


class Script:
    """An object of a training script, which only that script could unpickle."""

    def __init__(self) -> None:
        self.tensors = [torch.ones(2)]


WRAPPED: dict[str, Any] = {
    "bare": RAW,
    "net": {"net": RAW, "acc": 93.1, "epoch": 12},
    "model": {"model": RAW, "optimizer": torch.optim.Adam(network().parameters()).state_dict()},
    "two keys deep": {"checkpoint": {"model": RAW}, "lr": [0.1]},
    "unknown key": {"my best network so far": RAW},
    "beside scalars": {**RAW, "epoch": 3},
    "parallel": prefixed("module."),
    "compiled": {"net": prefixed("_orig_mod.")},
    "compiled and parallel": {"state_dict": prefixed("module._orig_mod.")},
    "lightning": {"state_dict": prefixed("model."), "hyper_parameters": {"lr": 0.1}},
    "own attribute": {"state_dict": prefixed("classifier.net.")},
    "inner wrappers": {key.replace("body.", "body._orig_mod.module."): value for key, value in RAW.items()},
    "averaged model": {"n_averaged": torch.tensor(5), **prefixed("module.")},
    "no counters": without_counters(RAW),
    "parameters": {key: nn.Parameter(value) if value.is_floating_point() else value for key, value in RAW.items()},
    "the same twice": {"model": RAW, "best_model": {key: value.clone() for key, value in RAW.items()}},
    "in a tuple": (RAW, 93.1),
    "average only": {"model_ema": RAW, "epoch": 3},
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_the_weights_are_found_wherever_a_script_puts_them(kind: str, tmp_path: Path) -> None:
    torch.save(WRAPPED[kind], tmp_path / "file.pt")
    load_weights(model := network(), tmp_path / "file.pt")
    assert same(model, without_counters(RAW))
    counter = model.get_buffer("body.1.num_batches_tracked")
    assert int(counter) == 1


@needs_newer_torch
def test_objects_of_a_script_are_ignored(tmp_path: Path) -> None:
    content = {"model": RAW, "args": Namespace(lr=0.1), "best": np.float64(0.5), "script": Script()}
    torch.save(content, tmp_path / "file.pt")
    load_weights(model := network(), tmp_path / "file.pt")
    assert same(model, RAW)


@pytest.mark.parametrize("name", ["a.pt", "a.safetensors", "a.weights", "a"])
@pytest.mark.parametrize("legacy", [True, False])
def test_the_content_of_a_file_decides_and_not_its_name(name: str, legacy: bool, tmp_path: Path) -> None:
    torch.save(RAW, tmp_path / name, _use_new_zipfile_serialization=not legacy)
    load_weights(model := network(), tmp_path / name)
    assert same(model, RAW)
    save_file(prefixed("module.", AVERAGE), tmp_path / name)
    load_weights(model, tmp_path / name)
    assert same(model, AVERAGE)


def test_what_was_unwrapped_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "empir_plugin")
    torch.save(RAW, tmp_path / "bare.pt")
    load_weights(network(), tmp_path / "bare.pt")
    assert caplog.messages == []
    torch.save({"net": prefixed("module.model.")}, tmp_path / "file.pt")
    load_weights(network(), tmp_path / "file.pt")
    assert caplog.messages == [
        f"{tmp_path}/file.pt: loaded the weights under 'net', without the prefix 'module.model.'"
    ]


def test_a_prefix_of_the_network_is_added(tmp_path: Path) -> None:
    torch.save({"net": RAW}, tmp_path / "file.pt")
    load_weights(model := nn.Sequential(OrderedDict(model=network())), tmp_path / "file.pt")
    assert same(model.get_submodule("model"), RAW)


BESIDE: dict[str, Any] = {
    "timm": {"state_dict": RAW, "state_dict_ema": AVERAGE},
    "model_ema": {"model": RAW, "model_ema": prefixed("module.", AVERAGE)},
    "nested": {"model": RAW, "ema": {"decay": 0.999, "module": AVERAGE}},
    "camel case": {"net": RAW, "netEma": AVERAGE},
    "swa": {"model": RAW, "swa_model": {"n_averaged": torch.tensor(3), **prefixed("module.", AVERAGE)}},
    "one state dict": {"state_dict": prefixed("model.") | prefixed("ema_model.", AVERAGE)},
}


@pytest.mark.parametrize("kind", BESIDE)
def test_a_moving_average_beside_the_weights_asks_which(kind: str, tmp_path: Path) -> None:
    torch.save(BESIDE[kind], file := tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=r"moving average.*--ema or --no-ema"):
        load_weights(model := network(), file)
    assert same(model, network().state_dict()), "a refusal changes nothing"
    load_weights(model, file, ema=False)
    assert same(model, RAW)
    load_weights(model, file, ema=True)
    assert same(model, AVERAGE)


def test_an_average_without_names_asks_too(tmp_path: Path) -> None:
    torch.save({"model": RAW, "ema": {"shadow_params": list(AVERAGE.values())}}, file := tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=r"tensors under 'ema'.*--no-ema"):
        load_weights(network(), file)
    with pytest.raises(WeightsError, match="no moving average that fits"):
        load_weights(network(), file, ema=True)
    load_weights(model := network(), file, ema=False)
    assert same(model, RAW)


@pytest.mark.parametrize(
    ("content", "ema", "sentence"), [({"model": RAW}, True, "--no-ema"), ({"ema": RAW}, False, "--ema")]
)
def test_the_kind_of_weights_that_is_named_must_be_there(
    content: Any, ema: bool, sentence: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=sentence):
        load_weights(network(), tmp_path / "file.pt", ema=ema)


REFUSED: dict[str, tuple[Any, str]] = {
    "a normalization besides": (
        {"mean": torch.ones(3), **prefixed("model.")},
        r"the weights, without the prefix 'model\.' fit, but mean may belong",
    ),
    "a second network": ({"student": RAW, "teacher": AVERAGE}, "several.*under 'student', the weights under 'teacher'"),
    "a loss besides": (
        {"state_dict": {**prefixed("model."), "loss.weight": torch.ones(2)}},
        "'state_dict'.* fit, but loss.weight",
    ),
    "another head": (
        {"net": {**prefixed("module."), "module.head.weight": torch.ones(5, 2)}},
        r"'net', without the prefix 'module\.'.*head\.weight \(5, 2\) instead of \(2, 2\)",
    ),
    "a layer less": (
        {key: value for key, value in RAW.items() if "head" not in key},
        "it lacks head.bias, head.weight",
    ),
    "no tensors": ({"epoch": 3, "config": {"lr": 1}}, "no state dict but 'epoch', 'config': save model.state_dict"),
    "a list": (["weights", 1], "holds no state dict but '0', '1'"),
    "a number": (1, "holds no state dict but int"),
    "sparse": (
        {**RAW, "head.weight": RAW["head.weight"].to_sparse()},
        "'head.weight' as a Tensor .*sparse_coo.*plain tensor",
    ),
    "codes": (
        {"net": {**RAW, "head.weight": torch.ones(2, 2, dtype=torch.int8)}},
        "'head.weight' as torch.int8.*scale",
    ),
    "not finite": (
        {"net": {**RAW, "head.bias": torch.tensor([1.0, torch.inf])}},
        "'head.bias' has values that are not",
    ),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("kind", REFUSED)
def test_other_files_are_refused_with_their_keys(kind: str, tmp_path: Path) -> None:
    content, sentence = REFUSED[kind]
    torch.save(content, tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=sentence):
        load_weights(model := network(), tmp_path / "file.pt")
    assert same(model, network().state_dict())


@needs_newer_torch
def test_an_object_in_place_of_weights_is_named(tmp_path: Path) -> None:
    for content, sentence in (
        (Script(), r"without executing code from it \(it is a .*Script\): save a state dict"),
        ({"model": Script()}, "holds no state dict but 'model' a .*Script"),
        ({"model": RAW, "ema": Script()}, "tensors under 'ema'"),
    ):
        torch.save(content, tmp_path / "file.pt")
        with pytest.raises(WeightsError, match=sentence):
            load_weights(network(), tmp_path / "file.pt")


class Harmful:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.made_by = function, arguments

    def __reduce__(self) -> Any:
        return self.made_by


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("function", [Path.touch, exec, eval])
def test_code_in_a_file_is_never_executed(
    function: Callable[..., Any], legacy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    argument = Path("ran") if function is Path.touch else "__import__('pathlib').Path('ran').touch()"
    content = {"model": RAW, "code": Harmful(function, argument)}
    torch.save(content, "file.pt", _use_new_zipfile_serialization=not legacy)
    model = network()
    if legacy or not SKIPS_OBJECTS or function is Path.touch:  # the latter takes a second call
        with pytest.raises(WeightsError, match="without executing code"):
            load_weights(model, Path("file.pt"))
    else:
        load_weights(model, Path("file.pt"))
        assert same(model, RAW)
    assert not Path("ran").exists()


def test_a_torchscript_file_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer releases of torch
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), tmp_path / "file.pt")
    with pytest.raises(WeightsError, match=r"a TorchScript program.*save a state dict"):
        load_weights(network(), tmp_path / "file.pt")


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    torch.save(RAW, file := tmp_path / "file.pt")
    whole = file.read_bytes()
    for content in (whole[:-1000], whole.replace(b"PK\x01\x02", b"PK\x01\x00"), b"PK\x03\x04", whole[100:]):
        file.write_bytes(content)
        with pytest.raises(WeightsError, match=r"file\.pt"):
            load_weights(network(), file)


def test_packed_files_are_told_apart(tmp_path: Path) -> None:
    source = network(3)
    save_packed(source, tmp_path / "packed.safetensors")
    save_file(RAW, tmp_path / "plain.safetensors")
    torch.save(RAW, tmp_path / "file.pt")
    assert [holds_codes(tmp_path / name) for name in ("packed.safetensors", "plain.safetensors", "file.pt")] == [
        True,
        False,
        False,
    ]
    load_weights(model := network(), tmp_path / "packed.safetensors", ema=False)
    assert same(model, source.state_dict())
    with pytest.raises(WeightsError, match="leave out ema"):
        load_weights(model, tmp_path / "packed.safetensors", ema=True)
