"""Damaged checkpoints: refused in a sentence, or loaded with finite weights and a SHA-256 that says which file it was.

A flipped bit in a plain file of weights may give other weights that nothing tells from true ones. So the SHA-256 of
the file is kept with the model, and in its run records.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from empir_plugin import Record, Threat, evaluate, load_images, load_model
from empir_plugin._files.tensor_files import read_tensors, save_tensors, sha256
from empir_plugin.attacks import fgsm
from empir_plugin.errors import WeightsError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.packing import is_packed, load_packed, save_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.models.weight_files import checkpoint_sha256, load_checkpoint, load_weights
from empir_plugin.models.weight_quantizers import UniformWeightQuantizer
from empir_plugin.training.networks import load_pretrained


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    layers = (
        nn.Conv2d(1, 3, 3),
        nn.BatchNorm2d(3),
        QuantConv2d(3, 3, 3, precision=Precision(2, 4), scale="max"),
        nn.Flatten(),
    )
    return nn.Sequential(*layers).eval()


def _plain(model: nn.Module, path: Path) -> None:
    save_file(model.state_dict(), path)


def _torch(model: nn.Module, path: Path) -> None:
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, path)


def _legacy(model: nn.Module, path: Path) -> None:
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)


WRITERS: dict[str, Callable[[nn.Module, Path], Any]] = {
    "packed": save_packed,
    "plain": _plain,
    "torch": _torch,
    "legacy": _legacy,
}


def damaged(write: Callable[[nn.Module, Path], Any], path: Path, toys: ModuleType, n: int) -> int:
    """How many of n damaged files are refused, or loaded with finite outputs and their own SHA-256."""
    write(network(), path)
    whole, survived, images = path.read_bytes(), 0, torch.rand(2, 1, 8, 8)
    for content in toys.damaged_bytes(whole, n, seed=3):
        path.write_bytes(content)
        model = network(1)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        try:
            load_checkpoint(model, path)
        except WeightsError:
            survived += all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        else:
            survived += checkpoint_sha256(model) == sha256(path) and bool(_is_finite(model) and _runs(model, images))
    return survived


def _is_finite(model: nn.Module) -> bool:
    return all(bool(value.isfinite().all()) for value in model.state_dict().values())


def _runs(model: nn.Module, images: Tensor) -> bool:
    with torch.no_grad():
        return model(images).shape[0] == len(images)


@pytest.mark.parametrize("kind", WRITERS)
def test_damaged_checkpoints(
    kind: str, toys: ModuleType, tmp_path: Path, tally: Callable[[str, int, int], None]
) -> None:
    tally(f"weight file ({kind}), damaged", 60, damaged(WRITERS[kind], tmp_path / "x.bin", toys, 60))


@pytest.mark.slow
@pytest.mark.parametrize("kind", WRITERS)
def test_many_damaged_checkpoints(
    kind: str, toys: ModuleType, tmp_path: Path, tally: Callable[[str, int, int], None]
) -> None:
    tally(f"weight file ({kind}), damaged", 3_000, damaged(WRITERS[kind], tmp_path / "x.bin", toys, 3_000))


def changed(path: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors, metadata = read_tensors(path)
    tensors = {key: value.clone() for key, value in tensors.items()}
    change(tensors)
    save_tensors(path, tensors, metadata)


def fill(key: str, value: float) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors[key].view(-1)[:1].fill_(value)


def cast(key: str, dtype: torch.dtype) -> Callable[[dict[str, Tensor]], object]:
    return lambda tensors: tensors.update({key: tensors[key].to(dtype)})


NAN, INFINITE = float("nan"), float("inf")
CHANGES = {
    "NaN": fill("0.weight", NAN),
    "infinite": fill("0.bias", INFINITE),
    "NaN in a mean": fill("1.running_mean", NAN),
    "negative variance": fill("1.running_var", -1.0),
    "beyond float32": lambda tensors: tensors.update({"0.bias": tensors["0.bias"].double() + 1e300}),
    "a scale of NaN": fill("2.weight.scale", NAN),
    "an infinite scale": fill("2.weight.scale", INFINITE),
    "a negative scale": fill("2.weight.scale", -1.0),
    "a scale of another type": cast("2.weight.scale", torch.float64),
    "codes of another type": cast("2.weight", torch.int64),
    "codes in rows": lambda tensors: tensors.update({"2.weight": tensors["2.weight"].view(1, -1)}),
    "bits behind the codes": lambda tensors: tensors["2.weight"][-1:].bitwise_or_(128),
    "too few codes": lambda tensors: tensors.update({"2.weight": tensors["2.weight"][:-1].clone()}),
    "complex": cast("0.weight", torch.complex64),
    "whole numbers": cast("0.weight", torch.int32),
    "a shape": lambda tensors: tensors.update({"0.bias": tensors["0.bias"].view(1, -1)}),
    "one less": lambda tensors: tensors.pop("0.bias"),
    "one more": lambda tensors: tensors.update({"3.bias": tensors["0.bias"].clone()}),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("load", [load_packed, load_weights, load_checkpoint])
def test_impossible_values_of_a_packed_file_are_refused(
    load: Callable[[nn.Module, Path], None], change: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    save_packed(network(), path := tmp_path / "x.safetensors")
    changed(path, change)
    model = network(1)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(WeightsError):
        load(model, path)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


PLAIN = {key: change for key, change in CHANGES.items() if "scale" not in key and "code" not in key}


@pytest.mark.parametrize("change", PLAIN.values(), ids=PLAIN)
@pytest.mark.parametrize("kind", ["plain", "torch"])
def test_impossible_values_of_a_plain_file_are_refused(
    kind: str, change: Callable[[dict[str, Tensor]], object], tmp_path: Path
) -> None:
    state = {key: value.clone() for key, value in network().state_dict().items()}
    change(state)
    path = tmp_path / "x.bin"
    torch.save(state, path) if kind == "torch" else save_file(state, path)
    with pytest.raises(WeightsError):
        load_checkpoint(network(1), path)


def test_a_code_that_no_level_has_is_refused(tmp_path: Path) -> None:
    layer = QuantConv2d(1, 4, 3, precision=Precision(2, 4))
    layer.weight_quantizer = UniformWeightQuantizer(2)
    save_packed(model := nn.Sequential(layer), path := tmp_path / "x.safetensors")
    load_packed(model, path)
    changed(path, lambda tensors: tensors["0.weight"].fill_(255))
    with pytest.raises(WeightsError, match=r"'0\.weight' is damaged: a code is above 2"):
        load_packed(model, path)


def test_metadata_nested_without_end_is_one_sentence(tmp_path: Path) -> None:
    nested = "[" * 10_000 + "]" * 10_000
    save_packed(network(), path := tmp_path / "x.safetensors")
    tensors, _ = read_tensors(path)
    for metadata in ({"empir_packed": nested}, {"empir_packed": "{}", "empir_inputs": nested}):
        save_tensors(path, tensors, metadata)
        for load in (load_packed, load_weights, load_pretrained):
            with pytest.raises(WeightsError, match="nested") as error:
                load(network(), path)
            assert len(str(error.value)) < 500
    header = ('{"a":' * 10_000 + "1" + "}" * 10_000).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match="no safetensors file"):
        load_weights(network(), path)
    with pytest.raises(WeightsError, match="no safetensors file"):
        is_packed(path)


@pytest.mark.parametrize("name", ["x" * 300 + ".pt", "missing.pt", "."])
def test_a_path_that_is_no_file_is_one_sentence(name: str, tmp_path: Path) -> None:
    for load in (load_packed, load_weights, load_checkpoint):
        with pytest.raises(WeightsError):
            load(network(), tmp_path / name)


def test_the_record_names_the_file_of_a_custom_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_packed(load_model("cifarconv-w2a2"), path)
    model = load_model("cifarconv-w2a2", custom_checkpoint=path)
    attacks = [AttackSpec("FGSM", fgsm())]
    images = load_images("cifar10", n_examples=2)
    record = evaluate(model, images, Threat.parse("Linf:8/255"), attacks)
    assert record.model["checkpoint_sha256"] == sha256(path)
    record.write(tmp_path / "record.json")
    assert Record.read(tmp_path / "record.json").model == record.model
    own = evaluate(load_model("cifarconv-w2a2"), images, Threat.parse("Linf:8/255"), attacks)
    assert "checkpoint_sha256" not in own.model
