"""Data set and default threat of models, for any spelling of the name."""

from __future__ import annotations

import pytest

from empir_plugin.zoo.card import cards
from empir_plugin.zoo.show import dataset_of, default_threat


@pytest.mark.parametrize("name", list(cards()))
def test_a_name_is_found_as_load_model_finds_it(name: str) -> None:
    for text in (name, name.upper(), name.replace("-", "_")):
        assert default_threat(text) == cards()[name].threat
        assert dataset_of(text) == cards()[name].dataset


def test_the_mnist_ensemble_is_never_evaluated_under_the_threat_of_cifar() -> None:
    assert {default_threat(text) for text in ("empir-mnist", "empir_mnist", "EMPIR-MNIST")} == {"Linf:0.3"}


@pytest.mark.parametrize(
    ("dataset", "threat"),
    [("mnist", "Linf:0.3"), ("cifar10", "Linf:8/255"), ("cifar100", "Linf:8/255"), ("imagenet", "Linf:4/255")],
)
def test_without_a_card_the_data_set_decides(dataset: str, threat: str) -> None:
    assert default_threat("Standard_R50", dataset) == threat
    assert default_threat("empir-mnist", dataset) == "Linf:0.3", "a card knows better"


def test_a_name_without_a_card_has_the_threat_of_its_own_data_set() -> None:
    assert default_threat("Standard") == default_threat("dorefa_w4a4_resnet18") == "Linf:8/255"
    assert default_threat("dorefa-w4a4-alexnet") == "Linf:4/255", "it is for ImageNet alone"
