"""Packed files of converted networks: any number of bits, binary weights, signed and learned ranges."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from empir_plugin.errors import WeightsError
from empir_plugin.models.convert.layers import QuantScaledStdConv2d, ScaledStdConv2d
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.layers import quantized_layers
from empir_plugin.models.packing import load_packed, load_strictly, save_packed

IMAGES = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(precision: str, *, seed: int = 0, **settings: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3),
        nn.BatchNorm2d(6),
        nn.GELU(),
        ScaledStdConv2d(6, 6, 3, padding=0),
        nn.Flatten(),
        nn.Linear(96, 12),
        nn.Linear(12, 4),
    ).eval()
    if precision:
        quantize_(model, precision, calibration=IMAGES, **settings)
    return model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def metadata(file: Path) -> dict[str, str]:
    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


@pytest.mark.parametrize(
    ("precision", "settings"),
    [
        *((f"w{bits}a{bits}", {"activations": "signed"}) for bits in range(1, 9)),
        ("w1a1", {"one_bit": "bnn"}),
        ("w1a1", {"one_bit": "xnor"}),
        ("w1", {"one_bit": "xnor"}),
        ("w3a5", {"activations": "pact"}),
        ("w3a5", {"scale": "none"}),
        ("w3a5", {"scale": "mean"}),
        ("w32a4", {"activations": "signed"}),
    ],
    ids=str,
)
def test_a_loaded_network_computes_the_same_bit_for_bit(precision: str, settings: dict[str, Any], file: Path) -> None:
    saved, loaded = network(precision, **settings), network(precision, seed=1, **settings)
    assert isinstance(loaded[3], QuantScaledStdConv2d)
    assert not torch.equal(loaded(IMAGES), saved(IMAGES))
    save_packed(saved, file)
    load_packed(loaded, file)
    assert torch.equal(loaded(IMAGES), saved(IMAGES))
    for (_, ours), (_, theirs) in zip(quantized_layers(loaded.train()), quantized_layers(saved), strict=True):
        if ours.weight_quantizer.bits < 32:
            assert torch.equal(ours.weight_quantizer.codes(ours.weight), theirs.weight_quantizer.codes(theirs.weight))


def test_weights_take_their_bits_and_xnor_a_number_for_each_filter(file: Path) -> None:
    save_packed(network("w1a1", one_bit="xnor"), file)
    tensors = load_file(file)
    assert tensors["3.weight"].numel() == 6 * 6 * 9 / 8 + 0.5  # 40.5 bytes, and the rest of one
    assert tensors["3.weight.scale"].shape == (6,)
    assert tensors["0.weight"].dtype == torch.float32


def test_the_file_says_which_inputs_are_signed_and_the_network_follows(file: Path) -> None:
    saved = network("w4a4", activations="signed")
    save_packed(saved, file)
    assert json.loads(metadata(file)["empir_inputs"]) == {"3": "signed", "5": "signed"}
    loaded = network("w4a4", activations="unsigned", seed=1)
    load_packed(loaded, file)
    assert torch.equal(loaded(IMAGES), saved(IMAGES))


def test_files_of_unsigned_networks_are_written_as_before(file: Path) -> None:
    saved = network("w4a4", activations="unsigned")
    save_packed(saved, file)
    assert metadata(file).keys() == {"empir_packed"}
    assert json.loads(metadata(file)["empir_packed"])["5.weight"] == {"bits": 4, "shape": [12, 96]}
    loaded = network("w4a4", activations="signed", seed=1)
    load_packed(loaded, file)
    assert torch.equal(loaded(IMAGES), saved(IMAGES))


@pytest.mark.parametrize("inputs", ['{"3": "cubed"}', '{"3": "sign"}', "[]"])
def test_unknown_quantizations_of_inputs_are_refused(inputs: str, file: Path) -> None:
    model = network("w4a4")
    save_packed(model, file)
    before = model(IMAGES)
    save_file(load_file(file), file, metadata(file) | {"empir_inputs": inputs})
    with pytest.raises(WeightsError, match=r"damaged or newer.*'3'"):
        load_packed(model, file)
    assert torch.equal(model(IMAGES), before)


@pytest.mark.parametrize(("one", "other"), [("bnn", "xnor"), ("dorefa", "bnn"), ("xnor", "dorefa")])
def test_one_bit_of_another_definition_is_refused(one: str, other: str, file: Path) -> None:
    save_packed(network("w1", one_bit=one), file)
    model = network("w1", one_bit=other)
    before = model(IMAGES)
    with pytest.raises(WeightsError, match="made for another architecture or precision"):
        load_packed(model, file)
    assert torch.equal(model(IMAGES), before)


def test_a_scale_of_another_shape_is_refused(file: Path) -> None:
    model = network("w1", one_bit="xnor")
    save_packed(model, file)
    tensors = load_file(file)
    save_file(tensors | {"3.weight.scale": torch.tensor(1.0)}, file, metadata(file))
    with pytest.raises(WeightsError, match=r"'3\.weight' is not a stream of codes with a scale"):
        load_packed(model, file)


def test_full_precision_weights_fit_learned_ranges_and_errors_name_the_keys(file: Path) -> None:
    full, model = network(""), network("w4a4", activations="pact", seed=1)
    load_strictly(model, full.state_dict(), file)
    assert torch.equal(model[3].weight, full[3].weight)
    state = {**full.state_dict(), "9.weight": torch.ones(1), "6.bias": torch.ones(5)}
    del state["0.bias"]
    with pytest.raises(
        WeightsError,
        match=r"lacks 0\.bias.*besides 9\.weight.*6\.bias \(5,\) instead of \(4,\)",
    ):
        load_strictly(model, state, file)
