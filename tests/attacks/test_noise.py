from typing import Any

import pytest
import torch
from torch import Tensor

from empir_plugin.attacks.gradient import GradientAttack, gaussian_noise, uniform_noise
from empir_plugin.attacks.threat import Threat, parse_norm


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("noise", [uniform_noise(20), gaussian_noise(20)], ids=["uniform", "gaussian"])
def test_noise_falls_where_it_must_and_nowhere_else(
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


def test_more_trials_only_help(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    threat = Threat(parse_norm("Linf"), 3 * float(linear.distance(near_middle, "Linf").mean()))
    fallen = [linear(uniform_noise(trials)(linear, near_middle, y, threat)).argmax(1) != y for trials in (1, 5, 200)]
    assert (fallen[0] <= fallen[1]).all()
    assert (fallen[1] <= fallen[2]).all()
    assert fallen[0].sum() < fallen[2].sum()


def test_noise_needs_no_gradient(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    with torch.no_grad():
        adv = uniform_noise(20)(lambda x: linear(x).detach(), near_middle, y, Threat.parse("Linf:0.3"))
    assert torch.equal(linear(adv).argmax(1), 1 - y)
