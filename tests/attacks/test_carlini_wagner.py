"""Carlini and Wagner's attack: analytic distances, a literal restatement, surrogates and bad input."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import surrogates
from empir_plugin.attacks.carlini_wagner import CarliniWagner, carlini_wagner_of_empir
from empir_plugin.attacks.threat import L2, Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.ensemble import Ensemble

UNBOUNDED = Threat.parse("L2:inf")
QUICK = CarliniWagner(search_steps=5, iterations=60, learning_rate=0.02, initial_const=0.1, abort_checks=0)


def test_finds_almost_the_smallest_perturbation_and_never_a_smaller_one(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    adv = QUICK(linear, near_middle, y, UNBOUNDED)
    distance = linear.distance(near_middle, "L2")
    ratio = L2().size(adv - near_middle) / distance
    assert torch.equal(linear(adv).argmax(1), 1 - y)
    # Mapping an image to tanh space and back moves it by up to 1e-6, hence the tolerance.
    assert float(ratio.min()) >= 1 - 1e-4
    assert float(ratio.max()) <= 1.05


def test_only_images_within_the_threat_are_returned(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    distance = float(linear.distance(near_middle, "L2").mean())
    assert torch.equal(linear(QUICK(linear, near_middle, y, Threat(L2(), 1.06 * distance))).argmax(1), 1 - y)
    assert torch.equal(QUICK(linear, near_middle, y, Threat(L2(), 0.98 * distance)), near_middle)


def test_targets(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    assert torch.equal(linear(QUICK(linear, near_middle, y, UNBOUNDED, targets=1 - y)).argmax(1), 1 - y)
    adv = replace(QUICK, search_steps=1)(linear, near_middle, y, UNBOUNDED, targets=torch.full_like(y, 3))
    assert torch.equal(adv, near_middle), "class 3 can never win"


def test_confidence(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    adv = replace(QUICK, confidence=0.5)(linear, near_middle, y, UNBOUNDED)
    logits = linear(adv).detach()
    margins = logits.gather(1, 1 - y[:, None]) - logits.gather(1, y[:, None])
    assert float(margins.min()) >= 0.5


def literal(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float, const: float, every: int
) -> tuple[Tensor, int]:
    """One search step with torch's own Adam; the whole batch stops by its summed objective."""
    origin = torch.atanh((2 * x - 1) * 0.999999)
    w = origin.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([w], rate)
    best, nearest, before = x.clone(), torch.full((len(x),), math.inf, dtype=x.dtype), math.inf
    done = 0
    for step in range(steps):
        adv = (torch.tanh(w) + 1) / 2
        logits = model(adv)
        distance = ((adv - (torch.tanh(origin) + 1) / 2) ** 2).sum((1, 2, 3))
        own = logits[torch.arange(len(y)), y]
        other = (logits - 1e9 * torch.eye(logits.shape[1])[y]).max(1).values
        objective = (distance + const * (own - other).clamp(min=0)).sum()
        better = (logits.argmax(1) != y) & (distance < nearest)
        best[better], nearest[better] = adv.detach()[better], distance.detach()[better]
        optimizer.zero_grad()
        objective.backward()
        optimizer.step()
        done += 1
        if every and step % every == 0:
            if objective.item() > 0.9999 * before:
                break
            before = objective.item()
    return best, done


@pytest.mark.parametrize(("checks", "every"), [(0, 0), (10, 5)])
def test_equals_a_literal_restatement(checks: int, every: int, small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    expected, steps = literal(small_network, images, y, 50, 0.1, 10.0, every)
    assert steps == 50 or every, "without checks nothing stops early"
    attack = replace(carlini_wagner_of_empir(abort_together=True), abort_checks=checks)
    torch.testing.assert_close(attack(small_network, images, y, UNBOUNDED), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("confidence", [0.0, 0.5])
def test_an_image_at_exactly_the_confidence_is_still_pushed_beyond_it(confidence: float) -> None:
    """There the loss has a kink; with slope zero the image would be a fixed point, and a tie would count as robust."""
    x, y = torch.tensor([0.5 - confidence / 2, 0.5 + confidence / 2]).view(1, 1, 1, 2), torch.tensor([0])
    attack = CarliniWagner(search_steps=1, iterations=2, initial_const=1.0, confidence=confidence)
    adv = attack(nn.Flatten(), x, y, UNBOUNDED)
    assert float(adv[0, 0, 0, 1] - adv[0, 0, 0, 0]) > confidence - 1e-6
    if not confidence:
        assert not torch.equal(adv, x)


def test_images_do_not_depend_on_each_other(small_network: nn.Module, images: Tensor) -> None:
    y = small_network(images).argmax(1)
    together = carlini_wagner_of_empir()(small_network, images, y, UNBOUNDED)
    rows = torch.tensor([3, 11, 20])
    apart = carlini_wagner_of_empir()(small_network, images[rows], y[rows], UNBOUNDED)
    torch.testing.assert_close(apart, together[rows], rtol=0, atol=1e-9)


def test_images_that_stop_improving_are_dropped_from_the_batch(small_network: nn.Module, images: Tensor) -> None:
    sizes: list[int] = []

    def counting(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return small_network(x)

    carlini_wagner_of_empir()(counting, images, small_network(images).argmax(1), UNBOUNDED)
    assert sizes[0] == 24
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] < 24


def test_stays_in_the_box(small_network: nn.Module, images: Tensor) -> None:
    x = images.round()
    y = small_network(x).argmax(1)
    adv = replace(carlini_wagner_of_empir(), learning_rate=1.0)(small_network, x, y, UNBOUNDED)
    assert torch.isfinite(adv).all()
    assert float(adv.min()) >= 0
    assert float(adv.max()) <= 1
    assert float((small_network(adv).argmax(1) != y).double().mean()) > 0.5


def test_ensembles(small_members: list[nn.Module], images: Tensor) -> None:
    ensemble = Ensemble(small_members)
    y = ensemble(images).argmax(1)
    for surrogate in (surrogates.voters, surrogates.member(0)):
        adv = carlini_wagner_of_empir(surrogate=surrogate)(ensemble, images, y, UNBOUNDED)
        broken = ensemble(adv).argmax(1) != y
        assert float(broken.double().mean()) > 0.5
        assert torch.equal(adv[~broken], images[~broken])


def test_a_model_without_gradient(images: Tensor) -> None:
    with pytest.raises(EvaluationError, match="no gradient"):
        QUICK(lambda x: x.detach().flatten(1), images, torch.zeros(24, dtype=torch.int64), UNBOUNDED)


def test_no_images() -> None:
    assert len(QUICK(nn.Flatten(), torch.empty(0, 1, 2, 2), torch.empty(0, dtype=torch.int64), UNBOUNDED)) == 0


@pytest.mark.parametrize("settings", [{"search_steps": 0}, {"iterations": 0}, {"abort_checks": -1}])
def test_invalid_counts(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(settings))} .*got .*{next(iter(settings.values()))}"):
        CarliniWagner(**settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("settings", [{"learning_rate": 0.0}, {"initial_const": 0.0}, {"confidence": -1.0}])
def test_invalid_numbers(settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(settings))} .*got .*{next(iter(settings.values()))}"):
        CarliniWagner(**settings)  # pyright: ignore[reportArgumentType]
