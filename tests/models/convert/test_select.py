"""Layers at the ends of a network, and weights that a network applies by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.posttraining import quantize_weights_

IMAGES = torch.rand(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


class Mixed(nn.Module):
    """Registered out of order: three layers see the image, which is changed in place, and two give the logits."""

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleList([nn.Linear(8, 4), nn.Linear(8, 4)])
        self.inner = nn.Conv2d(9, 8, 3)
        self.norm = nn.BatchNorm2d(9)
        self.stems = nn.ModuleList([nn.Conv2d(1, 3, 3) for _ in range(3)])
        if config is not None:
            self.default_cfg = config

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5 if x.requires_grad else 0.0
        parts = [stem(each) for stem, each in zip(self.stems, x.split(1, 1), strict=True)]
        hidden = self.inner(self.norm(torch.cat(parts, 1)).relu_()).relu_().mean((2, 3))
        return self.heads[0](hidden) + 0.5 * self.heads[1](hidden)


STEMS = {f"stems.{i}": "sees the images" for i in range(3)}
HEADS = {f"heads.{i}": "gives the logits" for i in range(2)}


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        (None, STEMS | HEADS),
        ({"first_conv": [], "classifier": ()}, STEMS | HEADS),
        ({"first_conv": "", "classifier": None}, STEMS | HEADS),
        ({"first_conv": [], "classifier": "heads.1"}, STEMS | {"heads.1": "last layer"}),
        ({"first_conv": ("stems.0",), "classifier": None}, {"stems.0": "first layer"} | HEADS),
    ],
    ids=["none", "empty", "blank", "no-first", "no-last"],
)
def test_the_ends_are_found_by_a_trial_unless_they_are_named(config: Any, kept: dict[str, str]) -> None:
    model = Mixed(config).eval()
    trainable = {name: p.requires_grad for name, p in model.named_parameters()}
    report = quantize_(model, "w4a4", calibration=IMAGES)
    assert {layer.name: layer.reason for layer in report.kept} == kept
    assert {layer.name for layer in report.converted} == {"inner", *STEMS, *HEADS} - {*kept}
    assert {name: p.requires_grad for name, p in model.named_parameters()} == trainable
    assert "sees the images" in str(report) or config == {"first_conv": ("stems.0",), "classifier": None}


def test_without_images_the_ends_are_those_of_the_registration() -> None:
    report = quantize_(Mixed().eval(), "w4a4", activations="unsigned")
    assert {layer.name: layer.reason for layer in report.kept} == {"heads.0": "first layer", "stems.2": "last layer"}


class Detached(Mixed):
    """Neither the layers at the beginning nor the logits have a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.detach()).detach()


class EightBits(Mixed):
    """The images are rounded to eight bits, and the logits to halves."""

    def forward(self, x: Tensor) -> Tensor:
        return (2 * super().forward((255 * x).to(torch.uint8) / 255)).round() / 2


class Jittered(Mixed):
    """Noise between the layers, which is no image."""

    def forward(self, x: Tensor) -> Tensor:
        parts = [stem(each) for stem, each in zip(self.stems, x.split(1, 1), strict=True)]
        hidden = torch.cat(parts, 1)
        hidden = self.inner(hidden + torch.rand_like(hidden)).relu().mean((2, 3))
        return self.heads[0](hidden) + self.heads[1](hidden)


@pytest.mark.parametrize("kind", [Detached, EightBits, Jittered])
def test_the_ends_are_found_without_gradients_and_despite_noise(kind: type[Mixed]) -> None:
    report = quantize_(kind().eval(), "w4a4", calibration=IMAGES)
    assert {layer.name: layer.reason for layer in report.kept} == STEMS | HEADS
    assert [layer.name for layer in report.converted] == ["inner"]


class Applies(nn.Module):
    """A learned query, a projection computed from a parameter, a scale, and an offset, between three layers."""

    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tied = tied
        self.first, self.inner, self.last = nn.Linear(108, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        self.query = nn.Parameter(torch.randn(8, 1))
        self.projection = nn.Parameter(torch.randn(1, 8, 8))
        self.scale = nn.Parameter(torch.ones(1, 8))
        self.offset = nn.Parameter(torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inner(self.first(x.flatten(1))) * self.scale + self.offset
        hidden = hidden * (hidden @ self.query).sigmoid()
        hidden = torch.einsum("nc,kc->nk", hidden, F.normalize(self.projection[0], dim=1))
        hidden = F.linear(hidden, self.inner.weight.t()) if self.tied else hidden
        return self.last(hidden)


def test_weights_that_are_multiplied_in_no_layer_are_named() -> None:
    report = quantize_(Applies().eval(), "w4a4", calibration=IMAGES)
    assert report.weights_in_no_layer == ("query", "projection")
    assert report.other_parameters == 8 + 64 + 8 + 8 + 8 + 8 + 4
    assert "query, projection" in str(report)
    assert report.to_dict()["weights_in_no_layer"] == ("query", "projection")


@pytest.mark.parametrize("quantize", [quantize_, quantize_weights_])
def test_a_layer_whose_weights_are_also_applied_without_a_call_is_refused(quantize: Any) -> None:
    model = Applies(tied=True).eval()
    model.default_cfg = {"input_size": (3, 6, 6)}
    with pytest.raises(InputError, match=r"inner .*applies its weights.*layers="):
        quantize(model) if quantize is quantize_weights_ else quantize(model, "w4a4")
    assert type(model.inner) is nn.Linear


def test_shared_weights_are_counted_once() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)).eval()
    model[3].weight = model[2].weight
    assert quantize_(model, "w4a4", calibration=IMAGES).other_parameters == 8 + 8 + 8 + 4
