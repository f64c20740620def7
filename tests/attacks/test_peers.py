"""What torchattacks and foolbox, written by others, make of the same model, images and settings."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import Attack, CarliniWagner, Threat, bim, fgsm, margin, pgd, uniform_noise
from empir_plugin.data.image_set import load_images
from empir_plugin.evaluation.judge import correct
from empir_plugin.zoo.registry import load_model

N = 512
LINF = [Threat.parse(f"Linf:{eps}") for eps in ("1/255", "4/255", "8/255", "0.1", "0.3")]
Made = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""Adversarial images of a peer, from model, images, labels and eps."""


class Network(nn.Module):
    """Small, and with a decision boundary so near to its images that a mild attack leaves about half of them."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False)
        self.second = nn.Conv2d(16, 16, 3, bias=False)
        self.last = nn.Linear(64, 10, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        features = self.second(self.first(x - 0.5).relu()).relu()
        return 10 * self.last(features.flatten(1))


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Network().eval()


@pytest.fixture(scope="module")
def batch(network: nn.Module) -> tuple[Tensor, Tensor]:
    """Images and labels, of which the network has every tenth wrong."""
    x = torch.rand(N, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = network(x).argmax(1)
    y[::10] = (y[::10] + 1) % 10
    return x, y


def peer(name: str) -> ModuleType:
    with warnings.catch_warnings():
        # foolbox 3.3.4 imports a name that SciPy has moved.
        warnings.filterwarnings("ignore", "Please import `gaussian_filter` from", DeprecationWarning)
        return pytest.importorskip(name, reason=f"{name} is not installed: see benchmarks/peers.txt")


def by_torchattacks(name: str, **settings: Any) -> Made:
    def made(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        steps = {"alpha": eps / 4, "steps": 10} if name != "FGSM" else {}
        return getattr(peer("torchattacks"), name)(model, eps=eps, **{**steps, **settings})(x, y)

    return made


def by_foolbox(name: str, **settings: Any) -> Made:
    def made(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        foolbox = peer("foolbox")
        steps = {"rel_stepsize": 0.25, "steps": 10} if name != "FGSM" else {}
        attack = getattr(foolbox.attacks, name)(**{**steps, **settings})
        return attack(foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=eps)[0]

    return made


def bim_of(eps: float) -> Attack:
    return replace(bim(10, step_size=eps / 4), return_last=True)


def ulps(adv: Tensor, theirs: Tensor, x: Tensor, eps: float) -> float:
    """The largest difference, in units of the last place of the largest of pixel, adversarial pixel and eps."""
    place = torch.maximum(x, theirs).clamp_min(eps)
    return float(((adv - theirs).abs() / (torch.nextafter(place, place + 1) - place)).max())


@pytest.mark.parametrize("threat", LINF, ids=str)
@pytest.mark.parametrize("theirs", [by_torchattacks("FGSM"), by_foolbox("FGSM")], ids=["torchattacks", "foolbox"])
def test_fgsm_is_theirs_bit_for_bit(
    theirs: Made, threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    expected = theirs(network, *batch, threat.eps)
    assert torch.equal(replace(fgsm(), return_last=True)(network, *batch, threat), expected)
    assert not torch.equal(replace(fgsm(loss=margin), return_last=True)(network, *batch, threat), expected)


@pytest.mark.parametrize("threat", LINF, ids=str)
@pytest.mark.parametrize(
    "theirs",
    [
        by_torchattacks("PGD", random_start=False),
        by_foolbox("LinfBasicIterativeAttack", random_start=False),
    ],
    ids=["torchattacks", "foolbox"],
)
def test_bim_is_theirs_bit_for_bit(
    theirs: Made, threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    expected = theirs(network, *batch, threat.eps)
    assert torch.equal(bim_of(threat.eps)(network, *batch, threat), expected)
    assert not torch.equal(bim_of(threat.eps / 2)(network, *batch, threat), expected)


@pytest.mark.parametrize("threat", LINF, ids=str)
def test_bim_is_within_a_float_of_the_torchattacks_class_of_that_name(
    threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """It clips to ``x - eps`` and ``x + eps``, rounded, where the others clip the difference."""
    expected = by_torchattacks("BIM")(network, *batch, threat.eps)
    assert ulps(bim_of(threat.eps)(network, *batch, threat), expected, batch[0], threat.eps) <= 1


@pytest.mark.parametrize(
    "theirs",
    [by_torchattacks("PGDL2", random_start=False), by_foolbox("L2BasicIterativeAttack", random_start=False)],
    ids=["torchattacks", "foolbox"],
)
def test_bim_in_l2_is_theirs_up_to_rounding(theirs: Made, network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    expected, threat = theirs(network, *batch, 0.25), Threat.parse("L2:0.25")
    assert torch.allclose(bim_of(0.25)(network, *batch, threat), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(bim_of(0.2)(network, *batch, threat), expected, rtol=0, atol=1e-3)


def test_by_default_an_image_stops_at_the_first_of_their_iterates_that_fools(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    threat = Threat.parse("Linf:0.02")
    expected, (x, y) = batch[0].clone(), batch
    withstood = correct(network, x, y)
    for steps in range(1, 11):
        iterate = by_foolbox("LinfBasicIterativeAttack", random_start=False, steps=steps)(network, x, y, threat.eps)
        fell = withstood & ~correct(network, iterate, y)
        expected[fell] = iterate[fell]
        withstood &= ~fell
    assert 0 < int(withstood.sum()) < N / 2
    assert torch.equal(bim(10, step_size=threat.eps / 4)(network, x, y, threat), expected)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, adv: Tensor, threat: Threat) -> float:
    """Percent of images classified correctly for which ``adv`` is no adversarial image within the threat."""
    near = threat.norm.size(adv - x) <= threat.eps * (1 + 1e-5)
    return 100 * float((correct(model, x, y) & ~(near & ~correct(model, adv, y))).double().mean())


@pytest.mark.parametrize("threat", [Threat.parse(f"Linf:{eps}") for eps in ("0.005", "0.01", "0.02")], ids=str)
@pytest.mark.parametrize("theirs", [by_torchattacks("PGD"), by_foolbox("LinfPGD")], ids=["torchattacks", "foolbox"])
def test_pgd_leaves_what_theirs_leaves(
    theirs: Made, threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        left = accuracy(network, *batch, theirs(network, *batch, threat.eps), threat)
    ours = pgd(10, step_size=threat.eps / 4)(network, *batch, threat)
    assert accuracy(network, *batch, ours, threat) == pytest.approx(left, abs=1)
    noisy = uniform_noise()(network, *batch, threat)
    assert accuracy(network, *batch, noisy, threat) > left + 10, "noise must not pass for PGD"


class Positive(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + 50


CW = CarliniWagner(5, 30, 0.01, 1.0, abort_checks=0)


def test_carlini_wagner_is_foolbox_s(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    foolbox, (x, y) = peer("foolbox"), batch
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=5, steps=30, stepsize=0.01, initial_const=1.0, abort_early=False
    )
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    expected = attack(model, x, y, epsilons=None)[0]
    unbounded = CW(network, x, y, Threat.parse("L2:inf"))
    assert torch.allclose(unbounded, expected, rtol=0, atol=1e-5)
    assert not torch.equal(unbounded, x)
    for threat in (Threat.parse("L2:0.03"), Threat.parse("L2:0.1")):
        left = accuracy(network, x, y, expected, threat)
        assert 10 < left < 80
        assert accuracy(network, x, y, CW(network, x, y, threat), threat) == pytest.approx(left, abs=1)


def test_carlini_wagner_leaves_what_that_of_torchattacks_leaves(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """It has one constant, and gives the batch up together; it masks logits by 0, so they have to be positive."""
    x, y = batch
    network = Positive(network)
    threat = Threat.parse("L2:0.1")
    expected = peer("torchattacks").CW(network, c=1.0, steps=100, lr=0.01)(x, y)
    ours = CarliniWagner(1, 100, 0.01, 1.0, abort_together=True)(network, x, y, threat)
    left = accuracy(network, x, y, expected, threat)
    assert 10 < left < 80
    assert accuracy(network, x, y, ours, threat) == pytest.approx(left, abs=1)
    weak = CarliniWagner(1, 100, 0.01, 0.03, abort_together=True)(network, x, y, threat)
    assert accuracy(network, x, y, weak, threat) > left + 2, "another constant must not pass for this one"


@pytest.mark.slow
def test_pgd_and_carlini_wagner_on_a_shipped_network() -> None:
    """On its plateaus an iterate that fools may be followed by one that does not: ours keeps the first."""
    model = load_model("cifarconv-w2a2")
    x, y = load_images("cifar10").first(N).batch(0, N)
    linf, l2 = Threat.parse("Linf:2/255"), Threat.parse("L2:0.5")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        left = accuracy(model, x, y, by_foolbox("LinfPGD")(model, x, y, linf.eps), linf)
    ours = pgd(10, step_size=linf.eps / 4)
    last = replace(ours, return_last=True)(model, x, y, linf)
    assert accuracy(model, x, y, last, linf) == pytest.approx(left, abs=1), "theirs return the last iterate"
    assert accuracy(model, x, y, ours(model, x, y, linf), linf) <= accuracy(model, x, y, last, linf)
    foolbox = peer("foolbox")
    attack = foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=1, steps=20, stepsize=0.01, initial_const=1.0, abort_early=False
    )
    theirs = attack(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)[0]
    smallest = CarliniWagner(1, 20, 0.01, 1.0, abort_checks=0)(model, x, y, l2)
    left = accuracy(model, x, y, theirs, l2)
    assert left < accuracy(model, x, y, x, l2) - 10
    assert accuracy(model, x, y, smallest, l2) == pytest.approx(left, abs=1)
