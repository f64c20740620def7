"""Quantization of trained weights: changes to the network, loss of accuracy, and errors."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.evaluation.overhead.report import overhead
from empir_plugin.models.architectures import MNISTConv
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import is_full_precision, quantized_layers
from empir_plugin.models.lipschitz import matrix_norm, quantization_error_norms
from empir_plugin.models.packing import load_packed, save_packed
from empir_plugin.models.posttraining import post_training_quantizer, quantize_weights_
from empir_plugin.models.quantize import Precision

IMAGES = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


def quantized(bits: int, seed: int = 0) -> nn.Sequential:
    model = network(seed)
    quantize_weights_(model, bits)
    return model


def test_by_hand() -> None:
    layer = nn.Linear(4, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[-0.9, -0.2, 0.5, 0.7]]))
        layer.bias.fill_(0.25)
    model = nn.Sequential(layer)
    assert quantize_weights_(model) == ("0",)
    x = torch.tensor([[1.0, -10.0, 100.0, 0.001]])  # activations are neither clipped nor rounded
    torch.testing.assert_close(model(x), x @ torch.tensor([[-0.9], [-0.3], [0.6], [0.6]]) + 0.25)


@pytest.mark.parametrize("bits", range(1, 9))
def test_every_layer_has_its_own_grid_and_inputs_stay_as_they_are(bits: int) -> None:
    full, model = network(), quantized(bits)
    first, last = (post_training_quantizer(bits)(full[i].weight.detach()) for i in (0, 3))
    by_hand = F.linear(F.conv2d(IMAGES, first, full[0].bias).relu().flatten(1), last, full[3].bias)
    assert torch.equal(model(IMAGES), by_hand)
    assert not torch.equal(model(IMAGES), full(IMAGES))
    assert {layer.precision for _, layer in quantized_layers(model)} == {Precision(bits, 32)}
    assert len(first.unique()) <= max(2**bits - 1, 2)


def test_one_bit_is_the_sign_times_the_mean() -> None:
    w = torch.tensor([-0.5, 0.1, 0.3])
    torch.testing.assert_close(post_training_quantizer(1)(w), torch.tensor([-0.3, 0.3, 0.3]))


def test_more_bits_change_less() -> None:
    full = network()(IMAGES)
    errors = [float((quantized(bits)(IMAGES) - full).abs().mean().detach()) for bits in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01


def test_trained_weights_are_kept_and_the_error_can_be_measured() -> None:
    full, model = network(), quantized(3)
    assert list(model.state_dict()) == list(full.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), full.state_dict().values(), strict=True))
    norms = quantization_error_norms(model, IMAGES)
    error = full[3].weight.detach() - post_training_quantizer(3)(full[3].weight.detach())
    assert list(norms) == ["0", "3"]
    assert norms["3"].spectral == pytest.approx(matrix_norm(error.double()))
    assert norms["3"].infinity == pytest.approx(float(error.abs().sum(1).max()))


def test_its_cost_is_counted() -> None:
    found = overhead(quantized(3), (1, 6, 6), errors=True)
    (member,) = found.members
    assert member.precision == "w3a32"
    assert list(member.errors) == ["0", "3"]
    assert found.eq6.storage.as_built == pytest.approx((3 * 228 + 32 * 7) / (32 * 235)), "biases stay as they are"


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_packed_files_keep_the_bits(bits: int, tmp_path: Path) -> None:
    model, other = quantized(bits), quantized(bits, seed=1)
    save_packed(model, tmp_path / "weights.safetensors")
    load_packed(other, tmp_path / "weights.safetensors")
    assert torch.equal(other(IMAGES), model(IMAGES))
    assert model_fingerprint(other) == model_fingerprint(model)
    assert not quantization_error_norms(other, IMAGES)


def test_copies_and_pickles_compute_the_same() -> None:
    model = quantized(3)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(IMAGES), model(IMAGES))


def test_some_layers_only() -> None:
    model = network()
    assert quantize_weights_(model, 3, layers=["3"]) == ("3",)
    assert type(model[0]) is nn.Conv2d
    assert quantize_weights_(Ensemble([network(), network()]), 3) == (
        "members.0.0",
        "members.0.3",
        "members.1.0",
        "members.1.3",
    )


@pytest.mark.parametrize("bits", [0, 9, 2.5, "3", None])
def test_bad_bits(bits: object) -> None:
    model = network()
    with pytest.raises(InputError, match=r"bits of a weight .*1 to 8"):
        quantize_weights_(model, bits)  # type: ignore[arg-type]
    assert is_full_precision(model)


def test_what_cannot_be_quantized_is_refused_and_nothing_is_changed() -> None:
    with pytest.raises(InputError, match="conv1 is quantized already"):
        quantize_weights_(MNISTConv(Precision(2, 4)))
    with pytest.raises(InputError, match="nothing to quantize in Flatten"):
        quantize_weights_(nn.Flatten())
    with pytest.raises(InputError, match="layers names '7'"):
        quantize_weights_(network(), layers=["7"])
    mixed = nn.Sequential(nn.Linear(3, 3), nn.Conv1d(1, 1, 1))
    with pytest.raises(InputError, match=r"1 cannot be quantized \(.*\): name others with layers="):
        quantize_weights_(mixed)
    assert is_full_precision(mixed)


class Functional(nn.Module):
    """Applies the weights of a layer without calling it, as BEiT's attention does."""

    default_cfg = {"input_size": (1, 6, 6)}  # noqa: RUF012 - as timm's networks have it

    def __init__(self) -> None:
        super().__init__()
        self.called, self.uncalled = nn.Linear(6, 6), nn.Linear(36, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(self.called(x).flatten(1), self.uncalled.weight)


def test_a_layer_that_is_never_called_is_refused_as_its_quantized_weights_would_not_be_used() -> None:
    model = Functional()
    with pytest.raises(InputError, match=r"uncalled cannot be quantized \(the network never calls it, .*\): name"):
        quantize_weights_(model)
    assert is_full_precision(model)
    assert quantize_weights_(model, layers=["called"]) == ("called",)


def test_a_network_with_a_wrong_image_size_is_quantized_without_a_check() -> None:
    model = network()
    model.default_cfg = {"input_size": (3, 6, 6)}  # type: ignore[assignment]
    assert quantize_weights_(model) == ("0", "3")


def test_pgd_on_an_ensemble_sees_the_quantized_weights_at_the_raw_image() -> None:
    """A network that holds the rounded numbers themselves is attacked in the very same way."""
    twin, model = network(), quantized(2)
    for index in (0, 3):
        twin[index].weight.data = post_training_quantizer(2)(twin[index].weight.detach())
    y = twin(IMAGES).argmax(1)
    pairs = [Ensemble([each, network(1)], MeanProbability()) for each in (model, twin)]
    y = pairs[0](IMAGES).argmax(1)
    found = [pgd(5)(each, IMAGES, y, Threat.parse("Linf:0.3"), seed=1) for each in pairs]
    assert torch.equal(found[0], found[1])
    assert (pairs[0](found[0]).argmax(1) != y).any()
    x = IMAGES.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(x)[:, 0].sum(), x)
    assert gradient.abs().sum() > 0
