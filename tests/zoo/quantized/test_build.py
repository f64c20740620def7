"""Quantized networks without weights: names, registration, checkpoints, and normalisation of images."""

from __future__ import annotations

import re
import subprocess
import sys
from ast import literal_eval
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.layers import quantized_layers
from empir_plugin.models.packing import save_packed
from empir_plugin.zoo.quantized.build import FAMILIES, curated_networks, normalize_images_
from empir_plugin.zoo.registry import find_builder, load_model, register_quantized, timm_name
from empir_plugin.zoo.show import dataset_of

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
NO_WEIGHTS = "ignore:.*comes without weights"
AFTER_TRAINING = "quantized after training"
ROBUSTBENCH = """
import sys, warnings
import empir_plugin
from robustbench.utils import load_model
import torch
warnings.simplefilter("ignore")
model = load_model("dorefa-w4a4-mobilenetv3_small_100", dataset="cifar10", custom_checkpoint=sys.argv[1])
print(model.weights_loaded, model.quantized_after_training)
print(model(torch.ones(2, 3, 32, 32)).tolist())
"""


def save(model: nn.Module, file: Path) -> Path:
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, file)
    return file


@pytest.fixture
def tiny(toys: ModuleType) -> str:
    """A name registered for this test alone."""
    name = f"tiny-{next(_numbers)}"
    register_quantized(name, toys.Tiny, "w2a2")
    return name


_numbers = iter(range(1000))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda toys: register_quantized("empir-cifar", toys.Tiny, "w4a4"), "there is a model 'empir-cifar' already"),
        (
            lambda toys: register_quantized("dorefa-w4a4-resnet18", toys.Tiny, "w4a4"),
            "there is a model 'dorefa-w4a4-",
        ),
        (lambda toys: register_quantized("mine", toys.Tiny, "fp"), "mine would not be quantized at precision 'fp'"),
        (lambda toys: register_quantized("mine", toys.Tiny, "w9"), "weight_bits must be 1 to 8"),
        (
            lambda toys: load_model("dorefa-w4a4-resnet18", dataset="mnist"),
            "dorefa-w4a4-resnet18 is a model for cifar10",
        ),
        (
            lambda toys: load_model("dorefa-w4a4-alexnet", dataset="cifar10"),
            "a model for imagenet, got dataset='cifar10'",
        ),
        (lambda toys: load_model("dorefa-w4a4-resnet81"), "did you mean 'dorefa-w4a4-resnet18'?"),
        (
            lambda toys: normalize_images_(nn.Sequential(), (0.5,), (0.5,)),
            "a Sequential cannot be given a normalisation",
        ),
    ],
)
def test_errors_say_what_to_do(toys: ModuleType, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        call(toys)


def test_images_are_normalized_however_they_are_passed() -> None:
    class Net(nn.Module):
        def forward(self, pixels: Tensor, factor: Tensor | None = None) -> Tensor:
            return pixels if factor is None else factor * pixels

    normalize_images_(net := Net(), (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    expected = (IMAGES - 0.5) / 0.25
    torch.testing.assert_close(net(IMAGES), expected)
    torch.testing.assert_close(net(pixels=IMAGES), expected)
    torch.testing.assert_close(net(IMAGES, factor=torch.tensor(2.0)), 2 * expected)
    torch.testing.assert_close(net(factor=torch.tensor(2.0), pixels=IMAGES), 2 * expected)


# -- Names


def test_every_architecture_has_five_precisions_and_its_data_sets() -> None:
    assert len(curated_networks()) == 5 * len(FAMILIES)
    assert {family.architecture for family in FAMILIES} >= {
        "resnet18",
        "wide_resnet_28_10",
        "preact_resnet18",
        "alexnet",
    }
    assert {name.split("-")[1] for name in curated_networks()} == {"w1a2", "w2a2", "w2a4", "w4a4", "w8a8"}
    assert [builder.num_classes for builder in curated_networks()["dorefa-w2a4-vit_tiny_patch16_224"]] == [
        10,
        100,
        1000,
    ]


@pytest.mark.parametrize("name", list(curated_networks())[::7])
def test_timm_knows_every_name_for_every_data_set_and_threat(name: str) -> None:
    for builder in curated_networks()[name]:
        assert all(timm.is_model(timm_name(name, builder.dataset, threat)) for threat in builder.threats)
        assert find_builder(name, builder.dataset) is builder


@pytest.mark.slow
@pytest.mark.filterwarnings(NO_WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.architecture)
def test_every_network_is_built_and_quantized_for_each_of_its_data_sets(family: Any) -> None:
    for dataset in family.datasets:
        classes = {"cifar10": 10, "cifar100": 100, "imagenet": 1000}[dataset]
        model = load_model(f"dorefa-w2a4-{family.architecture}", dataset=dataset)
        size = 224 if dataset == "imagenet" else 32
        with torch.no_grad():
            assert model(torch.rand(1, 3, size, size)).shape == (1, classes)
        assert {str(layer.precision) for _, layer in quantized_layers(model)} == {"w2a4"}


def test_the_first_data_set_is_the_default() -> None:
    assert dataset_of("DoReFa-W4A4-ResNet18") == "cifar10"


@pytest.mark.slow
def test_names_build_no_network_and_import_no_robustbench() -> None:
    code = "import sys, empir_plugin, timm; print('robustbench' in sys.modules, timm.is_model(sys.argv[1]))"
    command = [sys.executable, "-c", code, "dorefa_w4a4_alexnet_imagenet_l2"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False True"


# -- Checkpoints


def test_a_registered_network_says_that_it_has_no_weights(tiny: str) -> None:
    with pytest.warns(UserWarning, match=rf"{tiny} comes without weights.*custom_checkpoint="):
        model = load_model(tiny)
    assert not model.weights_loaded
    assert not model.training
    assert [str(layer.precision) for _, layer in quantized_layers(model)] == ["w2a2"]


@pytest.mark.filterwarnings(NO_WEIGHTS)
@pytest.mark.parametrize("scale", ["none", "max", "mean"])
@pytest.mark.parametrize("precision", ["w1a2", "w2a2", "w8a8"])
def test_full_precision_weights_are_taken_and_quantized_after_training(
    toys: ModuleType, precision: str, scale: Any, tmp_path: Path
) -> None:
    full, name = toys.Tiny(10), f"after-{next(_numbers)}"
    register_quantized(name, toys.Tiny, precision, scale=scale)
    with pytest.warns(UserWarning, match=AFTER_TRAINING):
        model = load_model(name, custom_checkpoint=save(full, tmp_path / "full.safetensors"))
    assert model.weights_loaded
    assert model.quantized_after_training
    assert torch.equal(model.body.weight, full.body.weight)
    save_packed(model, tmp_path / "packed.safetensors")
    again = load_model(name, custom_checkpoint=tmp_path / "packed.safetensors")
    assert not again.quantized_after_training
    assert torch.equal(again(IMAGES), model(IMAGES))


@pytest.mark.filterwarnings(NO_WEIGHTS)
def test_timm_s_own_call_takes_the_same_checkpoint(toys: ModuleType, tiny: str, tmp_path: Path) -> None:
    full = toys.Tiny(10)
    with pytest.warns(UserWarning, match=AFTER_TRAINING):
        model = timm.create_model(
            timm_name(tiny, "cifar10", "Linf"),
            num_classes=10,
            pretrained=True,
            checkpoint_path=str(save(full, tmp_path / "full.safetensors")),
        )
    assert torch.equal(model.body.weight, full.body.weight)


@pytest.mark.filterwarnings(NO_WEIGHTS)
def test_a_checkpoint_of_another_network_is_refused_with_its_keys(toys: ModuleType, tiny: str, tmp_path: Path) -> None:
    file = save(toys.Tiny(10, width=5), tmp_path / "wider.safetensors")
    with pytest.raises(WeightsError, match=r"body\.weight \(5, 5, 3, 3\) instead of \(4, 4, 3, 3\)"):
        load_model(tiny, custom_checkpoint=file)


@pytest.mark.slow
@pytest.mark.filterwarnings(NO_WEIGHTS)
def test_robustbench_s_own_load_model_takes_the_same_checkpoint(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = save(timm.create_model("mobilenetv3_small_100", num_classes=10), tmp_path / "full.safetensors")
    with pytest.warns(UserWarning, match=AFTER_TRAINING):
        ours = load_model("dorefa-w4a4-mobilenetv3_small_100", custom_checkpoint=file)
    done = subprocess.run([sys.executable, "-c", ROBUSTBENCH, str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    flags, logits = done.stdout.strip().splitlines()
    assert flags == "True True"
    torch.testing.assert_close(torch.tensor(literal_eval(logits)), ours(torch.ones(2, 3, 32, 32)).detach())


# -- Normalisation


@pytest.mark.filterwarnings(NO_WEIGHTS)
def test_a_registered_network_normalises_images_and_keeps_its_names(toys: ModuleType, tmp_path: Path) -> None:
    name = f"normalised-{next(_numbers)}"
    register_quantized(name, toys.Tiny, "w8", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    full = toys.Tiny(10)
    with pytest.warns(UserWarning, match=AFTER_TRAINING):
        model = load_model(name, custom_checkpoint=save(full, tmp_path / "full.safetensors"))
    assert list(model.state_dict()) == list(full.state_dict())
    mean, std = (torch.tensor(each).view(-1, 1, 1) for each in ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)))
    torch.testing.assert_close(model(IMAGES), full((IMAGES - mean) / std), rtol=0.1, atol=0.01)
    assert not torch.allclose(model(IMAGES), full(IMAGES), rtol=0.1, atol=0.01)
    assert "normalize_images" in str(model)
