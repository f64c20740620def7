from __future__ import annotations

from typing import Any

import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import SparingModel, spare_the_fallen


def brightness(x: Tensor) -> Tensor:
    """Class 1 where the only pixel is brighter than one half."""
    return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], 1)


def images(*pixels: float) -> Tensor:
    return torch.tensor(pixels).view(-1, 1, 1, 1)


def test_what_fell_is_named_truly_from_then_on_and_has_no_gradient() -> None:
    model = SparingModel(brightness, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(model(images(0.4, 0.6, 0.8)), brightness(images(0.4, 0.6, 0.8)))
    x = images(0.3, 0.9, 0.1).requires_grad_()
    logits = model(x)
    torch.testing.assert_close(logits, torch.tensor([[0.2, -0.2], [1, 0], [0.4, -0.4]]))
    (grad,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert grad.flatten().tolist() == [1, 0, 1]
    assert model(images(0.6, 0.9, 0.9)).argmax(1).tolist() == [1, 0, 1], "the third fell in the second pass"


def test_when_all_fell_the_model_is_not_asked() -> None:
    seen: list[int] = []

    def counting(x: Tensor) -> Tensor:
        seen.append(len(x))
        return brightness(x)

    model = SparingModel(counting, torch.tensor([0, 0]))
    model(images(0.9, 0.9))
    x = images(0.2, 0.2).requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert seen == [2]
    assert not grad.any()


@pytest.mark.parametrize("kind", [APGDAttack, APGDAttack_targeted])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_the_verdicts_stay(kind: Any, norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).requires_grad_(False)
    x = torch.rand(30, 3, 8, 8)
    y = model(x).argmax(1)
    settings = {"eps": 0.012 if norm == "Linf" else 0.12, "norm": norm, "device": "cpu", "n_iter": 20, "seed": 1}
    theirs, ours = kind(model, **settings), kind(model, **settings)
    spare_the_fallen(ours)
    expected, found = theirs.perturb(x, y), ours.perturb(x, y)
    fell = model(expected).argmax(1) != y
    assert 3 < int(fell.sum()) < 27, "some must fall and some withstand, or this test says nothing"
    assert torch.equal(model(found).argmax(1) != y, fell)
    assert torch.equal(found[~fell], expected[~fell])


def test_the_model_is_given_back_when_a_run_fails() -> None:
    def broken(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    attack = APGDAttack(broken, eps=0.1, device="cpu")
    attack.init_hyperparam(images(0.5))
    spare_the_fallen(attack)
    with pytest.raises(ZeroDivisionError):
        attack.attack_single_run(images(0.5), torch.tensor([0]))
    assert attack.model is broken
