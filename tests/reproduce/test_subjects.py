"""Networks that are changed after training, and images with fewer levels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import InputError
from empir_plugin.models.discretize import Discretized
from empir_plugin.models.mu_law import mu_law
from empir_plugin.reproduce.context import Discretize
from empir_plugin.reproduce.subjects import Altered, Discrete, Training, Zoo, trainings_of


class Shelf:
    """Hands out one small network, whatever is asked for, and notes what was."""

    def __init__(self) -> None:
        self.asked: list[tuple[Training, str]] = []

    def trained(self, training: Training, member: str) -> nn.Module:
        self.asked.append((training, member))
        return nn.Flatten()

    def given(self, model: str) -> Path:
        return Path("none")


def test_images_have_the_levels_the_network_sees(tiny_mnist: ImageSet) -> None:
    for bits in (1, 2, 4):
        data = Discretize(bits)(tiny_mnist)
        assert len(data.images.unique()) <= 2**bits
        network = Discretized(nn.Flatten(), bits, "round")
        x = data.as_float()
        assert torch.allclose(network(x), x.flatten(1), atol=1e-6), "what is discretized already stays as it is"
        assert torch.equal(data.labels, tiny_mnist.labels)
    assert torch.equal(Discretize(8)(tiny_mnist).images, tiny_mnist.images)
    with pytest.raises(InputError, match="1, 2, 4 or 8 bits per pixel, got 3"):
        Discretize(3)


def test_half_a_level_is_erased_and_more_is_not() -> None:
    """Levels of 2 bits are 1/3 apart: eps 0.1 moves no discretized pixel, eps 0.2 moves them all, as in the paper."""
    network = Discretized(nn.Flatten(), 2, "round")
    x = torch.tensor([[[[0.0, 1 / 3, 2 / 3]]]])
    assert torch.equal(network(x + 0.1), network(x))
    assert (network(x + 0.2) > network(x)).all()
    raw = torch.tensor([[[[0.1, 0.4, 0.45]]]])
    assert (network(raw + 0.1) > network(raw)).any(), "an attacker in front of the discretization moves pixels"


def test_a_discrete_subject_asks_for_weights_trained_on_such_images() -> None:
    shelf = Shelf()
    model = Discrete("r", "m", 2).load(shelf)
    assert isinstance(model, Discretized)
    assert shelf.asked == [(Training("r", 2), "m")]
    assert trainings_of([Discrete("r", "m", 2), Discrete("r", "n", 2), Discrete("r", "m", 4)]) == (
        Training("r", 2),
        Training("r", 4),
    )


def test_altered_weights_are_mapped_first_and_quantized_then() -> None:
    shelf, base = Shelf(), Zoo("mnistconv-fp")
    before, mapped = base.load(shelf), Altered(base, mu_layers=1).load(shelf)
    last = list(before.state_dict())[-1]
    weight = before.state_dict()[last]
    largest = max(1.0, weight.abs().max().item())
    assert torch.allclose(mapped.state_dict()[last], largest * mu_law(weight / largest), atol=1e-6)
    names = list(before.state_dict())
    assert all(torch.equal(mapped.state_dict()[name], before.state_dict()[name]) for name in names[:-1])
    both = Altered(base, mu_layers=1, bits=3)
    assert both.name == "mnistconv-fp-mu-q3"
    layers = [layer for layer in both.load(shelf).modules() if hasattr(layer, "quantized_weight")]
    assert layers
    for layer in layers:
        quantized = getattr(layer, "quantized_weight")()  # noqa: B009
        assert len(quantized.unique()) <= 7
