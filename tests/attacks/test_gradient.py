"""The gradient loop: analytic distances, the papers' definitions, the active batch, surrogates, noise and bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.attacks import surrogates
from empir_plugin.attacks.gradient import GradientAttack, bim, fgsm, gaussian_noise, mim, pgd, rfgsm, uniform_noise
from empir_plugin.attacks.losses import CrossEntropy, dlr, margin, softmax_twice
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.starts import DirectionStart, FixedStep, GaussianStart, StepOfEps, UniformStart
from empir_plugin.attacks.surrogates import parse_surrogate
from empir_plugin.attacks.threat import L2, Linf, Norm, Threat, parse_norm
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.ensemble import Ensemble

ATTACKS = {
    "fgsm": fgsm(),
    "bim": bim(),
    "bim-10": bim(10),
    "pgd": pgd(),
    "pgd-restarts": pgd(20, restarts=3),
    "pgd-gaussian": replace(pgd(), start=GaussianStart()),
    "mim": mim(),
    "rfgsm": rfgsm(ratio=0.005),
    "margin": pgd(loss=margin),
    "dlr": pgd(loss=dlr),
    "temperature": pgd(loss=CrossEntropy(10.0)),
    "softmax-twice": pgd(loss=softmax_twice),
    "last": replace(bim(), return_last=True),
}
# Factor over the known distance at which an attack must succeed; in L2 the random start takes some steps to undo.
ABOVE = {"Linf": 1.02, "L2": 1.05}
NORMS = ["Linf", "L2"]
X = torch.full((2, 3, 4, 4), 0.5)
Y = torch.tensor([0, 1])
THREAT = Threat.parse("Linf:0.1")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_success_just_above_the_known_distance_and_never_below(
    attack: GradientAttack, norm: str, linear: Any, near_middle: Tensor
) -> None:
    y = linear(near_middle).argmax(1)
    assert set(y.tolist()) == {0, 1}
    distance = float(linear.distance(near_middle, norm).mean())
    above = Threat(parse_norm(norm), ABOVE[norm] * distance)
    adv = attack(linear, near_middle, y, above)
    assert torch.equal(linear(adv).argmax(1), 1 - y)
    assert float(above.norm.size(adv - near_middle).max()) <= above.eps * (1 + 1e-6)
    below = attack(linear, near_middle, y, Threat(parse_norm(norm), 0.98 * distance))
    assert torch.equal(linear(below).argmax(1), y)
    assert attack.return_last or torch.equal(below, near_middle)


@pytest.mark.parametrize("norm", NORMS)
def test_targeted_attacks_reach_only_their_target(norm: str, linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    threat = Threat(parse_norm(norm), ABOVE[norm] * float(linear.distance(near_middle, norm).max()))
    for loss in (CrossEntropy(), margin, dlr):
        attack = pgd(loss=loss)
        assert torch.equal(linear(attack(linear, near_middle, y, threat, targets=1 - y)).argmax(1), 1 - y)
        # Class 3 can never win.
        adv = attack(linear, near_middle, y, threat, targets=torch.full_like(y, 3))
        assert torch.equal(adv, near_middle)


def literal_ascent(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, start: Tensor | None = None
) -> list[Tensor]:
    """BIM and PGD for Linf as the papers write them: every iterate of the whole batch."""
    iterates = [x if start is None else (x + start).clamp(0, 1)]
    for _ in range(steps):
        adv = iterates[-1].clone().requires_grad_(True)
        F.cross_entropy(model(adv), y, reduction="sum").backward()
        assert adv.grad is not None
        adv = adv.detach() + step * adv.grad.sign()
        iterates.append((x + (adv - x).clamp(-eps, eps)).clamp(0, 1))
    return iterates


def test_fgsm_equals_its_definition(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    expected = literal_ascent(small_network, images, y, 8 / 255, 8 / 255, 1)[-1]
    got = replace(fgsm(), return_last=True)(small_network, images, y, Threat(Linf(), 8 / 255))
    assert torch.equal(got, expected)


def test_bim_equals_its_definition(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    expected = literal_ascent(small_network, images, y, 0.1, 0.01, 40)[-1]
    got = replace(bim(40, step_size=0.01), return_last=True)(small_network, images, y, Threat(Linf(), 0.1))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_mim_equals_its_definition(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    adv, momentum = images, torch.zeros_like(images)
    for _ in range(10):
        adv = adv.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(small_network(adv), y, reduction="sum"), adv)
        momentum = 0.9 * momentum + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        adv = (images + (adv.detach() + 0.01 * momentum.sign() - images).clamp(-0.05, 0.05)).clamp(0, 1)
    attack = replace(mim(10, step_size=0.01, decay=0.9), return_last=True)
    torch.testing.assert_close(attack(small_network, images, y, Threat(Linf(), 0.05)), adv, rtol=0, atol=1e-12)


def test_rfgsm_equals_its_definition(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    start = 0.05 * Draw(4, torch.arange(len(y))).normal(images).sign()
    expected = literal_ascent(small_network, images, y, 0.1, 0.05, 1, start)[-1]
    got = replace(rfgsm(), return_last=True)(small_network, images, y, Threat(Linf(), 0.1), seed=4)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_dropping_broken_images_equals_the_full_batch(small_network: nn.Module, images: Tensor) -> None:
    """For each image the result is the first of its iterates that fools the model, whatever the other images do."""
    y = small_network(images).argmax(1)
    eps, step = 0.1, 0.01
    start = (2 * Draw(5, torch.arange(len(y))).uniform(images) - 1) * eps
    iterates = literal_ascent(small_network, images, y, eps, step, 30, start)
    expected, broken_at = images.clone(), torch.full((len(y),), -1)
    for number, iterate in enumerate(iterates):
        first = (small_network(iterate).argmax(1) != y) & (broken_at < 0)
        expected[first], broken_at[first] = iterate[first], number
    assert len(set(broken_at.tolist())) > 5, "the test needs images that break at different steps"
    got = pgd(30, step_size=step)(small_network, images, y, Threat(Linf(), eps), seed=5)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attack", [pgd(10, restarts=3), mim(10), rfgsm()], ids=["pgd", "mim", "rfgsm"])
def test_results_do_not_depend_on_the_batch(attack: GradientAttack, small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    indices = torch.arange(100, 124)
    threat = Threat(Linf(), 0.04)
    together = attack(small_network, images, y, threat, seed=1, indices=indices)
    shards = torch.tensor([3, 17, 9]), torch.tensor([0]), torch.arange(10, 24)
    for rows in shards:
        apart = attack(small_network, images[rows], y[rows], threat, seed=1, indices=indices[rows])
        torch.testing.assert_close(apart, together[rows], rtol=0, atol=1e-12)
    broken = ~(together == images).flatten(1).all(1)
    assert 0 < int(broken.sum()) < len(y), "the test needs broken and robust images"


def test_the_seed_changes_the_start(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    attack = replace(pgd(1), return_last=True)
    first, again, other = (attack(small_network, images, y, THREAT, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_restarts_only_break_more_images(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    threat = Threat(Linf(), 0.02)
    once = pgd(3)(small_network, images, y, threat)
    often = pgd(3, restarts=10)(small_network, images, y, threat)
    broken_once = small_network(once).argmax(1) != y
    broken_often = small_network(often).argmax(1) != y
    assert (broken_once <= broken_often).all()
    assert torch.equal(once[broken_once], often[broken_once])


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
@pytest.mark.parametrize("start", [UniformStart(), GaussianStart(), DirectionStart()], ids=lambda s: type(s).__name__)
def test_iterates_stay_in_the_ball_and_the_box(
    norm: Norm, start: Any, small_network: nn.Module, images: Tensor
) -> None:
    threat = Threat(norm, 0.3)
    seen: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return small_network(x)

    attack = GradientAttack(5, StepOfEps(0.5), start=start, return_last=True)
    seen.append(attack(spy, images, small_network(images).argmax(1), threat))
    assert len(seen) == 6
    for iterate in seen:
        assert float(threat.norm.size(iterate - images).max()) <= 0.3 * (1 + 1e-6)
        assert float(iterate.min()) >= 0
        assert float(iterate.max()) <= 1


def test_a_start_outside_the_box_if_requested(images: Tensor, small_network: nn.Module) -> None:
    starts: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        starts.append(x.detach().clone())
        return small_network(x)

    attack = replace(pgd(1), return_last=True, start_in_box=False)
    adv = attack(spy, images, torch.zeros(24, dtype=torch.int64), Threat(Linf(), 0.3))
    assert float(starts[0].max()) > 1
    assert float(adv.max()) <= 1


def test_misclassified_images_are_returned_unchanged(small_network: nn.Module, images: Tensor) -> None:
    wrong = (small_network(images).argmax(1) + 1) % 5
    for attack in (fgsm(), bim(5)):
        assert torch.equal(attack(small_network, images, wrong, THREAT), images)


def test_broken_images_cost_no_further_passes(small_network: nn.Module, images: Tensor) -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return small_network(x)

    bim(20)(counting, images, small_network(images).argmax(1), Threat(Linf(), 0.2))
    assert sizes[0] == 24
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) < 21, "all images break at eps 0.2, so the loop must end early"


def test_one_pass_per_step(small_network: nn.Module, images: Tensor) -> None:
    passes = 0

    def counting(x: Tensor) -> Tensor:
        nonlocal passes
        passes += 1
        return small_network(x)

    y = small_network(images).argmax(1)
    pgd(7)(counting, images, y, Threat(Linf(), 1e-6))
    assert passes == 8
    replace(pgd(7), return_last=True)(counting, images, y, THREAT)
    assert passes == 8 + 7


def test_the_model_is_unchanged(small_network: nn.Module, images: Tensor) -> None:
    small_network.train()
    frozen = next(small_network.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in small_network.parameters()]
    pgd(2)(small_network, images, torch.zeros(24, dtype=torch.int64), THREAT)
    assert small_network.training
    assert [p.requires_grad for p in small_network.parameters()] == before
    assert not frozen.requires_grad
    assert all(p.grad is None for p in small_network.parameters())


def test_the_model_is_unchanged_after_an_error(small_network: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError):
        pgd(2, surrogate=surrogates.voters)(small_network, images, torch.zeros(24, dtype=torch.int64), THREAT)
    assert all(p.requires_grad for p in small_network.parameters())


def test_parameters_get_no_gradient(images: Tensor) -> None:
    seen: list[bool] = []

    class Probe(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.randn(192, 5, dtype=torch.float64))

        def forward(self, x: Tensor) -> Tensor:
            seen.append((self.w * 2).requires_grad)
            return x.flatten(1) @ self.w

    bim(3)(Probe(), images, torch.zeros(24, dtype=torch.int64), THREAT)
    assert not any(seen)


def test_inside_no_grad_and_with_channels_last(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    expected = pgd(5)(small_network, images, y, THREAT)
    with torch.no_grad():
        got = pgd(5)(small_network, images.to(memory_format=torch.channels_last), y, THREAT)
    assert got.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_the_input_images_are_unchanged(small_network: nn.Module, images: Tensor) -> None:
    before = images.clone()
    pgd(3)(small_network, images, torch.zeros(24, dtype=torch.int64), THREAT)
    assert torch.equal(images, before)
    assert not images.requires_grad


def test_no_images(small_network: nn.Module) -> None:
    empty = torch.empty(0, 3, 8, 8)
    assert pgd()(small_network.float(), empty, torch.empty(0, dtype=torch.int64), THREAT).shape == (0, 3, 8, 8)


# A vote has no gradient; a surrogate has.


def hard_vote(logits: Tensor, leader: int | None) -> Tensor:
    votes = F.one_hot(logits.argmax(-1), logits.shape[-1])
    return votes.sum(0).to(logits.dtype)


def test_a_hard_vote_needs_a_surrogate(small_members: list[nn.Module], images: Tensor) -> None:
    ensemble = Ensemble(small_members, hard_vote)
    y = ensemble(images).argmax(1)
    with pytest.raises(EvaluationError, match=r"no gradient .* surrogate, such as voters"):
        pgd(5)(ensemble, images, y, THREAT)


@pytest.mark.parametrize("text", ["voters", "mean_probability", "mean_logits", "member:0", "reweighted:1"])
def test_a_surrogate_attacks_a_hard_vote(text: str, small_members: list[nn.Module], images: Tensor) -> None:
    ensemble = Ensemble(small_members, hard_vote)
    y = ensemble(images).argmax(1)
    attack = pgd(20, surrogate=parse_surrogate(text))
    fooled = ensemble(attack(ensemble, images, y, Threat(Linf(), 0.2))).argmax(1) != y
    assert float(fooled.double().mean()) > 0.5
    tiny = attack(ensemble, images, y, Threat(Linf(), 1e-9))
    assert torch.equal(tiny, images)


def test_only_the_model_decides_about_success(linear: Any, near_middle: Tensor) -> None:
    """A surrogate that is easily fooled makes no adversarial image of the model."""
    y = linear(near_middle).argmax(1)
    distance = float(linear.distance(near_middle, "Linf").min())
    weak = surrogates.Source(lambda x: linear(0.5 + 0.01 * (x - 0.5)) - F.one_hot(y, 4))
    adv = pgd(surrogate=weak)(linear, near_middle, y, Threat(Linf(), 0.9 * distance))
    assert torch.equal(adv, near_middle)


# Noise.


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("noise", [uniform_noise(20), gaussian_noise(20)], ids=["uniform", "gaussian"])
def test_noise_succeeds_far_above_the_known_distance_and_never_below(
    noise: GradientAttack, norm: str, linear: Any, near_middle: Tensor
) -> None:
    y = linear(near_middle).argmax(1)
    distance = float(linear.distance(near_middle, norm).mean())
    below = Threat(parse_norm(norm), 0.99 * distance)
    assert torch.equal(noise(linear, near_middle, y, below), near_middle)
    far = Threat(parse_norm(norm), min(1.0, 30 * distance))
    adv = noise(linear, near_middle, y, far)
    assert torch.equal(linear(adv).argmax(1), 1 - y)
    assert float(far.norm.size(adv - near_middle).max()) <= far.eps * (1 + 1e-6)


def test_trials_only_break_more_images(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    threat = Threat(parse_norm("Linf"), 3 * float(linear.distance(near_middle, "Linf").mean()))
    broken = [linear(uniform_noise(trials)(linear, near_middle, y, threat)).argmax(1) != y for trials in (1, 5, 200)]
    assert (broken[0] <= broken[1]).all()
    assert (broken[1] <= broken[2]).all()
    assert broken[0].sum() < broken[2].sum()


def test_noise_needs_no_gradient(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    with torch.no_grad():
        adv = uniform_noise(20)(lambda x: linear(x).detach(), near_middle, y, Threat.parse("Linf:0.3"))
    assert torch.equal(linear(adv).argmax(1), 1 - y)


# Invalid input.


def nan_model(x: Tensor) -> Tensor:
    return x.flatten(1) * math.nan


def detached_model(x: Tensor) -> Tensor:
    return x.detach().flatten(1)


def constant_model(x: Tensor) -> Tensor:
    return torch.eye(4).requires_grad_(True)[torch.zeros(len(x), dtype=torch.int64)]


def infinite_gradient(x: Tensor) -> Tensor:
    return (x - x.detach()).abs().sqrt().flatten(1) + torch.eye(48)[[0, 1]]


def three_dimensions(x: Tensor) -> Tensor:
    return x.flatten(2)


def two_images(x: Tensor) -> Tensor:
    return x[:1].flatten(1)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nan_model, "returned NaN"),
        (detached_model, "no gradient"),
        (constant_model, "no gradient"),
        (infinite_gradient, "not finite"),
    ],
)
def test_models_that_cannot_be_attacked(model: Callable[[Tensor], Tensor], message: str) -> None:
    y = torch.tensor([0, 0]) if model in (constant_model, detached_model) else Y
    with pytest.raises(EvaluationError, match=message):
        bim(3)(model, X, y, THREAT)


@pytest.mark.parametrize("model", [three_dimensions, two_images])
def test_models_of_another_shape(model: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(InputError, match=r"\(N, K\) with N = 2, got"):
        bim(3)(model, X, Y, THREAT)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, r"x .*\[0, 1\], got \[127.5, 127.5\]: divide by 255"),
        (X * math.nan, Y, r"x .*\[0, 1\], got \[nan, nan\]"),
        (X[0], Y, r"x .*\(N, C, H, W\), got .*\(3, 4, 4\)"),
        ((X * 255).to(torch.uint8), Y, r"x .*floating-point.*got torch\.uint8"),
        (X, Y[:1], r"y .*\(N,\) with N = 2, got .*\(1,\)"),
        (X, Y.float(), r"y .*integers.*got torch\.float32"),
        (X, Y - 1, r"y .*negative, got -1"),
        (X, Y + 99, r"100 .*K = 48: another data set"),
    ],
)
def test_invalid_tensors(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bim(3)(lambda x: x.flatten(1), x, y, THREAT)


def test_labels_of_any_integer_type() -> None:
    attack, model = bim(3), nn.Flatten()
    assert torch.equal(attack(model, X, Y.to(torch.uint8), THREAT), attack(model, X, Y, THREAT))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, r"steps .*got steps=-1"),
        ({"restarts": 0}, r"restarts .*restarts=0"),
        ({"restarts": 2}, r"got 2: use a random start"),
        ({"restarts": 2, "start": UniformStart(), "return_last": True}, r"return_last .*got 2 restarts: use a single"),
    ],
)
def test_invalid_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GradientAttack(**({"steps": 5, "step_size": FixedStep(0.1)} | settings))


def test_eps_must_be_finite() -> None:
    with pytest.raises(InputError, match=r"got L2:inf: name a finite eps"):
        pgd()(nn.Flatten(), X, Y, Threat.parse("L2:inf"))
