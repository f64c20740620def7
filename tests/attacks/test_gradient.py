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
from empir_plugin.attacks.gradient import GradientAttack, bim, fgsm, mim, pgd, rfgsm
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
# How far above the known distance an attack must succeed: a random start is forgotten step by step in L2.
ABOVE = {"Linf": 1.02, "L2": 1.05}
NORMS = ["Linf", "L2"]
X = torch.full((2, 3, 4, 4), 0.5)
Y = torch.tensor([0, 1])
THREAT = Threat.parse("Linf:0.1")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_just_above_the_known_distance_and_never_below(
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
def test_targeted_attacks_reach_their_target_and_no_other(norm: str, linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    threat = Threat(parse_norm(norm), ABOVE[norm] * float(linear.distance(near_middle, norm).max()))
    for loss in (CrossEntropy(), margin, dlr):
        attack = pgd(loss=loss)
        assert torch.equal(linear(attack(linear, near_middle, y, threat, targets=1 - y)).argmax(1), 1 - y)
        # Class 3 can never win.
        hopeless = attack(linear, near_middle, y, threat, targets=torch.full_like(y, 3))
        assert torch.equal(hopeless, near_middle)


def literal_ascent(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, step: float, steps: int, start: Tensor | None = None
) -> list[Tensor]:
    """BIM and PGD for Linf as the papers write them: every iterate of the whole batch, nothing left out."""
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
    adv, running = images, torch.zeros_like(images)
    for _ in range(10):
        adv = adv.clone().requires_grad_(True)
        (grad,) = torch.autograd.grad(F.cross_entropy(small_network(adv), y, reduction="sum"), adv)
        running = 0.9 * running + grad / grad.abs().sum((1, 2, 3), keepdim=True)
        adv = (images + (adv.detach() + 0.01 * running.sign() - images).clamp(-0.05, 0.05)).clamp(0, 1)
    attack = replace(mim(10, step_size=0.01, decay=0.9), return_last=True)
    torch.testing.assert_close(attack(small_network, images, y, Threat(Linf(), 0.05)), adv, rtol=0, atol=1e-12)


def test_rfgsm_equals_its_definition(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    start = 0.05 * Draw(4, torch.arange(len(y))).normal(images).sign()
    expected = literal_ascent(small_network, images, y, 0.1, 0.05, 1, start)[-1]
    got = replace(rfgsm(), return_last=True)(small_network, images, y, Threat(Linf(), 0.1), seed=4)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_survivors_only_equals_the_full_batch(small_network: nn.Module, images: Tensor) -> None:
    """Each image ends as the first of its iterates that fools, however the others fare."""
    y = small_network(images).argmax(1)
    eps, step = 0.1, 0.01
    start = (2 * Draw(5, torch.arange(len(y))).uniform(images) - 1) * eps
    iterates = literal_ascent(small_network, images, y, eps, step, 30, start)
    expected, fell_at = images.clone(), torch.full((len(y),), -1)
    for number, iterate in enumerate(iterates):
        first = (small_network(iterate).argmax(1) != y) & (fell_at < 0)
        expected[first], fell_at[first] = iterate[first], number
    assert len(set(fell_at.tolist())) > 5, "the images must fall at different steps for this test to say something"
    got = pgd(30, step_size=step)(small_network, images, y, Threat(Linf(), eps), seed=5)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("attack", [pgd(10, restarts=3), mim(10), rfgsm()], ids=["pgd", "mim", "rfgsm"])
def test_results_do_not_depend_on_the_batch(attack: GradientAttack, small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    numbers = torch.arange(100, 124)
    threat = Threat(Linf(), 0.04)
    together = attack(small_network, images, y, threat, seed=1, indices=numbers)
    shards = torch.tensor([3, 17, 9]), torch.tensor([0]), torch.arange(10, 24)
    for rows in shards:
        apart = attack(small_network, images[rows], y[rows], threat, seed=1, indices=numbers[rows])
        torch.testing.assert_close(apart, together[rows], rtol=0, atol=1e-12)
    fallen = ~(together == images).flatten(1).all(1)
    assert 0 < int(fallen.sum()) < len(y), "some must fall and some withstand for this test to say something"


def test_seed_and_restart_change_the_start(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    attack = replace(pgd(1), return_last=True)
    first, again, other = (attack(small_network, images, y, THREAT, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_restarts_only_help(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    threat = Threat(Linf(), 0.02)
    once = pgd(3)(small_network, images, y, threat)
    often = pgd(3, restarts=10)(small_network, images, y, threat)
    fell_once = small_network(once).argmax(1) != y
    fell_often = small_network(often).argmax(1) != y
    assert (fell_once <= fell_often).all()
    assert torch.equal(once[fell_once], often[fell_once])


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
@pytest.mark.parametrize("start", [UniformStart(), GaussianStart(), DirectionStart()], ids=lambda s: type(s).__name__)
def test_no_iterate_leaves_the_ball_or_the_box(
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


def test_a_start_outside_the_box_only_on_request(images: Tensor, small_network: nn.Module) -> None:
    starts: list[Tensor] = []

    def spy(x: Tensor) -> Tensor:
        starts.append(x.detach().clone())
        return small_network(x)

    attack = replace(pgd(1), return_last=True, start_in_box=False)
    adv = attack(spy, images, torch.zeros(24, dtype=torch.int64), Threat(Linf(), 0.3))
    assert float(starts[0].max()) > 1
    assert float(adv.max()) <= 1


def test_misclassified_images_come_back_untouched(small_network: nn.Module, images: Tensor) -> None:
    wrong = (small_network(images).argmax(1) + 1) % 5
    for attack in (fgsm(), bim(5)):
        assert torch.equal(attack(small_network, images, wrong, THREAT), images)


def test_fallen_images_cost_nothing_more(small_network: nn.Module, images: Tensor) -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return small_network(x)

    bim(20)(counting, images, small_network(images).argmax(1), Threat(Linf(), 0.2))
    assert sizes[0] == 24
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) < 21, "all images fall at eps 0.2, so the loop must end early"


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


def test_the_model_is_left_as_found(small_network: nn.Module, images: Tensor) -> None:
    small_network.train()
    frozen = next(small_network.parameters()).requires_grad_(False)
    before = [p.requires_grad for p in small_network.parameters()]
    pgd(2)(small_network, images, torch.zeros(24, dtype=torch.int64), THREAT)
    assert small_network.training
    assert [p.requires_grad for p in small_network.parameters()] == before
    assert not frozen.requires_grad
    assert all(p.grad is None for p in small_network.parameters())


def test_the_model_is_left_as_found_after_an_error(small_network: nn.Module, images: Tensor) -> None:
    with pytest.raises(InputError):
        pgd(2, surrogate=surrogates.voters)(small_network, images, torch.zeros(24, dtype=torch.int64), THREAT)
    assert all(p.requires_grad for p in small_network.parameters())


def test_parameters_stay_out_of_the_graph(images: Tensor) -> None:
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


def test_the_images_given_are_not_changed(small_network: nn.Module, images: Tensor) -> None:
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


def test_a_hard_vote_asks_for_a_surrogate(small_members: list[nn.Module], images: Tensor) -> None:
    ensemble = Ensemble(small_members, hard_vote)
    y = ensemble(images).argmax(1)
    with pytest.raises(EvaluationError, match=r"no gradient .* attack it through a surrogate, such as voters"):
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


def test_only_what_fools_the_model_counts(linear: Any, near_middle: Tensor) -> None:
    """A surrogate that is fooled easily proves nothing."""
    y = linear(near_middle).argmax(1)
    distance = float(linear.distance(near_middle, "Linf").min())
    gullible = surrogates.Source(lambda x: linear(0.5 + 0.01 * (x - 0.5)) - F.one_hot(y, 4))
    adv = pgd(surrogate=gullible)(linear, near_middle, y, Threat(Linf(), 0.9 * distance))
    assert torch.equal(adv, near_middle)


# Bad input.


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
    with pytest.raises(InputError, match=r"a model must return logits \(N, K\) with N = 2"):
        bim(3)(model, X, Y, THREAT)


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, r"x must lie in \[0, 1\], got \[127.5, 127.5\]: divide by 255"),
        (X * math.nan, Y, r"x must lie in \[0, 1\]"),
        (X[0], Y, r"x must be floating-point images \(N, C, H, W\)"),
        ((X * 255).to(torch.uint8), Y, "x must be floating-point images"),
        (X, Y[:1], r"y must be integers \(N,\) with N = 2"),
        (X, Y.float(), "y must be integers"),
        (X, Y - 1, "y must not be negative"),
        (X, Y + 99, "labels up to 100 need more than K = 48: another data set"),
    ],
)
def test_bad_tensors(x: Tensor, y: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        bim(3)(lambda x: x.flatten(1), x, y, THREAT)


def test_labels_of_any_integer_type() -> None:
    attack, model = bim(3), nn.Flatten()
    assert torch.equal(attack(model, X, Y.to(torch.uint8), THREAT), attack(model, X, Y, THREAT))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": -1}, "0 or more steps"),
        ({"restarts": 0}, "a restart"),
        ({"restarts": 2}, "use a random start"),
        ({"restarts": 2, "start": UniformStart(), "return_last": True}, "use a single restart"),
    ],
)
def test_senseless_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GradientAttack(**({"steps": 5, "step_size": FixedStep(0.1)} | settings))


def test_an_infinite_budget_is_refused() -> None:
    with pytest.raises(InputError, match="gradient ascent needs a budget, got L2:inf"):
        pgd()(nn.Flatten(), X, Y, Threat.parse("L2:inf"))
