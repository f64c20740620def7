"""No way from a registered name into a full unpickling: a file that would create a marker is refused, and runs nothing.

The files hold an object whose unpickling creates an empty file; nothing else happens when it does.
"""

from __future__ import annotations

import io
import logging
import os
import pickle
import tarfile
import weakref
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from robustbench.utils import load_model as robustbench_load_model
from safetensors.torch import save_file
from torch import nn

from empir_plugin import load_model, register_quantized
from empir_plugin._files.tensor_files import sha256
from empir_plugin.errors import CompatibilityError, EmpirError, InputError, WeightsError
from empir_plugin.models import weight_files
from empir_plugin.models.weight_files import checkpoint_sha256, load_checkpoint
from empir_plugin.zoo import checkpoints, registry
from empir_plugin.zoo.checkpoints import without_pickles
from empir_plugin.zoo.quantized.architectures import empir, network

NAME = "cifarconv-w2a2"
TIMM = "cifarconv_w2a2_cifar10_linf"


class Touch:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """The file that unpickling would create; no test may leave it behind."""
    path = tmp_path / "executed"
    yield path
    assert not path.exists(), "code of a checkpoint was executed"


def _as_zip(content: object, path: Path) -> None:
    torch.save(content, path)


def _as_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def _as_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content))


def _as_old_pickle(content: object, path: Path) -> None:
    path.write_bytes(pickle.dumps(content, protocol=0))


def _as_tar(content: object, path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(content)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


def _as_numpy(content: object, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "weights.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
        )
        archive.writestr("data.pkl", pickle.dumps(content))


FORMATS: dict[str, Callable[[object, Path], None]] = {
    "zip": _as_zip,
    "legacy": _as_legacy,
    "pickle": _as_pickle,
    "pickle of protocol 0": _as_old_pickle,
    "tar": _as_tar,
    "numpy": _as_numpy,
}
SUFFIXES = (".pt", ".pth", ".bin", ".pkl", ".tar", ".ckpt", ".npz", ".npy", ".safetensors", "")
PLACES: dict[str, Callable[[object], object]] = {
    "alone": lambda touch: touch,
    "as a state dict": lambda touch: {"state_dict": touch},
    "beside weights": lambda touch: {"model": {"conv1.weight": torch.zeros(1)}, "args": touch},
    "as a weight": lambda touch: {"conv1.weight": touch},
    "as a name": lambda touch: {("conv1.weight", 1): [touch]},
}


def _through_robustbench(path: Path) -> nn.Module:
    return robustbench_load_model(NAME, custom_checkpoint=str(path))


def _through_timm(path: Path) -> nn.Module:
    return timm.create_model(TIMM, pretrained=True, checkpoint_path=str(path))


def _through_us(path: Path) -> nn.Module:
    return load_model(NAME, custom_checkpoint=path)


DOORS = {"RobustBench": _through_robustbench, "timm": _through_timm, "this package": _through_us}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_no_loader_executes_code_of_a_checkpoint(
    door: Callable[[Path], nn.Module],
    write: Callable[[object, Path], None],
    place: Callable[[object], object],
    marker: Path,
    tmp_path: Path,
) -> None:
    write(place(Touch(marker)), tmp_path / "x.pt")
    with pytest.raises(WeightsError):
        door(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_the_ending_of_the_name_opens_no_door(
    door: Callable[[Path], nn.Module], suffix: str, marker: Path, tmp_path: Path
) -> None:
    for number, write in enumerate(FORMATS.values()):
        write({"state_dict": Touch(marker)}, tmp_path / f"{number}{suffix}")
        with pytest.raises(WeightsError):
            door(tmp_path / f"{number}{suffix}")
        link = tmp_path / f"link{number}{suffix}"
        link.symlink_to(tmp_path / f"{number}{suffix}")
        with pytest.raises(WeightsError):
            door(link)


def test_the_marker_is_created_by_a_full_unpickling(tmp_path: Path) -> None:
    for number, write in enumerate((_as_zip, _as_legacy, _as_pickle, _as_old_pickle)):
        write(Touch(tmp_path / f"executed{number}"), tmp_path / "x.pt")
        if write in (_as_zip, _as_legacy):
            torch.load(tmp_path / "x.pt", weights_only=False)
        else:
            pickle.loads((tmp_path / "x.pt").read_bytes())
        assert (tmp_path / f"executed{number}").exists()


@pytest.mark.parametrize("model", [*registry.builders(), "dorefa-w2a2-resnet18"])
def test_every_name_is_guarded(model: str, marker: Path, tmp_path: Path) -> None:
    _as_zip(Touch(marker), tmp_path / "x.pt")
    if model.startswith(("alexnet", "empir-imagenet", "dorefa", "empir-wrn")):
        pytest.skip("large or without weights; registered by the same function")
    builder = registry.find_builder(model)
    assert builder is not None
    for threat in builder.threats:
        with pytest.raises(EmpirError):
            timm.create_model(
                registry.timm_name(model, builder.dataset, threat), checkpoint_path=str(tmp_path / "x.pt")
            )


@pytest.mark.parametrize("key", ["file", "url", "hf_hub_id", "state_dict"])
@pytest.mark.parametrize("keyword", ["pretrained_cfg", "pretrained_cfg_overlay"])
def test_a_configuration_of_timm_names_no_weights(keyword: str, key: str, marker: Path, tmp_path: Path) -> None:
    _as_zip(Touch(marker), tmp_path / "x.pt")
    source = (tmp_path / "x.pt").as_uri() if key == "url" else str(tmp_path / "x.pt")
    with pytest.raises(InputError, match=f"{keyword}.*custom_checkpoint"):
        timm.create_model(TIMM, pretrained=True, **{keyword: {key: source}})


SOURCES: dict[str, Callable[[Path], dict[str, Any]]] = {
    "checkpoint": lambda path: {"checkpoint_path": str(path)},
    "file": lambda path: {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}},
    "url": lambda path: {"pretrained": True, "pretrained_cfg": {"url": path.as_uri()}},
}


@pytest.mark.parametrize("kind", SOURCES)
def test_settings_of_an_architecture_name_no_file(kind: str, marker: Path, tmp_path: Path) -> None:
    _as_zip(Touch(marker), tmp_path / "x.pt")
    given, name = SOURCES[kind](tmp_path / "x.pt"), f"quantized-with-a-{kind}"
    for build in (
        lambda: network("resnet18", num_classes=10, **given),
        lambda: empir("resnet18", precisions=["fp"], num_classes=10, **given),
        lambda: register_quantized(name, "resnet18", "w2a2", **given) and load_model(name),
    ):
        with pytest.raises(InputError, match="load_weights"):
            build()


def test_timm_s_own_downloads_are_read_without_pickles(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _as_zip({"state_dict": Touch(marker)}, tmp_path / "x.pt")
    read: list[object] = []

    def create(*args: object, **kwargs: object) -> nn.Module:
        try:
            torch.load(tmp_path / "x.pt", weights_only=False)
        except pickle.UnpicklingError as error:
            read.append(error)
        return nn.Flatten()

    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    monkeypatch.setattr(timm, "create_model", create)
    network("resnet18", num_classes=10, pretrained=True)
    assert len(read) == 1


def test_the_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with without_pickles():
        assert os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] == "1"
        assert "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD" not in os.environ
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_a_model_of_robustbench_is_not_unpickled_either(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "Debenedetti2022Light_XCiT-S12"  # one that RobustBench builds through timm
    _as_zip({"state_dict": Touch(marker)}, tmp_path / "x.pt")
    asked: list[object] = []
    monkeypatch.setattr("robustbench.utils.load_model", lambda *args: asked.append(args) or nn.Linear(1, 1))
    with pytest.raises(WeightsError):
        load_model(name, custom_checkpoint=tmp_path / "x.pt")
    assert asked == [(name, "./models", "cifar10", "Linf")]


def test_other_models_keep_timm_s_own_loader(tmp_path: Path) -> None:
    network = timm.create_model("test_vit", num_classes=10)
    torch.save({"state_dict": network.state_dict()}, tmp_path / "x.pt")
    load_model(NAME)
    again = timm.create_model("test_vit", num_classes=10, checkpoint_path=str(tmp_path / "x.pt"))
    assert all(torch.equal(value, network.state_dict()[key]) for key, value in again.state_dict().items())


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_are_loaded_through_every_door(
    door: Callable[[Path], nn.Module], suffix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = {key: value.flip(0) if value.dim() else value for key, value in load_model(NAME).state_dict().items()}
    path = tmp_path / f"x{suffix}"
    torch.save({"state_dict": state}, path) if suffix == ".pt" else save_file(state, path)
    with caplog.at_level(logging.INFO, "empir_plugin"):
        model = door(path)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in state.items())
    assert checkpoint_sha256(model) == sha256(path)
    assert f"{path}: sha256 {sha256(path)}" in caplog.text


def test_a_release_of_timm_that_cannot_be_guarded_makes_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "_TIMM", SimpleNamespace())
    with pytest.raises(CompatibilityError, match=f"load_checkpoint.*{timm.__version__}"):
        timm.create_model(TIMM)


def test_a_loader_put_back_by_others_is_guarded_again(
    marker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from timm.models import _factory, _helpers

    monkeypatch.setattr(_factory, "load_checkpoint", _helpers.load_checkpoint)
    _as_zip(Touch(marker), tmp_path / "x.pt")
    with pytest.raises(WeightsError):
        _through_timm(tmp_path / "x.pt")


def test_the_sha256_is_forgotten_when_the_weights_change(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pt")
    model = nn.Linear(2, 2)
    assert checkpoint_sha256(model) is None
    load_checkpoint(model, tmp_path / "x.pt")
    assert checkpoint_sha256(model) == sha256(tmp_path / "x.pt")
    model.load_state_dict(nn.Linear(2, 2).state_dict())
    assert checkpoint_sha256(model) is None


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pt")
    monkeypatch.setattr(weight_files, "load_weights", lambda model, path, ema: path.write_bytes(b"other"))
    with pytest.raises(WeightsError, match="changed while it was read"):
        load_checkpoint(model := nn.Linear(2, 2), tmp_path / "x.pt")
    assert checkpoint_sha256(model) is None


def test_models_are_not_kept_alive(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "x.pt")
    load_checkpoint(model := nn.Linear(2, 2), tmp_path / "x.pt")
    alive = weakref.ref(model)
    del model
    assert alive() is None
