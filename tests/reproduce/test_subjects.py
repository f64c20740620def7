"""Loading the networks: trained on demand, put together, or changed after training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from empir_plugin.errors import WeightsError
from empir_plugin.models.discretize import Discretized
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.mu_law import mu_law
from empir_plugin.reproduce.subjects import (
    DiscretizedSubject,
    EnsembleSubject,
    PostTrainingSubject,
    TrainedSubject,
    Training,
    UserWeightsSubject,
    ZooSubject,
    trainings_of,
)


class FakeWeights:
    """Returns a small network for every member, and records the requests."""

    def __init__(self) -> None:
        self.requests: list[tuple[Training, str]] = []

    def load_member(self, training: Training, member: str) -> nn.Module:
        self.requests.append((training, member))
        torch.manual_seed(len(member))
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 3))

    def user_file(self, model: str) -> Path:
        return Path("none", f"{model}.safetensors")


def test_a_trained_subject_loads_a_member_of_its_recipe() -> None:
    weights, subject = FakeWeights(), TrainedSubject("r", "m")
    subject.load(weights)
    assert weights.requests == [(Training("r"), "m")]
    assert subject.trainings == (Training("r"),)


def test_a_discretized_subject_loads_weights_trained_on_discretized_images() -> None:
    weights = FakeWeights()
    model = DiscretizedSubject("r", "m", 2).load(weights)
    assert isinstance(model, Discretized)
    assert weights.requests == [(Training("r", 2), "m")]
    assert trainings_of(
        [DiscretizedSubject("r", "m", 2), DiscretizedSubject("r", "n", 2), DiscretizedSubject("r", "m", 4)]
    ) == (Training("r", 2), Training("r", 4))


def test_an_ensemble_keeps_the_order_of_its_members() -> None:
    weights, low, full = FakeWeights(), TrainedSubject("r", "low"), TrainedSubject("r", "full")
    subject = EnsembleSubject("both", (low, full))
    assert subject.trainings == (Training("r"),)
    ensemble = subject.load(weights)
    assert isinstance(ensemble, Ensemble)
    x = torch.rand(2, 1, 2, 2)
    assert torch.equal(ensemble.member_logits(x), torch.stack([low.load(weights)(x), full.load(weights)(x)]))


def test_an_ensemble_of_one_member_is_that_network() -> None:
    one = EnsembleSubject("one", (TrainedSubject("r", "full"),))
    assert not isinstance(one.load(FakeWeights()), Ensemble), "a single network must be attacked as such"


def test_the_user_must_supply_weights_of_a_model_without() -> None:
    subject = UserWeightsSubject("alexnet-fp")
    assert subject.user_weights == ("alexnet-fp",)
    with pytest.raises(WeightsError, match=r"alexnet-fp.*put its state dict in .*alexnet-fp\.safetensors"):
        subject.load(FakeWeights())


def test_the_mu_law_is_applied_before_the_quantization() -> None:
    weights, base = FakeWeights(), ZooSubject("mnistconv-fp")
    before, mapped = base.load(weights), PostTrainingSubject(base, mu_layers=1).load(weights)
    last = list(before.state_dict())[-1]
    weight = before.state_dict()[last]
    largest = max(1.0, weight.abs().max().item())
    assert torch.allclose(mapped.state_dict()[last], largest * mu_law(weight / largest), atol=1e-6)
    names = list(before.state_dict())
    assert all(torch.equal(mapped.state_dict()[name], before.state_dict()[name]) for name in names[:-1])
    both = PostTrainingSubject(base, mu_layers=1, bits=3)
    assert both.name == "mnistconv-fp-mu-q3"
    layers = [layer for layer in both.load(weights).modules() if hasattr(layer, "quantized_weight")]
    assert layers
    for layer in layers:
        quantized = getattr(layer, "quantized_weight")()  # noqa: B009
        assert len(quantized.unique()) <= 7
