"""Networks of any architecture by name, and ensembles of them."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest
import torch

import empir_plugin
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import MeanProbability
from empir_plugin.models.layers import is_full_precision, quantized_layers
from empir_plugin.zoo.quantized.architectures import empir, network

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_any_callable_becomes_an_ensemble(toys: ModuleType) -> None:
    ensemble = empir(toys.Tiny, precisions=["fp", "w4a4", "w2a2"], num_classes=5, rule=MeanProbability(), width=6)
    assert ensemble(IMAGES).shape == (2, 5)
    assert ensemble.leader == 0
    assert [is_full_precision(member) for member in ensemble.members] == [True, False, False]
    found = [[str(layer.precision) for _, layer in quantized_layers(member)] for member in ensemble.members]
    assert found == [[], ["w4a4"], ["w2a2"]]
    weights = [member.get_parameter("body.weight") for member in ensemble.members]
    assert weights[0].shape == (6, 6, 3, 3)
    assert not torch.equal(weights[0], weights[1])


@pytest.mark.parametrize("architecture", ["mobilenetv3_small_050", "WideResNet-10-1"])
def test_architectures_of_timm_and_of_robustbench(architecture: str) -> None:
    ensemble = empir_plugin.empir(architecture, precisions=["fp", "w4a4"], num_classes=10).eval()
    assert ensemble(IMAGES).shape == (2, 10)
    ensemble.members[1].load_state_dict(ensemble.members[0].state_dict(), strict=True)


def test_another_number_of_channels_needs_no_calibration_images() -> None:
    ensemble = empir("mobilenetv3_small_050", precisions=["fp", "w4a4"], num_classes=10, in_chans=1)
    assert ensemble(torch.rand(2, 1, 32, 32)).shape == (2, 10)
    with pytest.raises(InputError, match=r"MobileNetV3 does not take images of shape \(2, 3, 32, 32\)"):
        empir("mobilenetv3_small_050", precisions=["w4a4"], num_classes=10, in_chans=1, calibration=IMAGES)


@pytest.mark.parametrize(
    ("settings", "size"),
    [({}, (3, 224, 224)), ({"in_chans": 1}, (1, 224, 224)), ({"img_size": 32}, (3, 32, 32)),
     ({"in_chans": 1, "img_size": (32, 48)}, (1, 32, 48))],
    ids=str,
)  # fmt: skip
def test_the_configuration_has_the_image_size_of_the_network(settings: dict[str, Any], size: tuple[int, ...]) -> None:
    model: Any = network("vit_tiny_patch16_224", num_classes=10, depth=1, **settings)
    assert model.default_cfg["input_size"] == size


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["resnet18", "PreActResNet-18", "preact_resnet34", "wide_resnet_28_10"])
def test_more_architectures(architecture: str) -> None:
    ensemble = empir(architecture, precisions=["fp", "w4a4", "w2a2"], num_classes=10).eval()
    assert ensemble(IMAGES).shape == (2, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda toys: empir("resnet81", precisions=["fp"], num_classes=2),
            "no architecture 'resnet81' in timm",
        ),
        (lambda toys: empir("WideResNet-28-10", precisions=[], num_classes=2), "an ensemble needs at least one member"),
        (
            lambda toys: empir(toys.Tiny, precisions="w4a4", num_classes=2),
            "precisions must be a list such as",
        ),
        (lambda toys: empir(toys.Tiny, precisions=["w0a4"], num_classes=2), "weight_bits must be 1 to 8, or 32"),
        (lambda toys: network("wide_resnet_27_1", num_classes=2), "a WideResNet has 6 n + 4 layers"),
        (lambda toys: network("preact_resnet50", num_classes=2), "builds a PreActResNet of 18 or 34 layers, got 50"),
    ],
)
def test_errors_say_what_to_do(toys: ModuleType, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call(toys)
