"""Transfer: from a model to itself, to another, and between the members of an ensemble."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks.gradient import bim, pgd
from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.attacks.transfer import Transfer, transfer_matrix
from empir_plugin.errors import InputError

LAST = replace(bim(10), return_last=True)


def test_transfer_to_the_source_itself_is_the_attack(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    distance = float(linear.distance(near_middle, "Linf").mean())
    for factor, expected in ((1.02, 1 - y), (0.98, y)):
        adv = Transfer(linear, LAST)(linear, near_middle, y, Threat(Linf(), factor * distance))
        assert torch.equal(linear(adv).argmax(1), expected)


def test_images_that_do_not_fool_the_target_are_returned_unchanged(linear: Any, near_middle: Tensor) -> None:
    y = linear(near_middle).argmax(1)
    threat = Threat(Linf(), 2 * float(linear.distance(near_middle, "Linf").mean()))
    assert torch.equal(Transfer(lambda x: linear(1 - x), LAST)(linear, near_middle, y, threat), near_middle)


def test_the_target_is_queried_once_and_never_differentiated(linear: Any, near_middle: Tensor) -> None:
    grad_enabled: list[bool] = []

    def target(x: Tensor) -> Tensor:
        grad_enabled.append(torch.is_grad_enabled())
        return linear(x)

    Transfer(linear, LAST)(target, near_middle, linear(near_middle).argmax(1), Threat(Linf(), 0.1))
    assert grad_enabled == [False]


def test_seed_and_indices_reach_the_attack(small_members: list[nn.Module], images: Tensor) -> None:
    source, target = small_members[:2]
    y = target(images).argmax(1)
    attack = replace(pgd(3), return_last=True)
    threat = Threat(Linf(), 0.2)
    together = Transfer(source, attack)(target, images, y, threat, seed=2)
    part = torch.arange(5, 9)
    apart = Transfer(source, attack)(target, images[part], y[part], threat, seed=2, indices=part)
    torch.testing.assert_close(apart, together[part], rtol=0, atol=1e-12)


def test_the_matrix_equals_a_literal_count(small_members: list[nn.Module], images: Tensor) -> None:
    y = small_members[0](images).argmax(1)
    for strength, similar in enumerate(small_members[1:], 1):
        similar.load_state_dict({k: v * (1 + 0.05 * strength) for k, v in small_members[0].state_dict().items()})
        with torch.no_grad():
            for p in similar.parameters():
                p.add_(0.02 * strength * torch.linspace(-1, 1, p.numel(), dtype=p.dtype).view_as(p))
    threat = Threat(Linf(), 0.1)
    correct = torch.stack([m(images).argmax(1) == y for m in small_members]).all(0)
    assert 0 < int(correct.sum()) < len(y)
    matrix = transfer_matrix(small_members, images, y, threat, attack=LAST)
    for i, source in enumerate(small_members):
        adv = LAST(source, images[correct], y[correct], threat)
        for j, target in enumerate(small_members):
            assert float(matrix[i, j]) == pytest.approx(float((target(adv).argmax(1) != y[correct]).double().mean()))


def test_some_image_must_be_classified_correctly_by_all(small_members: list[nn.Module], images: Tensor) -> None:
    wrong = (small_members[0](images).argmax(1) + 1) % 5
    with pytest.raises(InputError, match=r"all 3 models, got none of 24"):
        transfer_matrix(small_members, images, wrong, Threat(Linf(), 0.1), attack=LAST)
