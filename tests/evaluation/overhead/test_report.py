"""The report: what it says of the shipped models, and that a leaderboard can print it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.overhead.equation6 import Ratios
from empir_plugin.evaluation.overhead.latency import LatencySettings
from empir_plugin.evaluation.overhead.report import Overhead, image_shape_of, overhead, parse_image_shape
from empir_plugin.leaderboard.entry import problems
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer import convert as integer
from empir_plugin.models.integer.kernels import IntMM
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.precision import Precision
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards

LOW = Precision.parse("w2a4")


def ensemble() -> Ensemble:
    torch.manual_seed(0)
    low = nn.Sequential(QuantConv2d(1, 4, 3, precision=LOW), nn.Flatten(), nn.Linear(16, 2))
    full = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    return Ensemble([low, full])


def test_the_shipped_ensemble() -> None:
    found = overhead(build_model(cards()["empir-cifar"]), (3, 32, 32))
    assert found.baseline == "member 2 of the ensemble, its full-precision one"
    assert (found.parameters, found.baseline_parameters) == (3 * 116_704, 116_704)
    assert (found.macs, found.baseline_macs) == (3 * 10_763_904, 10_763_904)
    assert [member.precision for member in found.members] == ["w4a2", "w2a2", "fp"]
    assert round(found.members[0].weights_quantized_share, 4) == 0.6786
    assert found.members[2].macs_quantized_share == 0
    assert found.weights_quantized_share == pytest.approx(2 * 79_200 / 350_112)
    assert found.storage_ratio == pytest.approx(1.771, abs=0.003), "file headers included"
    assert (found.eq6.storage.ideal, found.eq6.time.ideal) == (1.1875, 1.1875)
    assert found.measured is None
    assert found.model_sha256 == model_fingerprint(build_model(cards()["empir-cifar"])), "as in run records"


def test_a_single_quantized_network() -> None:
    found = overhead(build_model(cards()["mnistconv-w2a4"]), (1, 28, 28))
    assert found.baseline == "the same network in full precision"
    assert found.eq6.storage.ideal == 2 / 32
    assert found.storage_ratio == pytest.approx(0.0644, abs=5e-4)


def test_a_plain_network_has_no_overhead() -> None:
    found = overhead(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8))
    assert found.storage_ratio == found.eq6.time.as_built == found.eq6.time.ideal == found.bops_ratio.as_built == 1
    assert found.members[0].precision == "fp"


def test_a_report_is_json_with_finite_numbers_and_everything_a_leaderboard_asks() -> None:
    settings = LatencySettings(batch_size=2, repeats=2)
    table = overhead(ensemble(), (1, 4, 4), latency=settings, errors=True).to_dict()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert {"platform", "fp_baseline", "k_rule", "source", "time", "storage"} <= set(table["eq6"])
    assert {"device", "backend", "threads", "batch_size", "model", "ratio"} <= set(table["measured"])
    (conv, fc) = table["members"][0]["layers"]
    assert conv["precision"] == {"weight_bits": 2, "activation_bits": 4}
    assert fc["precision"] == {"weight_bits": 32, "activation_bits": 32}
    assert set(table["members"][0]["errors"]) == {"0"}
    assert table["members"][1]["errors"] == {}


def backends(model: nn.Module) -> list[dict[str, Any]]:
    settings = LatencySettings(batch_size=2, repeats=2)
    rows = overhead(model, (1, 4, 4), latency=settings).to_dict()["measured"]["backends"]
    assert find_problems({"overhead": {"measured": {"backends": rows}}}) == [], "a leaderboard entry can hold it"
    assert [(row["network"], row["backend"]) for row in rows[:3]] == [
        ("model", "float32, quantization simulated"),
        ("baseline", "float32, contiguous"),
        ("baseline", "float32, channels_last"),
    ]
    return rows[3:]


def find_problems(entry: dict[str, Any]) -> list[str]:
    return [problem for problem in problems(entry) if "overhead" in problem]


def test_integer_kernels_are_measured_beside_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "kernel_for", lambda device: IntMM())
    (row,) = backends(ensemble())
    assert (row["network"], row["backend"], row["unavailable"]) == ("model", "int8 (int_mm)", "")
    assert row["milliseconds"]["median"] > 0
    assert row["ratio"]["p10"] <= row["ratio"]["median"] <= row["ratio"]["p90"]


def test_without_integer_kernels_their_row_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    (row,) = backends(ensemble())
    assert (row["backend"], row["milliseconds"], row["ratio"]) == ("int8", None, None)
    assert "lacks oneDNN's int8 kernels" in row["unavailable"]
    assert find_problems({"overhead": "none"}), "a leaderboard entry is checked for it"


def test_the_model_is_left_as_it_was() -> None:
    model = ensemble().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    overhead(model, (1, 4, 4))
    assert model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_numbers_that_are_none_are_refused() -> None:
    model = nn.Sequential(nn.Flatten(), QuantLinear(4, 40, precision=LOW))
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(InputError, match="weights must be finite"):
        overhead(model, (1, 2, 2), errors=True)
    found = overhead(ensemble(), (1, 4, 4))
    for broken in (replace(found, storage_ratio=math.inf), replace(found, bops_ratio=Ratios(1.0, math.nan))):
        with pytest.raises(EvaluationError, match=r"overhead\.(storage|bops)_ratio.* JSON has no number for"):
            broken.to_dict()


def test_what_has_no_layer_or_is_no_model_is_refused() -> None:
    with pytest.raises(EvaluationError, match="no convolution and no linear layer"):
        overhead(nn.Flatten(), (1, 2, 2))
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        overhead(lambda x: x, (1, 2, 2))  # type: ignore[arg-type]


def test_image_sizes() -> None:
    assert image_shape_of("imagenet") == parse_image_shape("3x224x224")
    with pytest.raises(InputError, match="'svhn' images is not known"):
        image_shape_of("svhn")


@pytest.mark.parametrize("text", ["", "32x32", "3x32x0", "3,32,32", "3x32x-1", "3x32x32x1"])
def test_other_forms_of_an_image_size_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is written 3x32x32"):
        parse_image_shape(text)


@pytest.mark.slow
def test_alexnet_as_the_release_builds_it() -> None:
    with pytest.warns(UserWarning, match="no weights"):
        model = build_model(cards()["empir-imagenet"])
    found: Overhead = overhead(model, (3, 224, 224))
    assert round(found.eq6.storage.as_built, 3) == 1.319
    assert found.storage_ratio == pytest.approx(1.319, abs=0.001)
