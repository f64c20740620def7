"""The networks of the reproductions, by the names tables give them."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from empir_plugin.attacks.threat import Threat
from empir_plugin.reproduce.composed import Voting
from empir_plugin.reproduce.subjects import Given, Subject, Trained, Zoo

EIGHT = Threat.parse("Linf:8/255")
"""The radius of RobustBench's board, which the paper does not attack within."""

THREATS: Mapping[str, Threat] = MappingProxyType(
    {"mnist": Threat.parse("Linf:0.3"), "cifar10": Threat.parse("Linf:0.1"), "imagenet": Threat.parse("Linf:0.0226")}
)
"""The paper's Table 1, in units of images; on ImageNet, 0.1 of the release's units."""

DATASETS: Mapping[str, str] = MappingProxyType(
    {"mnist": "MNISTconv, MNIST", "cifar10": "CIFARconv, CIFAR-10", "imagenet": "AlexNet, ImageNet"}
)
"""Data sets in words."""

DEFENCES: Mapping[str, str] = MappingProxyType(
    {
        "baseline": "Baseline (full precision)",
        "empir": "EMPIR",
        "distillation": "Defensive distillation",
        "gradient-penalty": "Input gradient regularisation",
        "fgsm": "FGSM adversarial training",
        "empir-fgsm": "EMPIR (FGSM adversarial training)",
    }
)
"""Rows of Table 2 in words."""

_MNIST, _CIFAR = "table2-mnist", "table2-cifar"

SUBJECTS: Mapping[tuple[str, str], Subject] = MappingProxyType(
    {
        ("mnist", "baseline"): Zoo("mnistconv-fp"),
        ("mnist", "empir"): Zoo("empir-mnist"),
        ("mnist", "distillation"): Trained(_MNIST, "mnist-distilled"),
        ("mnist", "gradient-penalty"): Trained(_MNIST, "mnist-gradient-penalty"),
        ("mnist", "fgsm"): Trained(_MNIST, "mnist-fgsm"),
        ("mnist", "empir-fgsm"): Voting(
            "empir-mnist-fgsm",
            (Trained(_MNIST, "mnist-w2a4-fgsm"), Trained(_MNIST, "mnist-w2a4-b-fgsm"), Trained(_MNIST, "mnist-fgsm")),
        ),
        ("cifar10", "baseline"): Zoo("cifarconv-fp"),
        ("cifar10", "empir"): Zoo("empir-cifar"),
        ("cifar10", "distillation"): Trained(_CIFAR, "cifar-distilled"),
        ("cifar10", "gradient-penalty"): Trained(_CIFAR, "cifar-gradient-penalty"),
        ("cifar10", "fgsm"): Trained(_CIFAR, "cifar-fgsm"),
        ("cifar10", "empir-fgsm"): Voting(
            "empir-cifar-fgsm",
            (Trained(_CIFAR, "cifar-w4a2-fgsm"), Trained(_CIFAR, "cifar-w2a2-fgsm"), Trained(_CIFAR, "cifar-fgsm")),
        ),
        ("imagenet", "baseline"): Given("alexnet-fp"),
        ("imagenet", "empir"): Given("empir-imagenet"),
    }
)
"""The network of each row of Table 2."""
