from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import OnMember, Threat, carlini_wagner, fgsm, pgd
from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.carlini_wagner import CarliniWagner
from empir_plugin.attacks.gradient import GradientAttack
from empir_plugin.attacks.losses import CrossEntropy, cross_entropy, margin, softmax_twice
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.starts import FixedStep, StepOfEps, UniformStart, at_image
from empir_plugin.attacks.surrogates import mean_probability, plain, voters
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.evaluation.protocols import PROTOCOLS, Headline, parse_protocol
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanLogits, MeanProbability
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision

CLASSES = 4
STEPS = 40
LONG_STEPS = GradientAttack(100, StepOfEps(0.25), start=UniformStart())


def network(seed: int, precision: str, gain: float = 1.0) -> nn.Module:
    torch.manual_seed(seed)
    conv = QuantConv2d(2, 6, 3, bias=False, precision=Precision.parse(precision), scale="max")
    net = nn.Sequential(conv, nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, CLASSES))
    with torch.no_grad():
        net[-1].weight.mul_(gain)
    return net.double().eval().requires_grad_(False)


def ensemble() -> Ensemble:
    """Two low-precision members and, last, the full-precision one, as in the release."""
    return Ensemble([network(0, "w2a4", 4), network(1, "w2a2", 4), network(2, "w32a32", 6)])


@pytest.fixture(scope="module")
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = 0.02 + 0.96 * torch.rand(110, 2, 6, 6, generator=generator, dtype=torch.float64)
    x[:4] = x[:4].round()  # black and white pixels: the box binds
    return x, torch.randint(CLASSES, (110,), generator=generator)


def carried_out(planned: AttackSpec, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> tuple[Tensor, Tensor]:
    """What a plan's fields ask of the engine: images ``(N, C, H, W)`` and who withstood ``(N,)``."""
    own = model(x).argmax(1)
    attacked = torch.arange(len(x)) if planned.attack_all else torch.arange(len(x))[own == y]
    labels = own if planned.labels is Labels.OWN else y
    made, robust = x.clone(), torch.zeros(len(x), dtype=torch.bool)
    for rows in attacked.split(planned.batch_size or 37):
        made[rows] = planned.attack(model, x[rows], labels[rows], planned.threat or threat, seed=3, indices=rows)
        robust[rows] = model(made[rows]).argmax(1) == y[rows]
    return made, robust


# -- The release, restated: empir.md sections 0, 3 and 4, image by image, with nothing of the package but its networks.


def vote(members: list[nn.Module], image: Tensor) -> tuple[int, list[int]]:
    """The class elected and who voted for it; if all differ, the last member's."""
    votes = [int(member(image[None])[0].argmax()) for member in members]
    top, count = Counter(votes).most_common(1)[0]
    winner = top if count >= 2 else votes[-1]
    return winner, [i for i, own in enumerate(votes) if own == winner]


def double_softmax(members: list[nn.Module], image: Tensor, label: int) -> Tensor:
    _, who = vote(members, image.detach())
    mean = sum(members[i](image[None])[0].softmax(0) for i in who) / len(who)
    assert isinstance(mean, Tensor)
    return torch.logsumexp(mean, 0) - mean[label]


def single_softmax(members: list[nn.Module], image: Tensor, label: int) -> Tensor:
    logits = members[-1](image[None])[0]
    return torch.logsumexp(logits, 0) - logits[label]


LiteralLoss = Callable[[list[nn.Module], Tensor, int], Tensor]


def slope(loss: LiteralLoss, members: list[nn.Module], image: Tensor, label: int) -> Tensor:
    image = image.detach().requires_grad_(True)
    (grad,) = torch.autograd.grad(loss(members, image, label), image)
    return grad.sign()


def literal_fgsm(members: list[nn.Module], image: Tensor, label: int, eps: float) -> Tensor:
    return (image + eps * slope(double_softmax, members, image, label)).clip(0, 1)


def literal_ascent(
    members: list[nn.Module], image: Tensor, label: int, eps: float, loss: LiteralLoss, eta: Tensor
) -> Tensor:
    """Step, clip to the range, clip the perturbation; the start is taken as it is."""
    for _ in range(STEPS):
        adv = (image + eta + 0.01 * slope(loss, members, image + eta, label)).clip(0, 1)
        eta = (adv - image).clip(-eps, eps)
    return (image + eta).clip(0, 1)


def literal_cw(member: nn.Module, x: Tensor, labels: Tensor, epsilon: float = 1e-8) -> Tensor:
    """One batch that stops together; TensorFlow's Adam; success is the member's."""
    origin = torch.arctanh((2 * x - 1) * 0.999999)
    start = (torch.tanh(origin) + 1) / 2
    change, mean, square = (torch.zeros_like(x) for _ in range(3))
    best, result, previous = [math.inf] * len(x), x.clone(), math.inf
    for step in range(50):
        change = change.detach().requires_grad_(True)
        adv = (torch.tanh(origin + change) + 1) / 2
        distance = (adv - start).square().sum((1, 2, 3))
        logits = member(adv)
        hit = nn.functional.one_hot(labels, CLASSES).double()
        real, other = (hit * logits).sum(1), ((1 - hit) * logits - hit * 10000).amax(1)
        loss = distance.sum() + (10 * (real - other).clip(min=0)).sum()
        (grad,) = torch.autograd.grad(loss, change)
        distance, total = distance.detach(), loss.item()
        if step % 5 == 0:
            if total > 0.9999 * previous:
                break
            previous = total
        for i in range(len(x)):
            if float(distance[i]) < best[i] and int(logits[i].argmax()) != int(labels[i]):
                best[i], result[i] = float(distance[i]), adv[i].detach()
        mean, square = 0.9 * mean + 0.1 * grad, 0.999 * square + 0.001 * grad.square()
        rate = 0.1 * math.sqrt(1 - 0.999 ** (step + 1)) / (1 - 0.9 ** (step + 1))
        change = change - rate * mean / (square.sqrt() + epsilon)
    return result


def literal_release(model: Ensemble, x: Tensor, eps: float) -> dict[str, Tensor]:
    members = list(model.members)
    own = [vote(members, image)[0] for image in x]
    starts = (2 * Draw(3, torch.arange(len(x))).uniform(x) - 1) * eps
    zero = torch.zeros_like(x)
    cw = [literal_cw(members[-1], x[rows], torch.tensor(own)[rows]) for rows in torch.arange(len(x)).split(100)]

    def each(attack: Callable[[Tensor, int, Tensor], Tensor], start: Tensor) -> Tensor:
        return torch.stack([attack(*one) for one in zip(x, own, start, strict=True)])

    return {
        "CW": torch.cat(cw),
        "FGSM": each(lambda image, label, _: literal_fgsm(members, image, label, eps), zero),
        "BIM": each(lambda image, label, eta: literal_ascent(members, image, label, eps, single_softmax, eta), zero),
        "PGD": each(lambda image, label, eta: literal_ascent(members, image, label, eps, double_softmax, eta), starts),
    }


@pytest.fixture(scope="module")
def literal(batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    return literal_release(ensemble(), batch[0], 0.1)


def distance(images: Tensor, clean: Tensor) -> Tensor:
    return (images - clean).flatten(1).norm(dim=1)


@pytest.mark.parametrize("name", ["CW", "FGSM", "BIM", "PGD"])
def test_released_equals_its_literal_restatement(
    name: str, batch: tuple[Tensor, Tensor], literal: dict[str, Tensor]
) -> None:
    model, (x, y) = ensemble(), batch
    planned = {plan.name: plan for plan in parse_protocol("released").attacks(model, "cifar10")}[name]
    made, robust = carried_out(planned, model, x, y, Threat.parse("Linf:0.1"))
    if name == "CW":
        # Adam turns a gradient of 1e-17 into a whole step, so pixels differ with the order of a sum; distances do not.
        torch.testing.assert_close(distance(made, x), distance(literal[name], x), rtol=1e-3, atol=1e-6)
    else:
        torch.testing.assert_close(made, literal[name], rtol=0, atol=1e-12)
    members = list(model.members)
    decisions = [vote(members, image)[0] for image in literal[name]]
    assert robust.tolist() == [decision == int(label) for decision, label in zip(decisions, y, strict=True)]


def test_released_cw_differs_by_adams_epsilon_alone(
    batch: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(carlini_wagner, "_ADAM_EPS", 1e-30)
    model, (x, y) = ensemble(), batch
    planned = parse_protocol("released").attacks(model)[0]
    made, _ = carried_out(planned, model, x, y, Threat.parse("Linf:0.1"))
    own = model(x).argmax(1)
    expected = [literal_cw(model.members[-1], x[rows], own[rows], 1e-30) for rows in torch.arange(len(x)).split(100)]
    torch.testing.assert_close(made, torch.cat(expected), rtol=0, atol=1e-9)


def test_the_restatement_tells_the_release_from_a_sound_attack(
    batch: tuple[Tensor, Tensor], literal: dict[str, Tensor]
) -> None:
    """Every rule of the release matters on these images, so that the equality above says something."""
    model, (x, y) = ensemble(), batch
    threat = Threat.parse("Linf:0.1")
    plans = {plan.name: plan for plan in parse_protocol("released").attacks(model, "cifar10")}
    pgd_plan, cw_plan = plans["PGD"], plans["CW"]
    assert isinstance(pgd_plan.attack, GradientAttack)
    assert isinstance(cw_plan.attack, OnMember)
    assert isinstance(cw_plan.attack.attack, CarliniWagner)
    alone = OnMember(2, replace(cw_plan.attack.attack, abort_together=False))
    others = {
        "PGD": [
            replace(pgd_plan, labels=Labels.TRUE),
            replace(pgd_plan, attack=replace(pgd_plan.attack, loss=cross_entropy)),
            replace(pgd_plan, attack=replace(pgd_plan.attack, start_in_box=True)),
            replace(pgd_plan, attack=replace(pgd_plan.attack, surrogate=mean_probability)),
            replace(pgd_plan, attack=replace(pgd_plan.attack, return_last=False)),
        ],
        "BIM": [replace(plans["BIM"], attack=plans["BIM"].attack.attack)],  # type: ignore[attr-defined]
        "CW": [
            replace(cw_plan, attack=cw_plan.attack.attack),
            replace(cw_plan, attack=alone),
            replace(cw_plan, batch_size=10),
        ],
    }
    for name, variants in others.items():
        for planned in variants:
            made, _ = carried_out(planned, model, x, y, threat)
            assert float((made - literal[name]).abs().max()) > 1e-3, (name, planned)
    some = carried_out(pgd_plan, model, x, y, threat)[1]
    wrong = model(x).argmax(1) != y
    assert (some & wrong).any()
    assert not (carried_out(replace(pgd_plan, attack_all=False), model, x, y, threat)[1] & wrong).any()


# -- Settings, pinned.


def names(protocol: str, model: nn.Module, dataset: str = "cifar10") -> list[str]:
    return [planned.name for planned in parse_protocol(protocol).attacks(model, dataset)]


def test_protocols_by_name() -> None:
    assert list(PROTOCOLS) == ["standard", "default", "paper", "released", "adaptive"]
    for name, protocol in PROTOCOLS.items():
        assert parse_protocol(name) is protocol
        assert protocol.describe().startswith(f"Protocol {name}: ")
    with pytest.raises(InputError, match="one of standard, default, paper, released, adaptive, got 'foo'"):
        parse_protocol("foo")


def test_standard_and_default() -> None:
    model = ensemble()
    (suite,) = parse_protocol("standard").attacks(model)
    assert suite == AttackSpec("AutoAttack", AutoAttackSuite())
    assert suite.bounded
    assert parse_protocol("default").attacks(model) == (
        AttackSpec("FGSM", fgsm()),
        AttackSpec("PGD-100", LONG_STEPS),
        AttackSpec("PGD-100 mean_probability", replace(LONG_STEPS, surrogate=mean_probability)),
        suite,
    )
    assert names("default", nn.Flatten()) == ["FGSM", "PGD-100", "AutoAttack"]
    assert parse_protocol("default").threat("cifar10") is None


@pytest.mark.parametrize(
    ("dataset", "eps", "iterations"), [("mnist", 0.3, 40), ("cifar10", 0.1, 40), ("imagenet", 0.1, 5)]
)
def test_paper_is_table_1(dataset: str, eps: float, iterations: int) -> None:
    protocol = parse_protocol("paper")
    assert str(protocol.threat(dataset)) == f"Linf:{eps:g}"
    assert protocol.headline is Headline.AVERAGE
    cw, one, bim, last = protocol.attacks(ensemble(), dataset)
    assert cw.attack == CarliniWagner(1, 50, 0.1, 10.0, surrogate=voters)
    assert str(cw.threat) == "L2:inf"
    assert not cw.bounded
    assert one.attack == GradientAttack(1, StepOfEps(1.0), surrogate=voters)
    assert bim.attack == GradientAttack(40, FixedStep(0.01), surrogate=voters)
    assert last.attack == GradientAttack(iterations, FixedStep(0.01), start=UniformStart(), surrogate=voters)
    for planned in (cw, one, bim, last):
        assert planned.labels is Labels.TRUE
        assert not planned.attack_all
    assert all(planned.attack.surrogate == plain for planned in protocol.attacks(nn.Flatten()))  # type: ignore[attr-defined]


def test_released_settings() -> None:
    protocol = parse_protocol("released")
    assert [str(protocol.threat(name)) for name in ("mnist", "cifar10")] == ["Linf:0.3", "Linf:0.1"]
    cw, one, bim, last = protocol.attacks(ensemble(), "mnist")
    assert cw.attack == OnMember(2, CarliniWagner(1, 50, 0.1, 10.0, abort_together=True))
    assert (cw.batch_size, str(cw.threat)) == (100, "L2:inf")
    ascent = GradientAttack(40, FixedStep(0.01), return_last=True)
    assert bim.attack == OnMember(2, ascent)
    on_voters = replace(ascent, loss=softmax_twice, surrogate=voters)
    assert one.attack == replace(on_voters, steps=1, step_size=StepOfEps(1.0))
    assert last.attack == replace(on_voters, start=UniformStart(), start_in_box=False)
    for planned in (cw, one, bim, last):
        assert planned.labels is Labels.OWN
        assert planned.attack_all
        assert "own clean predictions" in planned.describe()
    assert "REPRODUCES THE RELEASED CODE" in protocol.describe()


def test_released_on_imagenet_counts_in_the_releases_units() -> None:
    protocol = parse_protocol("released")
    threat = protocol.threat("imagenet")
    assert threat is not None
    assert threat.eps == pytest.approx(5.76 / 255, abs=0.01 / 255)  # 5.84, 5.71 and 5.74 by channel
    bim = protocol.attacks(ensemble(), "imagenet")[2]
    assert bim.attack.attack.step_size.at(1.0) * 10 == pytest.approx(threat.eps)  # type: ignore[attr-defined]


def test_released_attacks_a_single_network_by_its_logits() -> None:
    cw, one, bim, last = parse_protocol("released").attacks(network(0, "w2a2"))
    assert cw.attack == CarliniWagner(1, 50, 0.1, 10.0, abort_together=True)
    for planned in (one, bim, last):
        assert isinstance(planned.attack, GradientAttack)
        assert planned.attack.loss == cross_entropy
        assert planned.attack.surrogate == plain
    assert bim.attack.start == at_image  # type: ignore[attr-defined]


def test_released_takes_the_last_member_where_none_has_full_precision() -> None:
    model = Ensemble([network(0, "w2a4"), network(1, "w2a2")])
    bim = parse_protocol("released").attacks(model)[2]
    assert bim.attack.index == 1  # type: ignore[attr-defined]
    assert "the last member" in bim.describe()


def test_adaptive_fits_the_model() -> None:
    three = names("adaptive", ensemble())
    for expected in (
        "PGD-100 mean_probability",
        "PGD-100 mean_probability margin",
        "PGD-100 mean_probability/identity",
        "PGD-100 mean_probability/soft",
        "PGD-100 sharpened_vote:10",
        "PGD-100 reweighted:0.1",
        "PGD-100 member:0/identity margin",
        "PGD-100 member:2 margin",
        "transfer from member 2",
        "apgd-ce + apgd-t mean_probability/identity",
        "square mean_probability",
        "AutoAttack",
    ):
        assert expected in three
    assert len(set(three)) == len(three)
    for model in (ensemble(), network(0, "w2a2")):  # So what a store has of the one serves the other.
        first = parse_protocol("adaptive").attacks(model)[:1]
        assert first == parse_protocol("standard").attacks(model)
    plain_ensemble = names("adaptive", Ensemble([network(0, "w32a32"), network(1, "w32a32")], MeanProbability()))
    assert not any("identity" in name or "soft" in name for name in plain_ensemble)
    assert names("adaptive", network(0, "w32a32")) == [
        "AutoAttack",
        "PGD-100 plain",
        "PGD-100 plain margin",
        "PGD-100 plain temperature 10",
        "PGD-100 plain temperature 100",
    ]
    assert "PGD-100 plain/soft" in names("adaptive", network(0, "w2a2"))
    heated = parse_protocol("adaptive").attacks(network(0, "w32a32"))[3].attack
    assert heated == replace(LONG_STEPS, loss=CrossEntropy(10.0))
    assert all(
        planned.bounded and planned.labels is Labels.TRUE for planned in parse_protocol("adaptive").attacks(ensemble())
    )


def test_adaptive_runs_autoattack_on_a_models_own_output_once() -> None:
    probabilities, logits, voting = (
        [
            name
            for name in names("adaptive", Ensemble([network(0, "w2a4"), network(1, "w32a32")], rule))
            if "PGD" not in name and "transfer" not in name
        ]
        for rule in (MeanProbability(), MeanLogits(), MaxVote())
    )
    for own, its_mean, other in (
        (probabilities, "mean_probability", "mean_logits"),
        (logits, "mean_logits", "mean_probability"),
    ):
        assert own == [
            "AutoAttack",
            f"apgd-ce + apgd-t {its_mean}/identity",
            f"apgd-ce + apgd-t {its_mean}/soft",
            f"apgd-t {other}",
        ]
    assert set(voting) - set(probabilities) == {"apgd-ce + apgd-t mean_probability", "square mean_probability"}


def test_adaptive_follows_the_mean_an_ensemble_decides_by() -> None:
    members = [network(0, "w2a4"), network(1, "w32a32")]
    followed = {
        rule: [name for name in names("adaptive", Ensemble(members, rule)) if name.startswith("PGD-100 mean_")]
        for rule in (MeanProbability(), MeanLogits(), MaxVote())
    }
    assert len(followed[MeanLogits()]) == 6
    assert followed[MaxVote()] == followed[MeanProbability()]
    assert [name.replace("logits", "probability") for name in followed[MeanLogits()]] == followed[MaxVote()]


def adaptive_columns(x: Tensor, wanted: Callable[[object], bool]) -> list[Tensor]:
    model = ensemble().float()
    y, threat = model(x).argmax(1), Threat.parse("Linf:0.02")
    columns = []
    for planned in parse_protocol("adaptive").attacks(model, "cifar10"):
        if wanted(planned.attack):
            made, robust = carried_out(planned, model, x, y, threat)
            assert float((made - x).abs().max()) <= 0.02 + 1e-6
            columns.append(robust)
    return columns


def test_the_gradient_attacks_of_adaptive_run(batch: tuple[Tensor, Tensor]) -> None:
    columns = adaptive_columns(batch[0][:4].float(), lambda attack: not isinstance(attack, AutoAttackSuite))
    assert len(columns) == 6 + 4 + 3 + 3


@pytest.mark.slow
def test_the_autoattacks_of_adaptive_run(batch: tuple[Tensor, Tensor]) -> None:
    columns = adaptive_columns(batch[0][:4].float(), lambda attack: isinstance(attack, AutoAttackSuite))
    assert len(columns) == 3 + 2 + 1


def test_transfer_is_carried_out_on_the_member(batch: tuple[Tensor, Tensor]) -> None:
    model, (x, y) = ensemble(), batch
    threat = Threat.parse("Linf:0.1")
    attack = replace(pgd(5, loss=margin), return_last=True)
    assert torch.equal(OnMember(1, attack)(model, x, y, threat), attack(model.members[1], x, y, threat))
    with pytest.raises(InputError, match="member must be 0 to 2, got 5"):
        OnMember(5, attack)(model, x, y, threat)
    with pytest.raises(InputError, match="has none"):
        OnMember(0, attack)(model.members[0], x, y, threat)
