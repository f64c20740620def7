"""The overhead report: shipped models, its JSON form, latency rows, and models without an overhead."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

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
from empir_plugin.models.quantize import Precision
from empir_plugin.zoo.builders import build_model
from empir_plugin.zoo.card import cards

LOW = Precision.parse("w2a4")


def ensemble() -> Ensemble:
    torch.manual_seed(0)
    low = nn.Sequential(QuantConv2d(1, 4, 3, precision=LOW), nn.Flatten(), nn.Linear(16, 2))
    full = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    return Ensemble([low, full])


def test_the_shipped_ensemble() -> None:
    cost = overhead(build_model(cards()["empir-cifar"]), (3, 32, 32))
    assert cost.baseline == "member 2 of the ensemble, its full-precision one"
    assert (cost.parameters, cost.baseline_parameters) == (3 * 116_704, 116_704)
    assert (cost.macs, cost.baseline_macs) == (3 * 10_763_904, 10_763_904)
    assert [member.precision for member in cost.members] == ["w4a2", "w2a2", "fp"]
    assert round(cost.members[0].weights_quantized_share, 4) == 0.6786
    assert cost.members[2].macs_quantized_share == 0
    assert cost.weights_quantized_share == pytest.approx(2 * 79_200 / 350_112)
    assert cost.storage_ratio == pytest.approx(1.771, abs=0.003), "file headers included"
    assert (cost.eq6.storage.ideal, cost.eq6.time.ideal) == (1.1875, 1.1875)
    assert (cost.measured, cost.measured_by_batch_size) == (None, {})
    assert cost.model_sha256 == model_fingerprint(build_model(cards()["empir-cifar"])), "as in run records"


def test_a_single_quantized_network() -> None:
    cost = overhead(build_model(cards()["mnistconv-w2a4"]), (1, 28, 28))
    assert cost.baseline == "the same network in full precision"
    assert cost.eq6.storage.ideal == 2 / 32
    assert cost.storage_ratio == pytest.approx(0.0644, abs=5e-4)


def test_a_plain_network_has_no_overhead() -> None:
    cost = overhead(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8))
    assert cost.storage_ratio == cost.eq6.time.as_built == cost.eq6.time.ideal == cost.bops_ratio.as_built == 1
    assert cost.members[0].precision == "fp"


def test_the_json_form_has_finite_numbers_and_all_fields_of_a_leaderboard_entry() -> None:
    settings = LatencySettings(batch_sizes=(2,), repeats=2)
    table = overhead(ensemble(), (1, 4, 4), latency=settings, errors=True).to_dict()
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    assert {"platform", "fp_baseline", "k_rule", "source", "time", "storage"} <= set(table["eq6"])
    assert {"device", "backend", "threads", "batch_size", "model", "ratio"} <= set(table["measured"])
    assert {"name", "pytorch", "float32", "int8", "bf16"} == set(table["measured"]["processor"])
    assert table["measured_by_batch_size"] == {"2": table["measured"]}
    (conv, fc) = table["members"][0]["layers"]
    assert conv["precision"] == {"weight_bits": 2, "activation_bits": 4}
    assert fc["precision"] == {"weight_bits": 32, "activation_bits": 32}
    assert set(table["members"][0]["errors"]) == {"0"}
    assert table["members"][1]["errors"] == {}


def backends(model: nn.Module) -> list[dict[str, Any]]:
    settings = LatencySettings(batch_sizes=(2,), repeats=2)
    rows = overhead(model, (1, 4, 4), latency=settings).to_dict()["measured"]["backends"]
    assert find_problems({"overhead": {"measured": {"backends": rows}}}) == [], "the rows are valid in an entry"
    assert [(row["network"], row["backend"]) for row in rows[:3]] == [
        ("model", "float32, quantization simulated"),
        ("baseline", "float32, contiguous"),
        ("baseline", "float32, channels_last"),
    ]
    return rows[3:]


def find_problems(entry: dict[str, Any]) -> list[str]:
    return [problem for problem in problems(entry) if "overhead" in problem]


def test_int8_kernels_are_measured_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer, "kernel_for", lambda device: IntMM())
    (row,) = backends(ensemble())
    assert (row["network"], row["backend"], row["unavailable"]) == ("model", "int8 (int_mm)", "")
    assert row["milliseconds"]["median"] > 0
    assert row["ratio"]["p10"] <= row["ratio"]["median"] <= row["ratio"]["p90"]


def test_without_int8_kernels_their_row_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    (row,) = backends(ensemble())
    assert (row["backend"], row["milliseconds"], row["ratio"]) == ("int8", None, None)
    assert "lacks oneDNN's int8 kernels" in row["unavailable"]
    assert find_problems({"overhead": "none"}), "an invalid overhead is a problem of the entry"


def test_the_model_is_unchanged() -> None:
    model = ensemble().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    overhead(model, (1, 4, 4))
    assert model.training
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in before.items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_numbers_must_be_finite() -> None:
    model = nn.Sequential(nn.Flatten(), QuantLinear(4, 40, precision=LOW))
    with torch.no_grad():
        model[1].weight[0, 0] = math.nan  # type: ignore[index]
    with pytest.raises(InputError, match=r"weights .*finite"):
        overhead(model, (1, 2, 2), errors=True)
    cost = overhead(ensemble(), (1, 4, 4))
    for invalid in (replace(cost, storage_ratio=math.inf), replace(cost, bops_ratio=Ratios(1.0, math.nan))):
        with pytest.raises(EvaluationError, match=r"overhead\.(storage|bops)_ratio.* got (inf|nan): measure again"):
            invalid.to_dict()


def test_a_model_needs_a_layer() -> None:
    with pytest.raises(EvaluationError, match=r"linear layer .*got none"):
        overhead(nn.Flatten(), (1, 2, 2))
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        overhead(lambda x: x, (1, 2, 2))  # type: ignore[arg-type]


class Fails(nn.Module):
    """A linear layer that raises an error for a batch of one's choice."""

    def __init__(self, images: int, error: Exception) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.images, self.error = images, error

    def forward(self, x: Tensor) -> Tensor:
        if len(x) == self.images:
            raise self.error
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(
    "error", [KeyError("logits"), AssertionError("logits"), RuntimeError("\x1b[31mlogits\x1b[0m\nx")]
)
def test_a_failing_model_is_quoted_without_blaming_the_shape_alone(error: Exception) -> None:
    kind = type(error).__name__
    with pytest.raises(InputError, match=rf"fails on an image of 1x2x2 with {kind}: '?logits'?: .*CxHxW, if that is"):
        overhead(Fails(1, error), (1, 2, 2))
    with pytest.raises(EvaluationError, match=rf"5 images of 1x2x2 failed with {kind}: '?logits'?: .*another batch"):
        overhead(Fails(5, error), (1, 2, 2), latency=LatencySettings(batch_sizes=(5,), repeats=1))


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16])
def test_networks_of_another_type_are_counted(kind: torch.dtype) -> None:
    def network() -> nn.Module:
        return nn.Sequential(Cast(kind), nn.Flatten(), nn.Linear(4, 3, dtype=kind))

    cost = overhead(Ensemble([network(), network()]), (1, 2, 2), latency=LatencySettings(batch_sizes=(2,), repeats=1))
    assert [member.macs for member in cost.members] == [12, 12]
    assert overhead(network(), (1, 2, 2)).macs == 12


class Cast(nn.Module):
    def __init__(self, kind: torch.dtype) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return x.to(self.kind)


def test_image_shapes() -> None:
    assert image_shape_of("imagenet") == parse_image_shape("3x224x224")
    with pytest.raises(InputError, match=r"mnist, cifar10, .*got 'svhn': give the image shape"):
        image_shape_of("svhn")


@pytest.mark.parametrize("text", ["", "32x32", "3x32x0", "3,32,32", "3x32x-1", "3x32x32x1"])
def test_invalid_image_shapes(text: str) -> None:
    with pytest.raises(InputError, match=rf"3x32x32 .*got '{text}'"):
        parse_image_shape(text)


@pytest.mark.slow
def test_alexnet_as_the_release_builds_it() -> None:
    with pytest.warns(UserWarning, match="no weights"):
        model = build_model(cards()["empir-imagenet"])
    cost: Overhead = overhead(model, (3, 224, 224))
    assert round(cost.eq6.storage.as_built, 3) == 1.319
    assert cost.storage_ratio == pytest.approx(1.319, abs=0.001)
