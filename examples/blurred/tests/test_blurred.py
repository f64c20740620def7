"""Tests that any package with a model and an attack should have; run them with the package installed."""

from __future__ import annotations

import pytest
import torch
from blurred.attacks import Corners
from blurred.models import Blurred
from torch import nn

from empir_plugin import InputError, Record, Threat, load_attack, load_images, load_model
from empir_plugin.evaluation.judge import check_attack_result, correct


def test_the_names_resolve_to_this_package() -> None:
    assert isinstance(load_model("blurred-cifarconv"), Blurred)
    assert load_attack("corners", tries=3) == Corners(3)


def test_a_blur_keeps_constant_images_and_spreads_a_point() -> None:
    blur = Blurred(nn.Identity())
    assert torch.allclose(blur(torch.full((1, 3, 5, 5), 0.25)), torch.tensor(0.25))
    point = torch.zeros(1, 1, 5, 5)
    point[0, 0, 2, 2] = 0.9
    assert torch.allclose(blur(point)[0, 0, 1:4, 1:4], torch.tensor(0.1))


@pytest.mark.parametrize("text", ["Linf:8/255", "L2:0.5"])
def test_the_attack_keeps_its_budget_and_returns_robust_images_unchanged(text: str) -> None:
    threat, model = Threat.parse(text), load_model("blurred-cifarconv")
    x, y = load_images("cifar10").batch(0, 8)
    adversarial = check_attack_result(x, Corners(5)(model, x, y, threat), threat)
    robust = correct(model, adversarial, y)
    assert torch.equal(adversarial[robust], x[robust])


def test_the_result_of_an_image_does_not_depend_on_its_batch() -> None:
    threat, model = Threat.parse("Linf:16/255"), load_model("blurred-cifarconv")
    x, y = load_images("cifar10").batch(0, 6)
    together = Corners(3)(model, x, y, threat, seed=1)
    alone = Corners(3)(model, x[4:5], y[4:5], threat, seed=1, indices=torch.tensor([4]))
    assert torch.allclose(together[4:5], alone)
    other = Corners(3)(model, x, y, threat, seed=2)
    assert not torch.equal(together, other), "another seed gives other points"


def test_it_breaks_an_image_within_eps_of_the_boundary_and_no_other() -> None:
    x, y, model = torch.tensor([[[[0.51, 0.5]]]]), torch.tensor([0]), nn.Flatten()
    assert model(Corners(20)(model, x, y, Threat.parse("Linf:0.1"))).argmax(1) == 1
    assert torch.equal(Corners(20)(model, x, y, Threat.parse("Linf:0.004")), x)
    with pytest.raises(InputError, match=r"tries.*1 or more.*0"):
        Corners(0)


@pytest.mark.robustness(model="blurred-cifarconv", eps="8/255", attack=["corners", "fgsm"], n_examples=8, min_clean=25)
def test_it_is_no_defence(rb_record: Record) -> None:
    corners, fgsm = rb_record.attacks
    assert fgsm.accuracy < corners.accuracy <= rb_record.clean_accuracy
