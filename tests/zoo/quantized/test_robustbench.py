"""RobustBench's architectures by name, and every one of them quantized; docs/architectures.md shows the result."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from empir_plugin.errors import InputError
from empir_plugin.models.layers import quantized_layers
from empir_plugin.zoo.quantized.architectures import is_architecture, network
from empir_plugin.zoo.quantized.robustbench import family_names, find_family, find_zoo_network, zoo_datasets

ROOT = Path(__file__).parents[3]
SLOW = {"Meansparse_swin_L", "alexnet", "sodef_layers", "dm_wide_resnet", "resnest"}
"""Modules whose networks cannot be made small."""

if (ROOT / "tools").is_dir():
    sys.path.insert(0, str(ROOT / "tools"))
    tools: Any = importlib.import_module("robustbench_architectures")
    sys.path.remove(str(ROOT / "tools"))
    KEYS = [
        pytest.param(key, id="-".join(key), marks=[pytest.mark.slow] if key[0] in SLOW else [])
        for key in tools.NETWORKS
    ]
else:
    tools, KEYS = None, []
needs_tools = pytest.mark.skipif(tools is None, reason="the source distribution has no tools/")

pytestmark = pytest.mark.filterwarnings("ignore:torch.meshgrid", "ignore:.*torch.cuda.amp")


@needs_tools
def test_every_module_of_robustbench_is_tried_or_has_a_reason() -> None:
    tried = {module for module, _ in tools.NETWORKS}
    assert tried | set(tools.NO_NETWORK) == set(tools.modules())
    assert not tried & set(tools.NO_NETWORK)


@needs_tools
@pytest.mark.parametrize("key", KEYS)
def test_every_architecture_is_quantized_or_says_why_not(key: tuple[str, str]) -> None:
    original, images = tools.build(key)
    model, report = tools.convert(key)
    line = " | ".join(tools.row(key))
    assert line in tools.PAGE.read_text(encoding="utf-8"), "run python tools/robustbench_architectures.py"
    if isinstance(report, str):
        assert key[0] in ("bit_rn", "bit_rn_v2"), report
        assert "StdConv2d has no quantized counterpart here" in report
        return
    assert {layer.name for layer in report.converted} == {name for name, _ in quantized_layers(model)}
    assert report.quantized_share > 0.7
    assert all(layer.reason for layer in report.kept)
    with torch.no_grad():
        logits, full = model(images), original(images)
    assert logits.shape == full.shape
    assert bool(logits.isfinite().all())
    assert not torch.equal(logits, full)
    assert list(model.state_dict()) == list(original.state_dict())


SMALL = {
    "ResNet-18": "ResNet",
    "PreActResNet-18": "PreActResNet",
    "wide_resnet_10_1": "WideResNet",
    "DMWideResNet-10-1": "DMWideResNet",
    "DMWideResNet-10-1-silu": "DMWideResNet",
    "dm_wide_resnet_10_1_relu": "DMWideResNet",
    "DMPreActResNet-18-swish": "DMPreActResNet",
    "PAF_WideResNet-10-1": "PAF_WideResNet",
}


@pytest.mark.parametrize(("name", "kind"), SMALL.items())
def test_a_family_is_built_by_name_for_any_number_of_classes(name: str, kind: str) -> None:
    assert is_architecture(name)
    model = network(name, num_classes=7).eval()
    assert type(model).__name__ == kind
    assert model.default_cfg["input_size"] == (3, 32, 32)
    with torch.no_grad():
        assert model(torch.rand(1, 3, 32, 32)).shape == (1, 7)


def test_the_activation_is_the_one_in_the_name() -> None:
    kinds = {name: type(network(name, num_classes=10).relu).__name__ for name in list(SMALL)[3:6]}
    assert list(kinds.values()) == ["Swish", "SiLU", "ReLU"]


def test_every_example_is_an_architecture_and_timm_s_names_are_timm_s() -> None:
    assert all(find_family(name) is not None for name in family_names())
    assert find_family("resnet18") is None
    assert type(network("resnet18", num_classes=10)).__module__ == "timm.models.resnet"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("ResNet-19", "ResNet of 18 or 34 or 50 or 101 or 152 layers, got 19"),
        ("PreActResNet-50", "PreActResNet of 18 or 34 layers, got 50"),
        ("WideResNet-28-0x", "no architecture 'WideResNet-28-0x'"),
        ("DMWideResNet-27-1", "6 n \\+ 4 layers, 10 at least, got 27"),
        ("WideResnet", "did you mean"),
    ],
)
def test_a_size_that_does_not_exist_is_refused(name: str, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        network(name, num_classes=10)


def test_the_network_of_a_model_of_robustbench_has_its_id_as_name() -> None:
    build = find_zoo_network("Gowal2021Improving_R18_ddpm_100m", 10)
    assert build is not None
    assert type(build()).__name__ == "DMPreActResNet"
    assert find_zoo_network("no-such-model", 10) is None
    with pytest.raises(InputError, match="10 classes, got num_classes=100"):
        find_zoo_network("Carmon2019Unlabeled", 100)
    assert zoo_datasets("Hendrycks2020AugMix_WRN") == ["cifar10", "cifar100"]
