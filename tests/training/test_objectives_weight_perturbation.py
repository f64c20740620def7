"""Adversarial weight perturbation against answers known by hand and the authors' procedure."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import fgsm, pgd
from empir_plugin.training.batch import Criterion, LossOutput, TrainingBatch
from empir_plugin.training.objectives import Adversarial, AdversarialObjective, Trades, WeightPerturbed

ADVERSARIAL = Adversarial(pgd("Linf:0.1", steps=2), clean_share=0.25)
TRADES = Trades(pgd("Linf:0.1", steps=2), beta=3.0)
BARS = TrainingBatch(torch.rand(16, 1, 6, 6, generator=torch.Generator().manual_seed(3)), torch.arange(16) % 4, seed=5)


@dataclass(frozen=True)
class Bowl:
    """Half the squared length of all parameters: the gradient at w is w, and there is no attack."""

    def __call__(self, model: nn.Module, batch: TrainingBatch) -> LossOutput:
        return self.loss_on(model, batch, self.attack(model, batch))

    def attack(self, model: nn.Module, batch: TrainingBatch) -> Tensor:
        return batch.x

    def loss_on(self, model: nn.Module, batch: TrainingBatch, found: Tensor) -> LossOutput:
        return LossOutput(0.5 * torch.stack([p.square().sum() for p in model.parameters()]).sum(), found.flatten(1))


def test_in_a_quadratic_bowl_weights_move_outwards_and_biases_do_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)).double()
    output = WeightPerturbed(Bowl(), gamma=0.25)(model, BARS)
    output.loss.backward()
    weights, biases = [model[0].weight, model[1].weight], [model[0].bias, model[1].bias]
    squares = [sum(float(p.detach().square().sum()) for p in group) for group in (weights, biases)]
    assert output.loss.item() == pytest.approx(0.5 * (1.25**2 * squares[0] + squares[1]))
    assert all(torch.allclose(w.grad, 1.25 * w) for w in weights)  # type: ignore[arg-type]
    assert all(torch.equal(b.grad, b) for b in biases)  # type: ignore[arg-type]


def test_a_linear_network_moves_along_the_gradient_known_by_hand() -> None:
    torch.manual_seed(0)
    x, y = torch.rand(5, 1, 1, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1])
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)).double()
    w = model[1].weight.detach().clone()
    # The logit of class 1 over that of class 0 grows along w1 - w0: FGSM walks against the label.
    direction = (w[1] - w[0]).sign() * torch.where(y == 1, -1.0, 1.0).unsqueeze(1)
    attacked = (x.flatten(1) + 0.05 * direction).clamp(0, 1)

    def gradient(weight: Tensor) -> Tensor:
        residual = (attacked @ weight.T).softmax(1) - nn.functional.one_hot(y, 2)
        return residual.T @ attacked / 5

    moved = w + 0.1 * w.norm() * gradient(w) / gradient(w).norm()
    output = WeightPerturbed(Adversarial(fgsm("Linf:0.05")), gamma=0.1)(model, TrainingBatch(x, y))
    output.loss.backward()
    assert torch.allclose(output.logits, attacked @ moved.T)
    assert torch.allclose(model[1].weight.grad, gradient(moved))  # type: ignore[arg-type]
    assert not torch.allclose(model[1].weight.grad, gradient(w))  # type: ignore[arg-type]
    assert torch.equal(model[1].weight, w), "the weights themselves have not moved"


def _ensemble() -> Ensemble:
    torch.manual_seed(1)

    def member(conv: nn.Module) -> nn.Module:
        return nn.Sequential(conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))

    low = QuantConv2d(1, 8, 3, precision=Precision(4, 4), scale="max")
    return Ensemble([member(nn.Conv2d(1, 8, 3)), member(low)], MeanProbability()).train()


def _by_the_authors_procedure(
    objective: AdversarialObjective, model: nn.Module, batch: TrainingBatch, gamma: float
) -> LossOutput:
    """A proxy takes a step uphill; the network is moved by as much, layer by layer, and then back."""
    images = objective.attack(model, batch)
    proxy = copy.deepcopy(model)
    (-objective.loss_on(proxy, batch, images).loss).backward()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for name, p in proxy.named_parameters():
        if p.dim() > 1 and p.grad is not None:
            difference = -0.01 * p.grad
            own = dict(model.named_parameters())[name]
            own.data.add_(gamma * own.data.norm() / (difference.norm() + 1e-20) * difference)
    output = objective.loss_on(model, batch, images)
    output.loss.backward()
    for name, p in model.named_parameters():
        p.data.copy_(before[name])
    return output


@pytest.mark.parametrize("objective", [ADVERSARIAL, TRADES], ids=["adversarial", "trades"])
def test_an_ensemble_is_perturbed_as_the_authors_do_it(objective: AdversarialObjective) -> None:
    batch = TrainingBatch(BARS.x, BARS.y, Criterion(member_share=0.3), seed=5)
    ours, theirs = _ensemble(), _ensemble()
    output = WeightPerturbed(objective, gamma=0.05)(ours, batch)
    output.loss.backward()
    expected = _by_the_authors_procedure(objective, theirs, batch, 0.05)
    assert output.loss.item() == pytest.approx(expected.loss.item(), rel=1e-4)
    assert output.loss.item() > objective(_ensemble(), batch).loss.item() + 0.01
    for (name, own), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert own.grad is not None, name
        assert torch.allclose(own.grad, other.grad, rtol=1e-2, atol=1e-4), name  # type: ignore[arg-type]
    for (name, own), other in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        assert torch.allclose(own, other, atol=1e-5), f"{name}: the trial step leaves no trace in it"


@pytest.mark.parametrize("objective", [ADVERSARIAL, TRADES], ids=["adversarial", "trades"])
def test_weights_are_bitwise_unchanged(objective: AdversarialObjective) -> None:
    model = _ensemble()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    WeightPerturbed(objective, gamma=0.1)(model, BARS).loss.backward()
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


@pytest.mark.parametrize(
    ("perturbed", "batch"),
    [
        (WeightPerturbed(ADVERSARIAL, gamma=0.0), BARS),
        (WeightPerturbed(ADVERSARIAL, gamma=0.1, warmup=0.5), TrainingBatch(BARS.x, BARS.y, seed=5, progress=0.5)),
    ],
    ids=["gamma 0", "warmup"],
)
def test_without_a_perturbation_gradients_are_bitwise_the_same(
    perturbed: WeightPerturbed, batch: TrainingBatch
) -> None:
    one, other = _ensemble(), _ensemble()
    perturbed(one, batch).loss.backward()
    ADVERSARIAL(other, batch).loss.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(one.parameters(), other.parameters(), strict=True))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(one.buffers(), other.buffers(), strict=True))


def test_weights_are_perturbed_after_the_warmup() -> None:
    late = TrainingBatch(BARS.x, BARS.y, seed=5, progress=0.51)
    perturbed = WeightPerturbed(ADVERSARIAL, gamma=0.1, warmup=0.5)(_ensemble(), late)
    assert perturbed.loss > ADVERSARIAL(_ensemble(), late).loss + 0.01


def test_latent_weights_of_a_quantized_layer_are_perturbed() -> None:
    torch.manual_seed(2)
    layer = QuantConv2d(1, 8, 3, precision=Precision(2, 4), scale="none")
    model, batch = nn.Sequential(layer, nn.Flatten()), TrainingBatch(BARS.x, BARS.y)
    plain = Adversarial(fgsm("Linf:0.1"))
    losses = [WeightPerturbed(plain, gamma)(model, batch).loss for gamma in (0.0, 1e-7, 0.3)]
    assert losses[1] == losses[0], "too little to lead any latent weight to another of the four levels"
    assert losses[2] > losses[0]


def test_unused_and_frozen_weights_are_not_perturbed() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 6), nn.Linear(6, 4))
    model.add_module("idle", nn.Identity())
    model[1].weight.requires_grad_(False)
    spare = nn.Linear(3, 3)
    model[3].register_module("spare", spare)
    output = WeightPerturbed(Adversarial(fgsm("Linf:0.1")), gamma=0.1)(model, BARS)
    output.loss.backward()
    assert model[1].weight.grad is None
    assert spare.weight.grad is None
    assert torch.isfinite(output.loss)


def test_a_flat_loss_perturbs_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 1))  # one class: its probability is 1 whatever the weights
    output = WeightPerturbed(Adversarial(fgsm("Linf:0.1")), gamma=0.5)(
        model, TrainingBatch(BARS.x, torch.zeros(16).long())
    )
    assert output.loss.item() == 0
    assert torch.isfinite(output.logits).all()


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: WeightPerturbed(ADVERSARIAL, gamma=-5e-3), "gamma must be 0 or more and finite, got -0.005"),
        (lambda: WeightPerturbed(ADVERSARIAL, gamma=float("nan")), "gamma must be 0 or more and finite, got nan"),
        (lambda: WeightPerturbed(ADVERSARIAL, gamma=5e-3, warmup=1.0), r"warmup .* must lie in \[0, 1\), got 1.0"),
    ],
)
def test_impossible_perturbations_are_refused(build: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build()  # type: ignore[operator]
