"""What a model's overhead is relative to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.evaluation.overhead.count import baseline_of, float_twin, members_of
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantConv2d, QuantLinear, bake_, is_full_precision
from empir_plugin.models.precision import Precision

LOW = Precision.parse("w2a2")


def test_the_float_twin_computes_what_the_full_precision_network_does() -> None:
    torch.manual_seed(0)
    low = nn.Sequential(QuantConv2d(3, 4, 3, precision=LOW), nn.Flatten(), QuantLinear(16, 3, precision=LOW)).eval()
    full = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 3)).eval()
    full.load_state_dict(low.state_dict())
    bake_(low)
    x = torch.randn(5, 3, 4, 4)
    assert torch.equal(float_twin(low)(x), full(x))
    assert not torch.equal(low(x), full(x)), "the model itself is still quantized"
    assert is_full_precision(float_twin(low))
    assert not is_full_precision(low)


def test_a_learned_range_is_no_part_of_the_float_twin() -> None:
    layer = QuantLinear(3, 2, precision=LOW)
    layer.use_quantizers_(layer.weight_quantizer, layer.activation_quantizer, bound=0.5)
    x = torch.randn(4, 3)
    assert torch.equal(float_twin(layer)(x), nn.functional.linear(x, layer.weight, layer.bias))
    assert len(list(layer.parameters())) == len(list(float_twin(layer).parameters())) + 1


def test_an_ensemble_is_compared_with_its_own_full_precision_member() -> None:
    full = nn.Linear(3, 2)
    ensemble = Ensemble([QuantLinear(3, 2, precision=LOW), full, nn.Linear(9, 2)])
    found = baseline_of(ensemble)
    assert found.description == "member 1 of the ensemble, its full-precision one"
    assert torch.equal(found.network.state_dict()["weight"], full.weight)


def test_without_one_its_largest_member_stands_in() -> None:
    ensemble = Ensemble([QuantLinear(3, 2, precision=LOW), QuantLinear(9, 2, precision=LOW)])
    found = baseline_of(ensemble)
    assert "member 1 of the ensemble, its largest, in full precision" in found.description
    assert found.network.weight.shape == (2, 9)
    assert is_full_precision(found.network)


def test_a_single_network_is_compared_with_itself_in_full_precision() -> None:
    assert baseline_of(QuantLinear(3, 2, precision=LOW)).description == "the same network in full precision"
    assert baseline_of(nn.Linear(3, 2)).description == "the model itself, which is in full precision"


def test_a_hidden_ensemble_is_refused() -> None:
    inner = Ensemble([nn.Linear(3, 2), nn.Linear(3, 2)])
    assert len(members_of(inner)) == 2
    for ask in (members_of, baseline_of):
        with pytest.raises(InputError, match="pass the ensemble itself"):
            ask(nn.Sequential(nn.ReLU(), inner))
