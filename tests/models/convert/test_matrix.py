"""Conversion of timm's networks: expected numbers of quantized layers, and copies, exports and training that work.

The numbers count all layers except the first and the last.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from empir_plugin.models.activations import Activations
from empir_plugin.models.convert.probe import recalibrate_
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import LayerSelection
from empir_plugin.models.layers import bake_, quantized_layers
from empir_plugin.models.packing import load_packed, save_packed
from empir_plugin.models.quantize import WeightQuantizer

SIZE = 32
SMALL_IMAGES = {"img_size": SIZE, "patch_size": 8}
ALL_INNER = LayerSelection(depthwise=True, squeeze_excite=True)
IMAGES = torch.rand(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))

ROWS = [
    pytest.param("vit_tiny_patch16_224", {**SMALL_IMAGES, "depth": 2, "embed_dim": 48}, 8, id="narrow-vit"),
    pytest.param("convnext_atto", {"depths": (1, 1, 1, 1), "dims": (8, 8, 16, 16)}, 15, id="narrow-convnext"),
    pytest.param("mobilenetv3_small_050", {}, 52, id="narrow-mobilenetv3"),
    pytest.param("resnet18", {}, 19, id="resnet18", marks=pytest.mark.slow),
    pytest.param("vit_tiny_patch16_224", SMALL_IMAGES, 48, id="vit_tiny", marks=pytest.mark.slow),
    pytest.param("mobilenetv3_small_100", {}, 52, id="mobilenetv3_small", marks=pytest.mark.slow),
    pytest.param("convnext_atto", {}, 39, id="convnext_atto", marks=pytest.mark.slow),
    pytest.param("tf_efficientnet_b0", {}, 80, id="conv2dsame", marks=pytest.mark.slow),
    pytest.param("nf_resnet26", {}, 28, id="scaled-std", marks=pytest.mark.slow),
    pytest.param("resnetv2_50x1_bit", {}, 52, id="std", marks=pytest.mark.slow),
    pytest.param("swin_tiny_patch4_window7_224", {"img_size": SIZE, "window_size": 4}, 51, marks=pytest.mark.slow),
]
MODES = [Activations.UNSIGNED, Activations.SIGNED]


def full(name: str, settings: dict[str, Any]) -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **settings).eval()
    recalibrate_(model, IMAGES)  # at initialisation the statistics of batch normalisations fit nothing
    return model


def converted(name: str, settings: dict[str, Any], mode: Activations) -> tuple[nn.Module, int]:
    model = full(name, settings)
    report = quantize_(model, "w4a4", activations=mode, layers=ALL_INNER, calibration=IMAGES)
    return model, len(report.converted)


class _Parametrized(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return WeightQuantizer(4, "max")(weight)


def parametrized(model: nn.Module, like: nn.Module) -> nn.Module:
    """The other way to quantize in place: torch's parametrizations, and a hook on the input."""
    for name, layer in quantized_layers(like):
        quantize, target = layer.activation_quantizer, model.get_submodule(name)
        parametrize.register_parametrization(target, "weight", _Parametrized())
        target.register_forward_pre_hook(lambda module, inputs, quantize=quantize: (quantize(inputs[0]),))
    return model


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.value)
@pytest.mark.parametrize(("name", "settings", "count"), ROWS)
def test_matrix(name: str, settings: dict[str, Any], count: int, mode: Activations, tmp_path: Path) -> None:
    model, found = converted(name, settings, mode)
    assert found == count
    reference = full(name, settings)
    with torch.no_grad():
        expected = model(IMAGES)
    assert bool(expected.isfinite().all())

    assert list(model.state_dict()) == list(reference.state_dict())
    untouched = copy.deepcopy(reference)
    reference.load_state_dict(model.state_dict(), strict=True)
    model.load_state_dict(reference.state_dict(), strict=True)
    with torch.no_grad():
        assert torch.equal(model(IMAGES), expected)
        assert not torch.equal(reference(IMAGES), expected)
        if "std" not in str(type(next(iter(quantized_layers(model)))[1])).lower():
            # The other way multiplies levels, whose rounding may move an activation, so that float64 has to compare.
            other, own = parametrized(reference, model).double(), copy.deepcopy(model).double()
            torch.testing.assert_close(other(IMAGES.double()), own(IMAGES.double()), rtol=0, atol=1e-9)
        assert torch.equal(pickle.loads(pickle.dumps(model))(IMAGES), expected)

    save_packed(model, tmp_path / "packed.safetensors")
    again = untouched
    quantize_(again, "w4a4", activations="unsigned", layers=ALL_INNER, calibration=IMAGES)
    load_packed(again, tmp_path / "packed.safetensors")
    with torch.no_grad():
        assert torch.equal(again.eval()(IMAGES), expected)


@pytest.mark.parametrize(("name", "settings", "count"), ROWS)
def test_operands_have_as_many_values_as_levels(name: str, settings: dict[str, Any], count: int) -> None:
    model, _ = converted(name, settings, Activations.AUTO)
    seen: dict[str, int] = {}

    def watch(key: str, layer: Any) -> None:
        layer.register_forward_pre_hook(
            lambda module, inputs: seen.update({key: len(module.quantized_input(inputs[0]).unique())})
        )

    for key, layer in quantized_layers(model):
        watch(key, layer)
        assert len(layer.quantized_weight().unique()) <= 16
    bake_(model)
    with torch.no_grad():
        model(IMAGES)
    assert len(seen) == count
    assert max(seen.values()) <= 16


@pytest.mark.parametrize(("name", "settings", "count"), ROWS)
def test_another_memory_layout_gives_nearly_the_same(name: str, settings: dict[str, Any], count: int) -> None:
    model, _ = converted(name, settings, Activations.AUTO)
    with torch.no_grad():
        expected = model(IMAGES)
        other = model.to(memory_format=torch.channels_last)(IMAGES.to(memory_format=torch.channels_last))
    # Rounding in another order moves a few activations to the next level.
    assert (other - expected).norm() <= 0.25 * expected.norm()


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings", "count"), ROWS)
def test_export_and_compile(name: str, settings: dict[str, Any], count: int) -> None:
    model, _ = converted(name, settings, Activations.AUTO)
    x = IMAGES.clone().requires_grad_(True)
    expected = model(x)
    assert torch.equal(torch.export.export(model, (IMAGES,)).module()(IMAGES), expected)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    y = compiled(x)
    assert torch.equal(y, expected)
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])
