"""From models to graphs, without onnx: what is written, and what is refused by name."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.export.graph import Graph
from empir_plugin.export.network import write_model
from empir_plugin.export.quantized import Format, weight_integers
from empir_plugin.models.convert.layers import QuantStdConv2d
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanLogits, MeanProbability
from empir_plugin.models.layers import QuantConv2d, QuantLinear, bake_
from empir_plugin.models.quantize import Precision

SHAPE = (3, 8, 8)


def network(bits: str = "w2a4", *, last: nn.Module | None = None) -> nn.Sequential:
    precision = Precision.parse(bits)
    inner = QuantConv2d(4, 4, 3, padding=1, precision=precision)
    final = QuantLinear(64, 5, precision=precision) if last is None else last
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), inner, nn.MaxPool2d(2), nn.Flatten(), final)
    return model.eval().requires_grad_(False)


def write(model: nn.Module, form: Format = Format.ONNX) -> Graph:
    graph = Graph()
    write_model(graph, model.eval().requires_grad_(False), SHAPE, form)
    return graph


def test_a_quantized_layer_is_integers_then_one_scale_then_the_bias() -> None:
    nodes = [node for node in write(network()).nodes if node.output.startswith("2.")]
    assert [node.op for node in nodes] == ["Clip", "Mul", "Round", "Cast", "Mul", "Sub", "Conv", "Round", "Mul", "Add"]


def test_codes_stand_for_the_integers_of_the_layer() -> None:
    model = network("w4a4")
    bake_(model)
    graph, layer = write(model), model[2]
    (codes,) = (constant for name, constant in graph.constants.items() if name.startswith("2.codes"))
    assert codes.bits == 4
    assert (2 * codes.values.astype(int) - 15).tolist() == layer.integer_weights().values.int().tolist()


def test_qonnx_quantizers_have_the_scale_one() -> None:
    graph = write(network(), Format.QONNX)
    quants = [node for node in graph.nodes if node.op == "Quant"]
    assert len(quants) == 4
    assert {float(graph.constants[node.inputs[1]].values) for node in quants} == {1.0}
    assert [float(graph.constants[node.inputs[3]].values) for node in quants] == [4, 3, 4, 3]
    assert not [node for node in graph.nodes if node.op == "Round"]
    binary = Counter(node.op for node in write(network("w1a2"), Format.QONNX).nodes)
    assert (binary["BipolarQuant"], binary["Quant"]) == (2, 2)


def test_layers_without_exact_sums_have_the_integers_too() -> None:
    layer = QuantConv2d(64, 2, 3, precision=Precision.parse("w8a8")).eval()
    assert layer.integer_weights() is None
    found = weight_integers(Graph(), layer)
    assert torch.allclose(found.values / 255 * found.unit, layer.quantized_weight(), atol=1e-6)


def test_the_same_model_gives_the_same_graph() -> None:
    model = Ensemble([network(), network("w4a4")])
    first, second = write(model), write(copy.deepcopy(model))
    assert first.nodes == second.nodes
    assert {name: each.bytes_stored for name, each in first.constants.items()} == {
        name: each.bytes_stored for name, each in second.constants.items()
    }


class _Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class _Median(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.cumsum(x.flatten(1), 1)


class _Rule:
    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        return logits[0]


def _hooked() -> nn.Module:
    model = network()
    model[2].register_forward_hook(lambda module, inputs, output: output + 1)
    return model


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (network(last=nn.PReLU()), ("5", "PReLU")),
        (network(last=_Twice()), ("Sequential", "cannot be traced")),
        (network(last=_Median()), ("5", "cumsum")),
        (_hooked(), ("2", "forward hooks")),
        (Ensemble([network(), _hooked()]), ("members.1.2", "forward hooks")),
        (Ensemble([network()], _Rule()), ("_Rule", "MaxVote")),
        (nn.Sequential(QuantStdConv2d(3, 4, 3)), ("0", "QuantStdConv2d")),
        (nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect")), ("0", "reflect")),
        (nn.Sequential(nn.MaxPool2d(3, 2, ceil_mode=True)), ("0", "ceil_mode")),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3)), ("0", "(8, 8)", "(3, 3)")),
        (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), ("0", "statistics")),
        (network().double(), ("float64", "float()")),
    ],
)
def test_what_cannot_be_exported_is_named(model: nn.Module, named: tuple[str, ...]) -> None:
    if isinstance(layer := next(model.children()), QuantStdConv2d):
        layer._set_quantizers(Precision.parse("w2a2"), "none")
    with pytest.raises(InputError) as error:
        write(model)
    assert [each for each in named if each not in str(error.value)] == []


@pytest.mark.parametrize("rule", [MaxVote(), MeanProbability(), MeanLogits()])
def test_rules_need_no_operator_that_onnx_lacks(rule: MaxVote | MeanProbability | MeanLogits) -> None:
    used = {node.op for node in write(Ensemble([network(), network()], rule)).nodes}
    assert "NextAfter" not in used
    assert ("ArgMax" in used) == isinstance(rule, MaxVote)
