"""Fully connected networks in full precision, as BNN and as XNOR network: by hand, in training, and under attack."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.surrogates import parse_surrogate
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.architectures import ARCHITECTURES, FCN
from empir_plugin.models.discretize import Discretized
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import is_full_precision, quantized_layers
from empir_plugin.models.packing import load_packed, save_packed
from empir_plugin.models.quantize import Precision
from empir_plugin.models.weight_quantizers import OneBit, clip_latent_

W1A1, W2A4 = Precision(1, 1), Precision(2, 4)
X = torch.rand(5, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def network(precision: Precision | None = None, one_bit: str = "bnn", seed: int = 0) -> FCN:
    """A narrow one whose batch normalisations have statistics."""
    torch.manual_seed(seed)
    model = FCN(precision, width=20, one_bit=one_bit)
    for norm in model.norms:
        assert isinstance(norm, nn.BatchNorm1d)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias)
    model.train()(torch.rand(64, 1, 28, 28))
    return model.eval()


def by_hand(model: FCN, one_bit: str) -> Tensor:
    state, x = model.state_dict(), X.flatten(1)
    for i in range(4):
        w = state[f"hidden.{i}.weight"]
        if one_bit != "full":
            size = w.abs().mean(1, keepdim=True) if one_bit == "xnor" else 1.0
            w = torch.where(w >= 0, 1.0, -1.0) * size
            x = x if i == 0 else torch.where(x >= 0, 1.0, -1.0)  # the image is in full precision
        mean, var, gamma, beta = (state[f"norms.{i}.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        x = (((x @ w.T) - mean) / (var + 1e-5).sqrt() * gamma + beta).clamp(-1, 1)
    return x @ state["logits.weight"].T + state["logits.bias"]


@pytest.mark.parametrize("one_bit", ["full", "bnn", "xnor"])
def test_forward_by_hand(one_bit: str) -> None:
    model = network() if one_bit == "full" else network(W1A1, one_bit)
    torch.testing.assert_close(model(X), by_hand(model, one_bit), rtol=1e-4, atol=1e-4)


def test_three_kinds_share_weights_and_compute_differently() -> None:
    full, bnn, xnor = network(), network(W1A1), network(W1A1, "xnor")
    outputs = []
    for model in (full, bnn, xnor):
        model.load_state_dict(full.state_dict(), strict=True)
        outputs.append(model(X))
    assert is_full_precision(full)
    assert not is_full_precision(bnn)
    assert all(not torch.allclose(outputs[i], outputs[j]) for i, j in ((0, 1), (0, 2), (1, 2)))


def test_batch_normalisation_takes_the_filter_scales_of_xnor_away_in_training() -> None:
    torch.manual_seed(0)
    bnn = FCN(W1A1, width=20).train()
    xnor = FCN(W1A1, width=20, one_bit="xnor").train()
    xnor.load_state_dict(bnn.state_dict())
    # Scales so large that the small number batch normalisation adds to variances is not felt.
    for model in (bnn, xnor):
        for layer in model.hidden:
            layer.get_parameter("weight").data *= 10
    torch.testing.assert_close(xnor(X), bnn(X), rtol=1e-2, atol=1e-2)


def test_names_of_the_paper() -> None:
    with torch.device("meta"):
        networks = {
            name: ARCHITECTURES[name](W1A1, scale="max", num_classes=7) for name in ARCHITECTURES if "fcn" in name
        }
    assert {name: model.hidden[1].in_features for name, model in networks.items()} == {
        "fcn1": 6144,
        "fcn1-xnor": 6144,
        "fcn2": 600,
        "fcn2-xnor": 600,
    }
    weights = {
        name: {str(layer.weight_quantizer) for _, layer in quantized_layers(net)} for name, net in networks.items()
    }
    assert weights == {"fcn1": {"bnn"}, "fcn1-xnor": {"xnor"}, "fcn2": {"bnn"}, "fcn2-xnor": {"xnor"}}
    assert {model.logits.out_features for model in networks.values()} == {7}


def test_bits_of_inputs_and_other_precisions() -> None:
    def bits(model: nn.Module) -> list[str]:
        return [f"{layer.precision} {layer.activation_quantizer}" for _, layer in quantized_layers(model)]

    assert bits(FCN(W1A1, width=4))[1:] == ["w1a1 sign"] * 3
    assert bits(FCN(W2A4, width=4))[1:] == ["w2a4 signed"] * 3
    first = next(quantized_layers(FCN(W1A1, width=4)))[1]
    assert first.precision == Precision(1, 32)
    dorefa = next(quantized_layers(FCN(W1A1, width=4, one_bit=OneBit.DOREFA)))[1]
    torch.testing.assert_close(dorefa.quantized_weight().abs().unique(), dorefa.weight.detach().abs().mean().view(1))
    with pytest.raises(InputError, match=r"one_bit .*dorefa, bnn, xnor.*'twn'"):
        FCN(W1A1, one_bit="twn")


@pytest.mark.parametrize("one_bit", ["bnn", "xnor"])
def test_packing_pickling_and_copies(one_bit: str, tmp_path: Path) -> None:
    model, other = network(W1A1, one_bit), network(W1A1, one_bit, seed=1)
    save_packed(model, tmp_path / "w.safetensors")
    load_packed(other, tmp_path / "w.safetensors")
    assert torch.equal(other(X), model(X))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(X), model(X))


@pytest.mark.parametrize("one_bit", ["bnn", "xnor"])
def test_binary_networks_learn(one_bit: str) -> None:
    """Which quarter of the image is bright, a hundred steps."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(64) % 4
    x = 0.3 * torch.rand(64, 1, 28, 28, generator=generator)
    for i in range(64):
        x[i, 0, 7 * int(y[i]) : 7 * int(y[i]) + 7] += 0.3
    torch.manual_seed(0)
    model = FCN(W1A1, width=20, one_bit=one_bit, num_classes=4).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        clip_latent_(model)
    assert all(layer.weight.detach().abs().max() <= 1 for _, layer in quantized_layers(model))
    assert (model.eval()(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize("surrogate", ["mean_probability", "mean_probability/identity", "member:1"])
def test_pgd_attacks_a_discretized_bnn_in_an_ensemble_at_the_raw_image(surrogate: str) -> None:
    ensemble = Ensemble([network(), Discretized(network(W1A1, seed=1), 2), network(W1A1, "xnor", 2)], MeanProbability())
    y = ensemble(X).argmax(1)
    found = pgd(10, surrogate=parse_surrogate(surrogate))(ensemble, X, y, Threat.parse("Linf:0.2"))
    assert (ensemble(found).argmax(1) != y).float().mean() >= 0.4
    assert (found - X).abs().max() <= 0.2 + 1e-6
    x = X.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(ensemble.members[1](x)[:, 0].sum(), x)
    assert gradient.abs().sum() > 0
