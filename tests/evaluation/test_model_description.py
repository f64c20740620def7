"""Descriptions of networks: what decides the function is in them, and nothing else."""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor

from empir_plugin.errors import InputError
from empir_plugin.evaluation import model_description
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.model_description import describe_model, names_in_code
from empir_plugin.models.architectures import networks as blocks
from empir_plugin.models.architectures import networks as convnets
from empir_plugin.models.architectures import networks as fcn
from empir_plugin.models.convert import layers as converted_layers
from empir_plugin.models.discretize import Discretized
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.integer import convert, fuse
from empir_plugin.models.integer import layers as integer_layers
from empir_plugin.models.layers import QuantConv2d, QuantLinear
from empir_plugin.models.quantize import Precision

W2A2 = Precision.parse("w2a2")


def quantized_linear(bits: str = "w2a2", scale: Any = "none") -> nn.Module:
    return QuantLinear(2, 2, precision=Precision.parse(bits), scale=scale)


DIFFERENT: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "stride": (lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(3, 4, 3, stride=2)),
    "padding": (lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(3, 4, 3, padding=1)),
    "padding mode": (lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(3, 4, 3, padding_mode="circular")),
    "groups": (lambda: nn.Conv2d(4, 4, 3), lambda: nn.Conv2d(4, 4, 3, groups=2)),
    "dilation": (lambda: nn.Conv2d(3, 4, 3), lambda: nn.Conv2d(3, 4, 3, dilation=2)),
    "output padding": (
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2),
        lambda: nn.ConvTranspose2d(3, 4, 3, stride=2, output_padding=1),
    ),
    "eps": (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, eps=1e-3)),
    "running statistics": (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, track_running_stats=False)),
    "layer norm": (lambda: nn.LayerNorm(3), lambda: nn.LayerNorm(3, eps=1e-3)),
    "slope": (lambda: nn.LeakyReLU(0.1), lambda: nn.LeakyReLU(0.2)),
    "approximation": (lambda: nn.GELU(), lambda: nn.GELU("tanh")),
    "activation": (lambda: nn.ReLU(), lambda: nn.ReLU6()),
    "flatten": (lambda: nn.Flatten(1), lambda: nn.Flatten(2)),
    "pool": (lambda: nn.MaxPool2d(3, 2), lambda: nn.MaxPool2d(3, 2, ceil_mode=True)),
    "average": (lambda: nn.AvgPool2d(3, 2), lambda: nn.AvgPool2d(3, 2, count_include_pad=False)),
    "constant": (lambda: nn.ConstantPad2d(1, 0.0), lambda: nn.ConstantPad2d(1, 1.0)),
    "class": (lambda: nn.ReLU(), lambda: nn.Tanh()),
    "bits": (quantized_linear, lambda: quantized_linear("w4a2")),
    "bits of the input": (quantized_linear, lambda: quantized_linear("w2a4")),
    "scale": (quantized_linear, lambda: quantized_linear(scale="max")),
    "levels": (lambda: Discretized(nn.Flatten(), 2), lambda: Discretized(nn.Flatten(), 2, "center")),
    "order": (lambda: nn.Sequential(nn.ReLU(), nn.Tanh()), lambda: nn.Sequential(nn.Tanh(), nn.ReLU())),
    "traced code": (
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU())),
        lambda: torch.fx.symbolic_trace(nn.Sequential(nn.ReLU(), nn.ReLU())),
    ),
}


@pytest.mark.parametrize(("one", "other"), DIFFERENT.values(), ids=DIFFERENT)
def test_known_differences_change_a_description(one: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> None:
    assert describe_model(one()) == describe_model(one())
    assert describe_model(one()) != describe_model(other())


EQUAL: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "inplace": (lambda: nn.ReLU(), lambda: nn.ReLU(inplace=True)),
    "mode": (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3).eval()),
    "momentum": (lambda: nn.BatchNorm2d(3), lambda: nn.BatchNorm2d(3, momentum=0.5)),
    "dropout": (lambda: nn.Dropout(0.1), lambda: nn.Dropout(0.5, inplace=True)),
    "weights": (lambda: nn.Linear(2, 2), lambda: nn.Linear(2, 2)),
}


@pytest.mark.parametrize(("one", "other"), EQUAL.values(), ids=EQUAL)
def test_known_non_differences_do_not(one: Callable[[], nn.Module], other: Callable[[], nn.Module]) -> None:
    assert describe_model(one()) == describe_model(other())


class Level(Enum):
    LOW = 0
    HIGH = 1


@dataclass(frozen=True)
class Range:
    low: float = 0.0
    high: object = 1.0


@dataclass
class Changeable:
    low: float = 0.0


class Settings:
    def __init__(self, low: object) -> None:
        self.low = low


def linear(weight: float) -> nn.Module:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, weight)
    return layer


class Other(nn.Module):
    """A class of another library, with one setting."""

    def __init__(self, value: object) -> None:
        super().__init__()
        self.value = value


SEEN: dict[str, tuple[object, object]] = {
    "number": (0.5, 0.25),
    "text": ("a", "b"),
    "none": (None, 0),
    "enum": (Level.LOW, Level.HIGH),
    "dtype": (torch.float32, torch.float16),
    "tensor": (torch.tensor(0.0), torch.tensor(0.3)),
    "array": (np.zeros(2), np.ones(2)),
    "numpy number": (np.float64(0.5), np.float64(0.25)),
    "tuple": ((1, (2, "a")), (1, (2, "b"))),
    "mapping": ({"a": [1]}, {"a": [2]}),
    "dataclass": (Range(), Range(high=2.0)),
    "changeable dataclass": (Changeable(), Changeable(2.0)),
    "object": (Settings(1), Settings(2)),
    "object within": ([Settings(torch.zeros(1))], [Settings(torch.ones(1))]),
    "namespace": (SimpleNamespace(low=1), SimpleNamespace(low=2)),
    "set": ({1, 2}, {1, 3}),
    "network in a list": ([linear(1.0)], [linear(2.0)]),
    "network in a mapping": ({"a": nn.Flatten(1)}, {"a": nn.Flatten(2)}),
    "function": (nn.functional.relu, nn.functional.gelu),
    "class": (nn.ReLU, nn.GELU),
    "partial": (functools.partial(nn.LayerNorm, eps=1e-5), functools.partial(nn.LayerNorm, eps=1e-6)),
}


@pytest.mark.parametrize(("one", "other"), SEEN.values(), ids=SEEN)
def test_public_attributes_of_other_classes_count(one: object, other: object) -> None:
    assert describe_model(Other(one)) == describe_model(Other(one))
    assert describe_model(Other(one)) != describe_model(Other(other))


ENDLESS: list[object] = []
ENDLESS.append(ENDLESS)


@pytest.mark.parametrize(
    "value",
    [
        lambda x: x,
        object(),
        torch.device("cpu"),
        [1, object()],
        Range(high=object()),
        {1: object()},
        {object()},
        Settings(object()),
        logging.getLogger("any"),
        json,
        ENDLESS,
    ],
    ids=[
        "lambda",
        "object",
        "device",
        "list",
        "dataclass",
        "mapping",
        "set",
        "attribute",
        "logger",
        "module",
        "endless",
    ],
)
def test_values_that_are_not_plain_are_left_out(value: object) -> None:
    assert settings_of(Other(value)) == {}


def settings_of(model: nn.Module) -> dict[str, str]:
    return json.loads(describe_model(model))[0][2]


def test_equal_values_have_one_text() -> None:
    assert describe_model(Other((1, 2))) == describe_model(Other([1, 2]))
    assert describe_model(Other({"a": 1, "b": 2})) == describe_model(Other({"b": 2, "a": 1}))
    assert describe_model(Other(torch.ones(2, 3).t())) == describe_model(Other(torch.ones(3, 2)))
    assert describe_model(Other(np.float64(0.5))) == describe_model(Other(0.5))


def test_what_libraries_attach_and_private_attributes_do_not_count() -> None:
    model = Other(1)
    before = describe_model(model)
    attached = "weights_loaded", "default_cfg", "pretrained_cfg", "pretrained_model_args", "_model_args", "_private"
    for name in (*attached, "grad_checkpointing"):
        setattr(model, name, 3)
    assert describe_model(model) == before


class Private(nn.Module):
    """A class with a mean that its own code names, in a base, a nested function or a property."""

    def __init__(self, mean: Any) -> None:
        super().__init__()
        self._mean = mean

    def forward(self, x: Tensor) -> Tensor:
        return x - self._mean


class Inherits(Private):
    pass


class Nested(nn.Module):
    _mean: Any

    def forward(self, x: Tensor) -> Tensor:
        return sum((x - mean for mean in [self._mean]), torch.zeros(()))


class Property(nn.Module):
    @property
    def mean(self) -> Any:
        return self._mean


@pytest.mark.parametrize("cls", [Private, Inherits, Nested, Property])
def test_private_attributes_that_the_code_of_a_class_names_count(cls: type[nn.Module]) -> None:
    def make(value: object) -> nn.Module:
        model = cls(value) if issubclass(cls, Private) else cls()
        model._mean = value  # type: ignore[assignment]
        return model

    for one, other in ((torch.zeros(3), torch.full((3,), 0.3)), (0.0, 0.3)):
        assert describe_model(make(one)) == describe_model(make(one))
        assert describe_model(make(one)) != describe_model(make(other))


class Spelled:
    """Attributes of every kind that has code, and one that has none."""

    constant = 3

    def method(self) -> Any:
        return [self.nested for _ in range(2)], lambda: self.deeper  # type: ignore[attr-defined]

    @staticmethod
    def static(value: Any) -> Any:
        return value.of_static

    @classmethod
    def of_class(cls) -> Any:
        return cls.of_classmethod  # type: ignore[attr-defined]

    @property
    def both(self) -> Any:
        return self.of_getter  # type: ignore[attr-defined]

    @both.setter
    def both(self, value: Any) -> None:
        self.of_setter = value


class SpelledNoMore(Spelled):
    pass


def test_names_in_code_by_hand() -> None:
    methods = {"range", "nested", "deeper", "of_static", "of_classmethod"}
    assert names_in_code([Spelled]) == methods
    assert names_in_code([Spelled], "fget") == methods | {"of_getter"}
    assert names_in_code([Spelled], "fget", "fset") == methods | {"of_getter", "of_setter"}
    assert names_in_code([SpelledNoMore], "fget") == set()
    assert names_in_code([SpelledNoMore, Spelled]) == methods


def test_a_private_attribute_that_only_a_setter_names_does_not_count() -> None:
    class Named(nn.Module):
        @property
        def mean(self) -> Any:
            return 0

        @mean.setter
        def mean(self, value: Any) -> None:
            self._mean = value

    one, other = Named(), Named()
    one.__dict__["_mean"], other.__dict__["_mean"] = 0.0, 0.3
    assert describe_model(one) == describe_model(other)


def test_a_part_that_knows_its_whole_is_described_once() -> None:
    def make(value: int) -> nn.Module:
        whole = nn.Sequential(*(Other(value) for _ in range(30)))
        for part in whole:
            part.whole = [whole]  # type: ignore[assignment]
        return whole

    assert describe_model(make(1)) == describe_model(make(1))
    assert describe_model(make(1)) != describe_model(make(2))


class Norm(nn.BatchNorm2d):
    """Of another library, with a setting of its own."""

    __constants__ = ("slope",)
    slope = 0.1


def test_classes_derived_from_layers_of_torch_keep_their_settings() -> None:
    settings = settings_of(Norm(3, eps=0.5, momentum=0.5))
    assert settings["eps"] == "0.5"
    assert settings["slope"] == "0.1"
    assert "momentum" not in settings


def test_classes_of_this_package_may_move(monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble, layer = Ensemble([nn.Flatten()]), quantized_linear()
    before = describe_model(ensemble), describe_model(layer)
    assert json.loads(before[0])[0] == ["", "empir_plugin.Ensemble", {"rule": "empir_plugin.MaxVote()"}]
    for cls in (Ensemble, type(ensemble.rule), QuantLinear):
        monkeypatch.setattr(cls, "__module__", "empir_plugin.elsewhere")
    assert (describe_model(ensemble), describe_model(layer)) == before
    monkeypatch.setattr(QuantLinear, "__module__", "elsewhere")
    assert describe_model(layer) != before[1]


def test_a_rule_that_is_not_plain_counts_by_its_class() -> None:
    class Rule:
        def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
            return logits.mean(0)

    assert settings_of(Ensemble([nn.Flatten()], Rule()))["rule"].endswith("<locals>.Rule")


def test_every_module_of_this_package_has_an_explicit_entry() -> None:
    modules = (blocks, convnets, fcn, converted_layers, convert, fuse, integer_layers)
    classes = {
        cls
        for module in modules
        for cls in vars(module).values()
        if inspect.isclass(cls) and issubclass(cls, nn.Module) and cls.__module__ == module.__name__
    }
    assert len(classes) > 10
    for cls in classes:
        assert model_description._table_of(cls) is not None, f"{cls.__name__} needs an entry in _PACKAGE_LAYERS"


LAYERS = (
    nn.Conv1d(1, 1, 1), nn.ConvTranspose3d(1, 1, 1), nn.Linear(1, 1), nn.Bilinear(1, 1, 1), nn.Embedding(2, 2),
    nn.BatchNorm1d(1), nn.InstanceNorm2d(1), nn.LayerNorm(1), nn.GroupNorm(1, 1), nn.LocalResponseNorm(1),
    nn.MaxPool1d(2), nn.AvgPool2d(2), nn.LPPool2d(2, 2), nn.AdaptiveAvgPool2d(1), nn.AdaptiveMaxPool2d(1),
    nn.ZeroPad2d(1), nn.ReflectionPad1d(1), nn.ReplicationPad3d(1), nn.CircularPad2d(1), nn.Flatten(),
    nn.Unflatten(1, (1, 1)), nn.Upsample(2), nn.PixelShuffle(2), nn.PixelUnshuffle(2), nn.ChannelShuffle(2),
    nn.Hardtanh(), nn.LeakyReLU(), nn.PReLU(), nn.RReLU(), nn.ELU(), nn.CELU(), nn.GELU(), nn.Softplus(),
    nn.Softshrink(), nn.Hardshrink(), nn.Threshold(0, 0), nn.GLU(), nn.Softmax(1), nn.Softmin(1), nn.LogSoftmax(1),
)  # fmt: skip


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_every_setting_of_the_table_exists(layer: nn.Module) -> None:
    names = model_description._table_of(type(layer))
    assert names
    assert set(settings_of(layer)) == set(names)


def test_quantized_convolutions_have_the_settings_of_both_bases() -> None:
    settings = settings_of(QuantConv2d(3, 4, 3, stride=2, precision=W2A2))
    assert settings["stride"] == "(2, 2)"
    assert settings["weight_quantizer"].startswith("empir_plugin.WeightQuantizer(bits=2")
    assert settings["activation_quantizer"] == "empir_plugin.ActivationQuantizer(bits=2, clip=empir_plugin.Clip())"


def test_tensor_subclasses_count_by_what_they_contain() -> None:
    """Quantized weights of torchao are such; torch brings a small one for its own tests."""

    def network(value: float) -> nn.Module:
        layer = nn.Linear(2, 2, bias=False)
        layer.weight = nn.Parameter(TwoTensor(torch.ones(2, 2), torch.full((2, 2), value)), requires_grad=False)
        return layer

    assert model_fingerprint(network(1.0)) == model_fingerprint(network(1.0))
    assert model_fingerprint(network(1.0)) != model_fingerprint(network(2.0))


class Opaque(Tensor):
    """A subclass that does not tell what it contains."""


def test_a_tensor_subclass_of_unknown_content_is_refused_by_name() -> None:
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.ones(2, 2).as_subclass(Opaque), requires_grad=False)
    with pytest.raises(InputError, match=r"weight is a Opaque.*dequantize"):
        model_fingerprint(layer)
