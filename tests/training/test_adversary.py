"""Attacks to train against: their radius, its ramp, and that they leave the network unchanged."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.layers import QuantConv2d, QuantLinear, quantized_layers
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import Adversary, attack_mode, fgsm, nfgsm, pgd, rfgsm
from empir_plugin.training.batch import TrainingBatch

W4A4 = Precision(4, 4)


def _network() -> nn.Sequential:
    torch.manual_seed(0)
    first = QuantConv2d(3, 4, 3, precision=W4A4, scale="max")
    return nn.Sequential(first, nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), QuantLinear(64, 5, precision=W4A4)).train()


def _batch(n: int = 16, *, seed: int = 0, progress: float = 1.0) -> TrainingBatch:
    generator = torch.Generator().manual_seed(7)
    x = torch.rand(n, 3, 6, 6, generator=generator)
    return TrainingBatch(x, torch.arange(n) % 5, seed=seed, progress=progress)


def _moved(adversary: Adversary, progress: float = 1.0) -> Tensor:
    batch = _batch(64, progress=progress)
    found = adversary(_network(), batch)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    return (found - batch.x).abs()


@pytest.mark.parametrize(
    "adversary",
    [
        fgsm("Linf:0.1"),
        fgsm("Linf:0.1", spread=True),
        rfgsm("Linf:0.1"),
        pgd("Linf:0.1", steps=3),
        pgd("Linf:0.1", steps=2, noise=2.0),
    ],
)
def test_images_stay_within_the_radius_and_use_it(adversary: Adversary) -> None:
    moved = _moved(adversary)
    assert float(moved.max()) <= 0.1 + 1e-6
    assert float(moved.max()) > 0.08


def test_n_fgsm_moves_images_up_to_three_times_the_radius() -> None:
    moved = _moved(nfgsm("Linf:0.1"))
    assert 0.25 < float(moved.max()) <= 0.3 + 1e-6
    assert float(_moved(nfgsm("Linf:0.1", noise=0.5, step=0.25)).max()) <= 0.075 + 1e-6


def test_n_fgsm_is_noise_plus_one_full_step() -> None:
    batch = TrainingBatch(torch.full((200, 1, 4, 4), 0.5), torch.zeros(200, dtype=torch.int64))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 2, bias=False))
    direction = (model[1].weight[1] - model[1].weight[0]).detach().sign().view(1, 4, 4)  # type: ignore[index,operator]
    noise = nfgsm("Linf:0.05")(model, batch) - 0.5 - 0.05 * direction
    assert float(noise.abs().max()) <= 0.1 + 1e-6, "what is left after the step is noise within twice the radius"
    assert float(noise.abs().mean()) == pytest.approx(0.05, rel=0.05), "uniform, on average half of that"


def test_steps_project_noise_above_the_radius_back_into_the_ball() -> None:
    assert float(_moved(pgd("Linf:0.1", steps=1, noise=3.0)).max()) <= 0.1 + 1e-6


@pytest.mark.parametrize(("progress", "radius"), [(0.05, 0.03), (0.25, 0.15), (0.5, 0.3), (0.75, 0.3), (1.0, 0.3)])
def test_the_radius_rises_over_its_ramp(progress: float, radius: float) -> None:
    adversary = pgd("Linf:0.3", steps=2, ramp=0.5)
    assert adversary.eps_at(progress) == pytest.approx(radius)
    assert float(_moved(adversary, progress=progress).max()) == pytest.approx(radius, abs=1e-6)
    assert pgd("Linf:0.3", steps=2).eps_at(0.001) == 0.3


def test_spread_radii_follow_half_a_normal_distribution() -> None:
    batch = TrainingBatch(torch.full((4000, 1, 1, 2), 0.5), torch.zeros(4000, dtype=torch.int64))
    radii = (fgsm("Linf:0.4", spread=True)(nn.Flatten(), batch) - 0.5).abs().amax((1, 2, 3))
    assert float(radii.max()) <= 0.4
    beyond_one_deviation = (math.erf(math.sqrt(2)) - math.erf(math.sqrt(0.5))) / math.erf(math.sqrt(2))
    assert (radii > 0.2).float().mean().item() == pytest.approx(beyond_one_deviation, abs=0.03)
    fixed = (fgsm("Linf:0.4")(nn.Flatten(), batch) - 0.5).abs().amax((1, 2, 3))
    assert torch.allclose(fixed, torch.full((4000,), 0.4))


def test_the_attack_depends_on_its_seed() -> None:
    model, adversary = _network(), pgd("Linf:0.1", steps=1)
    assert torch.equal(adversary(model, _batch(seed=3)), adversary(model, _batch(seed=3)))
    assert not torch.equal(adversary(model, _batch(seed=3)), adversary(model, _batch(seed=4)))


def test_the_network_is_left_unchanged() -> None:
    model = _network()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    pgd("Linf:0.1", steps=2)(model, _batch())
    assert [module.training for module in model] == [True, False, True, True, True]
    assert all(layer.baked_weight is None for _, layer in quantized_layers(model))
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["4.bias"]
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items()), "running statistics too"
    model.train()(_batch().x)
    assert not torch.equal(model[1].running_mean, state["1.running_mean"]), "which a pass in training mode changes"  # type: ignore[arg-type]


def test_baked_weights_of_an_evaluated_network_stay_baked() -> None:
    model = _network().eval()
    for _, layer in quantized_layers(model):
        layer.bake_()
    before = [layer.baked_weight for _, layer in quantized_layers(model)]
    with attack_mode(model):
        pass
    assert all(now.baked_weight is old for (_, now), old in zip(quantized_layers(model), before, strict=True))


def test_a_failing_attack_leaves_the_network_unchanged() -> None:
    model = _network()
    with pytest.raises(InputError), attack_mode(model):
        raise InputError
    assert model.training
    assert model[0].baked_weight is None


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: pgd("Linf:8", steps=2), r"eps must lie in \(0, 1\], got 8: images are in \[0, 1\], so write 8/255"),
        (lambda: pgd("Linf:0.1", steps=0), "steps .*got 0"),
        (lambda: pgd("Linf:0.1", steps=2, step=0.0), "step of an adversary must be above 0"),
        (lambda: pgd("Linf:0.1", steps=2, noise=float("inf")), "noise of an adversary must be above 0"),
        (lambda: pgd("Linf:0.1", steps=2, ramp=1.5), r"ramp must lie in \[0, 1\], got 1.5"),
        (lambda: nfgsm("Linf:0.5"), r"reach must lie in \[1, 2\] under Linf:0.5, got 3: lower noise or step"),
        (lambda: rfgsm("Linf:0.5", ratio=1.0), "ratio must lie between 0 and 1"),
    ],
)
def test_impossible_adversaries_are_refused(build: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build()  # type: ignore[operator]
