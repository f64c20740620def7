"""Exported files in onnxruntime and in the qonnx executor: the same function as the model."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import empir_plugin.export.network as export_network
from empir_plugin.data.image_set import load_images
from empir_plugin.errors import CompatibilityError, EvaluationError, InputError
from empir_plugin.export import EXPORT_EXTRA, ExportedModel, Format, export_model
from empir_plugin.export.check import library
from empir_plugin.models.activations import SignActivationQuantizer, SignedActivationQuantizer
from empir_plugin.models.discretize import Levels, discretized
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanLogits, MeanProbability
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.quantize import ActivationQuantizer, Precision, WeightQuantizer
from empir_plugin.models.weight_quantizers import SignWeightQuantizer, UniformWeightQuantizer
from empir_plugin.zoo.quantized.build import normalize_images_
from empir_plugin.zoo.registry import load_model

NEEDS = {Format.ONNX: ("onnx", "onnxruntime"), Format.QONNX: ("onnx", "onnxruntime", "qonnx")}
FORMATS = [
    pytest.param(form, marks=pytest.mark.skipif(not all(map(find_spec, names)), reason=f"needs {names}"))
    for form, names in NEEDS.items()
]
needs_onnx = FORMATS[0].marks[0]


def network(bits: str = "w2a4") -> nn.Sequential:
    torch.manual_seed(0)
    precision = Precision.parse(bits)
    inner = QuantConv2d(4, 6, 3, padding=1, stride=2, precision=precision)
    final = QuantLinear(24, 5, precision=precision)
    norm = nn.BatchNorm2d(4)
    nn.init.normal_(norm.weight)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), inner, nn.AvgPool2d(2), nn.Flatten(), final)
    return model.eval()


def images(n: int = 16) -> Tensor:
    return torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(model: nn.Module, x: Tensor, form: Format, folder: Path) -> Tensor:
    report = export_model(model, folder / "model.onnx", x, format=form)
    assert report.bytes == report.path.stat().st_size
    return ExportedModel(report.path.read_bytes(), form)(x)


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("bits", ["w1a1", "w2a2", "w3a4", "w4a4", "w8a4", "w8a8", "w4", "fp"])
def test_networks_of_every_width_give_the_same_logits(bits: str, form: Format, tmp_path: Path) -> None:
    model, x = network(bits), images()
    torch.testing.assert_close(exported(model, x, form, tmp_path), model(x).detach(), rtol=1e-4, atol=1e-5)


QUANTIZERS = [
    (WeightQuantizer(4, "max"), SignedActivationQuantizer(4), None),
    (WeightQuantizer(2, "mean"), ActivationQuantizer(2), 1.7),
    (SignWeightQuantizer(), SignActivationQuantizer(), None),
    (SignWeightQuantizer(per_filter=True), ActivationQuantizer(4), 0.6),
    (UniformWeightQuantizer(2), SignedActivationQuantizer(2), 2.0),
    (UniformWeightQuantizer(8), ActivationQuantizer(4), None),
]


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("quantizers", QUANTIZERS, ids=str)
def test_every_quantizer_gives_the_same_logits(quantizers: tuple, form: Format, tmp_path: Path) -> None:
    model, x = network(), 3 * images() - 1
    for layer in (model[3], model[6]):
        layer.use_quantizers_(*quantizers)
    torch.testing.assert_close(exported(model, x, form, tmp_path), model(x).detach(), rtol=1e-4, atol=1e-5)


class _Functions(nn.Module):
    """Functions of PyTorch that networks call in their own code."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.BatchNorm2d(3), nn.LayerNorm(3)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm
        x = F.batch_norm(x, n.running_mean, n.running_var, n.weight, n.bias, False, 0.1, 1e-3)
        x = torch.cat([F.hardswish(4 * x) - x, F.hardsigmoid(x), 2 / (F.silu(x) + 3)], 2)
        x = F.pad(x, (1, 0, 2, 1), value=0.5).permute(0, 2, 3, 1).transpose(1, -2)
        x = self.last(x.clamp(-1, 2)).mean((1, 2))
        return F.hardtanh(F.gelu(x), -0.1, 0.7) * x.view(x.size(0), -1)


@pytest.mark.parametrize("form", FORMATS)
def test_functions_in_a_network_give_the_same_outputs(form: Format, tmp_path: Path) -> None:
    model, x = _Functions().eval(), images() - 0.3
    torch.testing.assert_close(exported(model, x, form, tmp_path), model(x).detach(), rtol=1e-4, atol=1e-5)


@needs_onnx
def test_the_normalization_of_images_is_part_of_the_file(tmp_path: Path) -> None:
    model, x = _Functions().eval(), images()
    before = model(x).detach()
    normalize_images_(model, (0.5, 0.4, 0.3), (0.2, 0.2, 0.3))
    assert (model(x) - before).abs().max() > 0.01
    torch.testing.assert_close(exported(model, x, Format.ONNX, tmp_path), model(x).detach(), rtol=1e-4, atol=1e-5)


class _Led(Ensemble):
    """An ensemble whose leader is given."""

    given: int | None = None

    @property
    def leader(self) -> int | None:
        return self.given


def _select(start: int) -> nn.Module:
    """A member that returns 4 of the 12 numbers of an image."""
    linear = nn.Linear(12, 4, bias=False)
    linear.weight.data = torch.eye(12)[start : start + 4]
    return nn.Sequential(nn.Flatten(), linear)


@needs_onnx
@pytest.mark.parametrize("rule", [MaxVote(), MeanProbability(), MeanLogits()])
@pytest.mark.parametrize("leader", [None, 0, 2])
def test_rules_elect_the_same_class_where_votes_and_logits_tie(
    rule: MaxVote, leader: int | None, tmp_path: Path
) -> None:
    ensemble = _Led([_select(0), _select(4), _select(8)], rule).eval()
    ensemble.given = leader
    x = torch.randint(0, 3, (500, 1, 3, 4), generator=torch.Generator().manual_seed(2)).float()
    x[:2, 0, 0] = torch.tensor([30.0, 30.0, 0.0, 0.0])
    outputs, expected = exported(ensemble, x, Format.ONNX, tmp_path), ensemble(x).detach()
    torch.testing.assert_close(outputs, expected)
    if isinstance(rule, MaxVote):  # means that are equal in exact arithmetic may round either way
        assert torch.equal(outputs.argmax(1), expected.argmax(1))


@needs_onnx
@pytest.mark.parametrize("levels", Levels)
def test_discretized_images_are_part_of_the_file(levels: Levels, tmp_path: Path) -> None:
    model, x = discretized(Ensemble([network(), network("fp")]), 2, levels).eval(), images()
    torch.testing.assert_close(exported(model, x, Format.ONNX, tmp_path), model(x).detach(), rtol=1e-4, atol=1e-5)


@needs_onnx
def test_a_file_takes_any_number_of_images_and_is_the_same_every_time(tmp_path: Path) -> None:
    paths = [tmp_path / "a.onnx", tmp_path / "new" / "b.onnx"]
    for path in paths:
        export_model(network(), path, images())
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert ExportedModel(paths[0].read_bytes(), Format.ONNX)(images(7)).shape == (7, 5)


@needs_onnx
@pytest.mark.parametrize(("bits", "opset"), [("w2a2", 25), ("w4a4", 21), ("w8a4", 21)])
def test_weights_take_the_bits_they_have(bits: str, opset: int, tmp_path: Path) -> None:
    layer = QuantLinear(192, 100, bias=False, precision=Precision.parse(bits))
    report = export_model(nn.Sequential(nn.Flatten(), layer).eval(), tmp_path / "a.onnx", images())
    packed = 192 * 100 * layer.precision.weight_bits // 8
    assert packed < report.bytes < packed + 1500
    assert report.opset == opset


@needs_onnx
def test_a_file_that_computes_something_else_is_not_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    wrong = {**export_network.MODULES, nn.ReLU: lambda call, _: call.graph.add("Neg", call.inputs[0])}
    monkeypatch.setattr(export_network, "MODULES", wrong)
    with pytest.raises(EvaluationError, match="of 64 images"):
        export_model(network(), tmp_path / "a.onnx", images(64))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not find_spec("qonnx"), reason="needs qonnx")
def test_what_compilers_do_first_to_a_qonnx_file_keeps_its_function(tmp_path: Path) -> None:
    model, x, path = network("w4a4"), images(1), tmp_path / "a.onnx"
    export_model(model, path, images(), format="qonnx")
    wrapper = library("qonnx.core.modelwrapper").ModelWrapper(str(path))
    cleaned = library("qonnx.util.cleanup").cleanup_model(wrapper)
    cleaned = cleaned.transform(library("qonnx.transformation.infer_datatypes").InferDataTypes())
    weights = [node.input[0] for node in cleaned.graph.node if node.op_type == "Quant"]
    assert sum(cleaned.get_initializer(name) is not None for name in weights) == 2
    quants = [node.output[0] for node in cleaned.graph.node if node.op_type == "Quant"]
    assert sorted(cleaned.get_tensor_datatype(name).name for name in quants) == ["INT5", "INT5", "UINT4", "UINT4"]
    found = ExportedModel(cleaned.model.SerializeToString(), Format.QONNX)(x)
    torch.testing.assert_close(found, model(x).detach(), rtol=1e-4, atol=1e-5)


def test_a_missing_library_names_the_extra() -> None:
    with pytest.raises(CompatibilityError, match="no_such_library") as error:
        library("no_such_library.part")
    assert EXPORT_EXTRA in str(error.value)


def test_images_must_be_a_batch(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\(3, 8, 8\)"):
        export_model(network(), tmp_path / "a.onnx", torch.rand(3, 8, 8))
    with pytest.raises(InputError, match=r"\(0, 3, 8, 8\)"):
        export_model(network(), tmp_path / "a.onnx", torch.rand(0, 3, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", ["empir-cifar", "empir-mnist", "empir-cifar-at", "empir-mnist-at", "empir-wrn-10-1"])
def test_included_ensembles_decide_the_same_on_1000_images(name: str, form: Format, tmp_path: Path) -> None:
    dataset = "mnist" if "mnist" in name else "cifar10"
    x = load_images(dataset).as_float()
    report = export_model(load_model(name, dataset=dataset), tmp_path / "a.onnx", x, format=form)
    # In 2-bit networks with batch normalization, rounding may move an activation, and rarely a decision with it.
    assert report.agreement.differing_decisions <= (2 if "wrn" in name else 0)
    assert report.agreement.median_logit_difference < 1e-5
