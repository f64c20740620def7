"""Our attacks against those of torchattacks and foolbox, on the same model, images and settings."""

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
from empir_plugin.attacks.autoattack import apgd_ce
from empir_plugin.data.image_set import load_images
from empir_plugin.evaluation.judge import correct
from empir_plugin.zoo.registry import load_model

N = 512
LINF = [Threat.parse(f"Linf:{eps}") for eps in ("1/255", "4/255", "8/255", "0.1", "0.3")]
PeerAttack = Callable[[nn.Module, Tensor, Tensor, float], Tensor]
"""An attack of another library: from model, images, labels and eps to adversarial images."""


class Network(nn.Module):
    """A small network, so little robust that a weak attack breaks about half of the images."""

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
    """Images and labels; the network misclassifies every tenth image."""
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


def torchattacks(name: str, **settings: Any) -> PeerAttack:
    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        steps = {"alpha": eps / 4, "steps": 10} if name != "FGSM" else {}
        return getattr(peer("torchattacks"), name)(model, eps=eps, **{**steps, **settings})(x, y)

    return attack


def foolbox(name: str, **settings: Any) -> PeerAttack:
    def run(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        library = peer("foolbox")
        steps = {"rel_stepsize": 0.25, "steps": 10} if name != "FGSM" else {}
        attack = getattr(library.attacks, name)(**{**steps, **settings})
        return attack(library.PyTorchModel(model, bounds=(0, 1), device=x.device), x, y, epsilons=eps)[0]

    return run


def bim_of(eps: float) -> Attack:
    return replace(bim(10, step_size=eps / 4), return_last=True)


def ulps(adv: Tensor, theirs: Tensor, x: Tensor, eps: float) -> float:
    """The largest difference, in units in the last place of the largest of pixel, adversarial pixel and eps."""
    place = torch.maximum(x, theirs).clamp_min(eps)
    return float(((adv - theirs).abs() / (torch.nextafter(place, place + 1) - place)).max())


@pytest.mark.parametrize("threat", LINF, ids=str)
@pytest.mark.parametrize("theirs", [torchattacks("FGSM"), foolbox("FGSM")], ids=["torchattacks", "foolbox"])
def test_fgsm_equals_the_peers_bit_for_bit(
    theirs: PeerAttack, threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    expected = theirs(network, *batch, threat.eps)
    assert torch.equal(replace(fgsm(), return_last=True)(network, *batch, threat), expected)
    assert not torch.equal(replace(fgsm(loss=margin), return_last=True)(network, *batch, threat), expected)


@pytest.mark.parametrize("threat", LINF, ids=str)
@pytest.mark.parametrize(
    "theirs",
    [
        torchattacks("PGD", random_start=False),
        foolbox("LinfBasicIterativeAttack", random_start=False),
    ],
    ids=["torchattacks", "foolbox"],
)
def test_bim_equals_the_peers_bit_for_bit(
    theirs: PeerAttack, threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    expected = theirs(network, *batch, threat.eps)
    assert torch.equal(bim_of(threat.eps)(network, *batch, threat), expected)
    assert not torch.equal(bim_of(threat.eps / 2)(network, *batch, threat), expected)


@pytest.mark.parametrize("threat", LINF, ids=str)
def test_bim_is_within_one_ulp_of_torchattacks_bim(
    threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """It clips to ``x - eps`` and ``x + eps``, which are rounded; the others clip the difference."""
    expected = torchattacks("BIM")(network, *batch, threat.eps)
    assert ulps(bim_of(threat.eps)(network, *batch, threat), expected, batch[0], threat.eps) <= 1


@pytest.mark.parametrize(
    "theirs",
    [torchattacks("PGDL2", random_start=False), foolbox("L2BasicIterativeAttack", random_start=False)],
    ids=["torchattacks", "foolbox"],
)
def test_bim_in_l2_equals_the_peers_up_to_rounding(
    theirs: PeerAttack, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    expected, threat = theirs(network, *batch, 0.25), Threat.parse("L2:0.25")
    assert torch.allclose(bim_of(0.25)(network, *batch, threat), expected, rtol=0, atol=1e-6)
    assert not torch.allclose(bim_of(0.2)(network, *batch, threat), expected, rtol=0, atol=1e-3)


def test_by_default_the_result_is_the_first_iterate_of_the_peer_that_fools(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    threat = Threat.parse("Linf:0.02")
    expected, (x, y) = batch[0].clone(), batch
    robust = correct(network, x, y)
    for steps in range(1, 11):
        iterate = foolbox("LinfBasicIterativeAttack", random_start=False, steps=steps)(network, x, y, threat.eps)
        broken = robust & ~correct(network, iterate, y)
        expected[broken] = iterate[broken]
        robust &= ~broken
    assert 0 < int(robust.sum()) < N / 2
    assert torch.equal(bim(10, step_size=threat.eps / 4)(network, x, y, threat), expected)


def accuracy(model: nn.Module, x: Tensor, y: Tensor, adv: Tensor, threat: Threat) -> float:
    """Robust accuracy in percent: images classified correctly, and not broken by ``adv`` within the threat."""
    within = threat.norm.size(adv - x) <= threat.eps * (1 + 1e-5)
    return 100 * float((correct(model, x, y) & ~(within & ~correct(model, adv, y))).double().mean())


@pytest.mark.parametrize("threat", [Threat.parse(f"Linf:{eps}") for eps in ("0.005", "0.01", "0.02")], ids=str)
@pytest.mark.parametrize("theirs", [torchattacks("PGD"), foolbox("LinfPGD")], ids=["torchattacks", "foolbox"])
def test_pgd_reaches_the_robust_accuracy_of_the_peers(
    theirs: PeerAttack, threat: Threat, network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = accuracy(network, *batch, theirs(network, *batch, threat.eps), threat)
    ours = pgd(10, step_size=threat.eps / 4)(network, *batch, threat)
    assert accuracy(network, *batch, ours, threat) == pytest.approx(expected, abs=1)
    noisy = uniform_noise()(network, *batch, threat)
    assert accuracy(network, *batch, noisy, threat) > expected + 10, "noise must not pass for PGD"


class PositiveLogits(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + 50


CW = CarliniWagner(5, 30, 0.01, 1.0, abort_checks=0)


def test_carlini_wagner_equals_foolbox(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    library, (x, y) = peer("foolbox"), batch
    attack = library.attacks.L2CarliniWagnerAttack(
        binary_search_steps=5, steps=30, stepsize=0.01, initial_const=1.0, abort_early=False
    )
    model = library.PyTorchModel(network, bounds=(0, 1), device="cpu")
    expected = attack(model, x, y, epsilons=None)[0]
    unbounded = CW(network, x, y, Threat.parse("L2:inf"))
    assert torch.allclose(unbounded, expected, rtol=0, atol=1e-5)
    assert not torch.equal(unbounded, x)
    for threat in (Threat.parse("L2:0.03"), Threat.parse("L2:0.1")):
        theirs = accuracy(network, x, y, expected, threat)
        assert 10 < theirs < 80
        assert accuracy(network, x, y, CW(network, x, y, threat), threat) == pytest.approx(theirs, abs=1)


def test_carlini_wagner_reaches_the_robust_accuracy_of_torchattacks(
    network: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    """Theirs has one constant and stops the whole batch at once; it masks logits with 0, so they must be positive."""
    x, y = batch
    network = PositiveLogits(network)
    threat = Threat.parse("L2:0.1")
    expected = peer("torchattacks").CW(network, c=1.0, steps=100, lr=0.01)(x, y)
    ours = CarliniWagner(1, 100, 0.01, 1.0, abort_together=True)(network, x, y, threat)
    theirs = accuracy(network, x, y, expected, threat)
    assert 10 < theirs < 80
    assert accuracy(network, x, y, ours, threat) == pytest.approx(theirs, abs=1)
    weak = CarliniWagner(1, 100, 0.01, 0.03, abort_together=True)(network, x, y, threat)
    assert accuracy(network, x, y, weak, threat) > theirs + 2, "another constant must not pass for this one"


# -- docs/peers.md: what they make of our outputs, and how to call them


def test_carlini_wagner_of_torchattacks_needs_outputs_above_zero() -> None:
    x, y = load_images("cifar10").batch(0, 8)
    attack = peer("torchattacks").CW
    plain, shifted = load_model("empir-cifar"), load_model("empir-cifar", logits=True)
    assert torch.equal(attack(plain, steps=10)(x, y), x), "log-probabilities: nothing happens"
    assert correct(plain, x, y).all()
    assert not correct(plain, attack(shifted)(x, y), y).any()
    ours = CarliniWagner(1, 30, 0.01, 1.0)(plain, x, y, Threat.parse("L2:inf"))
    assert correct(plain, ours, y).double().mean() < 0.5, "ours needs no shift"


def test_logits_above_zero_change_neither_decisions_nor_attacks_on_them() -> None:
    x, y = load_images("cifar10").batch(0, 64)
    plain, shifted = load_model("empir-cifar"), load_model("empir-cifar", logits=True)
    with torch.no_grad():
        before, after = plain(x), shifted(x)
    assert before.max() <= 0
    assert after.min() >= 1
    assert torch.equal(before.argmax(1), after.argmax(1))
    assert torch.allclose(after.log_softmax(1), before.log_softmax(1), rtol=0, atol=1e-5)
    threat = Threat.parse("Linf:8/255")
    adv = [replace(fgsm(), return_last=True)(model, x, y, threat) for model in (plain, shifted)]
    assert (adv[0] == adv[1]).double().mean() > 0.999, "but for signs of gradients of almost zero"
    flags = [autoattack_flags(model, x[:4], y[:4]) for model in (plain, shifted)]
    assert flags == [(), ()]
    assert autoattack_flags(nn.Sequential(plain, nn.Softmax(1)), x[:4], y[:4])


def autoattack_flags(model: nn.Module, x: Tensor, y: Tensor) -> tuple[str, ...]:
    return apgd_ce().run(model, x, y, Threat.parse("Linf:8/255")).flags


def test_autoattack_of_torchattacks_is_shorter_than_the_standard_version(network: nn.Module) -> None:
    attack = peer("torchattacks").AutoAttack(network, version="standard")
    parts = vars(attack._autoattack)["_attacks"].values()
    assert {part.steps for part in parts if hasattr(part, "steps")} == {10}, "AutoAttack has 100"


def test_torchattacks_accepts_images_outside_0_to_1(network: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    adv = peer("torchattacks").FGSM(network, eps=8 / 255)(255 * batch[0], batch[1])
    assert adv.max() == 1, "clipped, and nothing like the images"


def test_torchattacks_cuts_off_where_it_saves_integers(network: nn.Module) -> None:
    pixels = torch.arange(8, 256)
    adv = (pixels / 255 - 8 / 255).view(-1, 1, 1, 1)
    saved = peer("torchattacks").FGSM(network).to_type(adv, "int").flatten().long()
    assert (pixels - saved).max() == 9


def test_torchattacks_thaws_submodules_of_a_model_in_training_mode(batch: tuple[Tensor, Tensor]) -> None:
    model = nn.Sequential(nn.BatchNorm2d(3).eval(), nn.Flatten(), nn.Linear(192, 10))
    peer("torchattacks").FGSM(model)(*batch)
    assert [module.training for module in model] == [True, True, True], "the first was frozen"
    model.eval()
    peer("torchattacks").FGSM(model)(*batch)
    assert not any(module.training for module in model)


class Constant(nn.Module):
    """Decides for class 1 whatever it sees; its gradient is zero."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 3.0, 0.0]) + 0 * x.flatten(1).sum(1, keepdim=True)


@pytest.mark.parametrize("name", ["L2CarliniWagnerAttack", "EADAttack"])
def test_failed_attacks_of_foolbox_return_black_images(name: str) -> None:
    library, x, y = peer("foolbox"), torch.rand(2, 3, 8, 8) * 0.9 + 0.1, torch.ones(2, dtype=torch.long)
    attack = getattr(library.attacks, name)(steps=3, binary_search_steps=1)
    model = library.PyTorchModel(Constant().eval(), bounds=(0, 1), device="cpu")
    adv, _, is_adversarial = attack(model, x, y, epsilons=None)
    assert not adv.any()
    assert not is_adversarial.any(), "this is what to look at"


def test_attacks_of_foolbox_count_images_that_are_no_numbers() -> None:
    library, x, y = peer("foolbox"), torch.rand(2, 3, 8, 8), torch.ones(2, dtype=torch.long)
    model = library.PyTorchModel(Constant().eval(), bounds=(0, 1), device="cpu")
    adv, _, is_adversarial = library.attacks.NewtonFoolAttack()(model, x, y, epsilons=None)
    assert adv.isnan().all()
    assert is_adversarial.all()
    wrong = library.attacks.LinfPGD(steps=1)(model, x, y + 1, epsilons=0.01)[2]
    assert wrong.all(), "a misclassified image counts as a success"


def test_pyautoattack_takes_any_eps(network: nn.Module) -> None:
    attack = peer("pyautoattack").AutoAttack(network, eps=8, norm="Linf")
    assert attack.epsilon == 8, "of images in [0, 1]"


@pytest.mark.slow
def test_pgd_and_carlini_wagner_on_a_shipped_network() -> None:
    """With quantized activations, an iterate that fools may be followed by one that does not; ours keeps the first."""
    model = load_model("cifarconv-w2a2")
    x, y = load_images("cifar10").first(N).batch(0, N)
    linf, l2 = Threat.parse("Linf:2/255"), Threat.parse("L2:0.5")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        expected = accuracy(model, x, y, foolbox("LinfPGD")(model, x, y, linf.eps), linf)
    ours = pgd(10, step_size=linf.eps / 4)
    last = replace(ours, return_last=True)(model, x, y, linf)
    assert accuracy(model, x, y, last, linf) == pytest.approx(expected, abs=1), "theirs returns the last iterate"
    assert accuracy(model, x, y, ours(model, x, y, linf), linf) <= accuracy(model, x, y, last, linf)
    library = peer("foolbox")
    attack = library.attacks.L2CarliniWagnerAttack(
        binary_search_steps=1, steps=20, stepsize=0.01, initial_const=1.0, abort_early=False
    )
    theirs = attack(library.PyTorchModel(model, bounds=(0, 1), device="cpu"), x, y, epsilons=None)[0]
    smallest = CarliniWagner(1, 20, 0.01, 1.0, abort_checks=0)(model, x, y, l2)
    expected = accuracy(model, x, y, theirs, l2)
    assert expected < accuracy(model, x, y, x, l2) - 10
    assert accuracy(model, x, y, smallest, l2) == pytest.approx(expected, abs=1)
