"""AutoAttack equals pyautoattack, on any model and surrogate, and broken images cost nothing more."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pyautoattack
import pytest
import torch
from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
from torch import Tensor, nn

from empir_plugin.attacks import surrogates
from empir_plugin.attacks.autoattack import ActiveBatchModel, AutoAttackSuite, _margin_and_loss, drop_broken_images
from empir_plugin.attacks.surrogates import Surrogate
from empir_plugin.attacks.threat import Threat, parse_norm
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.models.ensemble import Ensemble

THREAT = Threat.parse("Linf:8/255")


@pytest.fixture(autouse=True)
def one_seed() -> Iterator[None]:
    with torch.random.fork_rng():
        yield


def network(seed: int, classes: int = 4) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(72, classes)).eval()


@pytest.fixture
def model() -> nn.Module:
    return network(0)


@pytest.fixture
def x() -> Tensor:
    return torch.rand(20, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def run_pyautoattack(
    model: nn.Module, x: Tensor, y: Tensor, threat: Threat, queries: int, batch_size: int
) -> tuple[Tensor, Tensor]:
    names: Any = {"norm": str(threat.norm)}
    adversary = pyautoattack.AutoAttack(model, eps=threat.eps, seed=3, **names)
    adversary.square.n_queries = queries
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    adversary.apgd_targeted.n_target_classes = adversary.fab.n_target_classes = min(9, classes - 1)
    trace = sys.gettrace()
    result = adversary.run_standard_evaluation(x, y, batch_size=batch_size)
    sys.settrace(trace)
    return result


def check_equals_pyautoattack(model: nn.Module, x: Tensor, text: str) -> None:
    threat = Threat.parse(text)
    y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 4
    adv, decision = run_pyautoattack(model, x, y, threat, 30, 12)
    result = AutoAttackSuite(queries=30, batch_size=12).run(model, x, y, threat, seed=3)
    robust = result.robust["square"]
    assert torch.equal(result.images[robust], adv[robust])
    assert not (model(result.images).argmax(1) == y)[~robust].any()
    assert float(threat.norm.size(result.images - x).max()) <= threat.eps + 1e-6
    assert list(result.robust) == ["clean", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert torch.equal(result.robust["square"], decision == y)
    assert 0 < int(result.robust["square"].sum()) < 19, "the test needs broken and robust images"
    assert result.accuracy["clean"] == 19 / 20


def test_equals_pyautoattack(model: nn.Module, x: Tensor) -> None:
    check_equals_pyautoattack(model, x, "Linf:0.01")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Linf:0.01", "L2:0.1"])
def test_equals_pyautoattack_on_ten_classes(text: str, x: Tensor) -> None:
    check_equals_pyautoattack(network(0, classes=10), x, text)


def test_broken_images_cost_no_further_passes(model: nn.Module, x: Tensor) -> None:
    seen: list[int] = []

    def counting(x: Tensor) -> Tensor:
        seen.append(len(x))
        return model(x)

    y = model(x).argmax(1)
    AutoAttackSuite(attacks=("apgd-ce",)).run(counting, x, y, Threat.parse("Linf:0.1"))
    ours = sum(seen)
    seen.clear()
    pyautoattack.autopgd_base.APGDAttack(counting, eps=0.1, device="cpu").perturb(x, y)
    assert sum(seen) > 100 * len(x)
    assert ours < sum(seen) / 4


def test_each_part_can_only_break_more_images(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    suite = AutoAttackSuite(attacks=("square", "apgd-ce", "fab"), queries=10)
    result = suite.run(model, x, y, Threat.parse("Linf:0.03"))
    robust = list(result.robust.values())
    assert list(result.robust) == ["clean", "square", "apgd-ce", "fab"]
    assert all((after <= before).all() for before, after in pairwise(robust))
    assert torch.equal(model(result.images).argmax(1) == y, robust[-1])
    assert torch.equal(result.images[robust[-1]], x[robust[-1]])
    size = parse_norm("Linf").size(result.images - x)
    assert float(size.max()) <= 0.03 + 1e-6


def test_a_tiny_eps_breaks_no_image(model: nn.Module, x: Tensor) -> None:
    y = model(x).argmax(1)
    suite = AutoAttackSuite(attacks=("apgd-ce", "apgd-dlr", "square"), queries=5)
    assert torch.equal(suite(model, x, y, Threat.parse("Linf:1e-7")), x)


def test_no_image_to_attack(model: nn.Module, x: Tensor) -> None:
    wrong = (model(x).argmax(1) + 1) % 4
    result = AutoAttackSuite().run(model, x, wrong, THREAT)
    assert set(result.accuracy.values()) == {0.0}
    assert torch.equal(result.images, x)


@pytest.mark.parametrize("surrogate", [surrogates.voters, surrogates.mean_logits, surrogates.member(0)], ids=str)
def test_with_a_surrogate_the_model_decides(surrogate: Surrogate, x: Tensor) -> None:
    ensemble = Ensemble([network(seed) for seed in range(3)])
    y = ensemble(x).argmax(1)
    suite = AutoAttackSuite(attacks=("apgd-ce", "apgd-t", "square"), surrogate=surrogate, queries=5)
    result = suite.run(ensemble, x, y, Threat.parse("Linf:0.1"))
    robust = ensemble(result.images).argmax(1) == y
    assert torch.equal(robust, result.robust["square"])
    assert result.accuracy["clean"] == 1
    assert result.accuracy["square"] < 0.3


class ConstantLogits(nn.Module):
    def __init__(self, row: list[float]) -> None:
        super().__init__()
        self.row = torch.tensor([row])

    def forward(self, x: Tensor) -> Tensor:
        return self.row + 0 * x.sum((1, 2, 3))[:, None]


def test_square_keeps_a_useful_loss_where_only_the_surrogate_is_fooled() -> None:
    # Two weak votes for class 0 outvote a strong one for class 1, which the mean probability follows.
    ensemble = Ensemble([ConstantLogits([0.1, 0.0]), ConstantLogits([0.1, 0.0]), ConstantLogits([0.0, 9.0])])
    x, y = torch.zeros(1, 3, 2, 2), torch.tensor([0])
    margin, loss = _margin_and_loss(surrogates.mean_probability, ensemble)(x, y)
    first = 2 * math.exp(0.1) / (1 + math.exp(0.1)) + 1 / (1 + math.exp(9))
    assert margin > 0, "the vote is still correct"
    torch.testing.assert_close(loss, torch.tensor([math.log(first / (3 - first))]))
    assert loss < 0, "the loss is that of the surrogate, not the tiny margin of the decision"


def test_too_few_classes(x: Tensor) -> None:
    three = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    with pytest.raises(InputError, match=r"apgd-t .* 4 classes, got 3: leave it out"):
        AutoAttackSuite().run(three, x, three(x).argmax(1), THREAT)


@pytest.mark.parametrize("kind", [torch.float64, torch.bfloat16, torch.float16])
def test_logits_of_another_type_are_attacked_as_float32(kind: torch.dtype, x: Tensor, model: nn.Module) -> None:
    class Typed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x).to(kind)

    class Back(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x).to(kind).float()

    y = Back()(x).argmax(1)
    for parts in (("apgd-ce",), ("apgd-dlr", "apgd-t"), ("fab", "square")):
        suite = AutoAttackSuite(attacks=parts, queries=20)
        typed, expected = (suite.run(each, x, y, THREAT) for each in (Typed(), Back()))
        assert typed.accuracy == expected.accuracy
        assert torch.equal(typed.images, expected.images)
    ensemble = Ensemble([Typed(), Typed()])
    suite = AutoAttackSuite(attacks=("apgd-ce", "fab", "square"), surrogate=surrogates.mean_logits, queries=20)
    assert suite.run(ensemble, x, ensemble(x).argmax(1), Threat.parse("Linf:0.1")).accuracy["square"] < 0.5


def test_flags_are_returned(x: Tensor, model: nn.Module) -> None:
    y = model(x).argmax(1)
    suite = AutoAttackSuite(attacks=("apgd-ce",))
    assert suite.run(model, x, y, THREAT).flags == ()
    soft = nn.Sequential(model, nn.Softmax(1))
    (flag,) = suite.run(soft, x, y, THREAT).flags
    assert "the output is a probability distribution" in flag


def test_no_flags_about_parts_that_do_not_run(x: Tensor) -> None:
    three = network(0, classes=3)
    assert AutoAttackSuite(attacks=("apgd-ce", "apgd-dlr")).run(three, x, three(x).argmax(1), THREAT).flags == ()


def test_square_beating_gradient_attacks_is_flagged(x: Tensor, model: nn.Module) -> None:
    class Masked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return model(x.detach().mul(255).round().div(255)) + 0 * x.sum((1, 2, 3))[:, None]

    y = model(x).argmax(1)
    result = AutoAttackSuite(attacks=("apgd-dlr", "square"), queries=100).run(Masked(), x, y, Threat.parse("Linf:0.3"))
    assert any("Square Attack has decreased" in flag for flag in result.flags)
    assert any("zero gradient" in flag for flag in result.flags)


def test_global_state_is_restored(x: Tensor, model: nn.Module) -> None:
    class Dynamic(nn.Module):
        def backward(self, x: Tensor) -> Tensor:
            return x

        def forward(self, x: Tensor) -> Tensor:
            return model(self.backward(x))

    y = model(x).argmax(1)
    state, trace = torch.random.get_rng_state(), sys.gettrace()
    suite = AutoAttackSuite(attacks=("apgd-ce",))
    assert any("dynamic" in flag for flag in suite.run(Dynamic(), x, y, THREAT).flags)
    assert suite.run(model, x, y, THREAT).flags == ()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sys.gettrace() is trace
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_channels_last_images_and_weights_give_the_same_result(x: Tensor, model: nn.Module) -> None:
    y = model(x).argmax(1)
    suite = AutoAttackSuite(attacks=("apgd-dlr",))
    expected = suite.run(model, x, y, Threat.parse("L2:0.25"))
    model.to(memory_format=torch.channels_last)
    got = suite.run(model, x.to(memory_format=torch.channels_last), y, Threat.parse("L2:0.25"))
    assert torch.equal(got.robust["apgd-dlr"], expected.robust["apgd-dlr"])


def test_invalid_input(x: Tensor, model: nn.Module) -> None:
    y = model(x).argmax(1)
    suite = AutoAttackSuite()
    with pytest.raises(InputError, match=r"float32, got .*torch\.float64: convert"):
        suite(model, x.double(), y, THREAT)
    with pytest.raises(InputError, match="got L2:inf: name a finite eps"):
        suite(model, x, y, Threat.parse("L2:inf"))
    with pytest.raises(InputError, match=r"\[0, 1\], got .*: divide by 255"):
        suite(model, x * 255, y, THREAT)
    with pytest.raises(EvaluationError, match=r"NaN.*check its weights"):
        suite(lambda x: model(x) * math.nan, x, y, THREAT)


def test_unknown_settings() -> None:
    with pytest.raises(InputError, match=r"version .*standard, plus, rand, got 'strong'"):
        AutoAttackSuite("strong")
    with pytest.raises(InputError, match=r"attacks .*apgd-ce, .*, got pgd"):
        AutoAttackSuite(attacks=("pgd",))
    with pytest.raises(InputError, match=r"queries must be 1 or more, got 250 and 0"):
        AutoAttackSuite(queries=0)


def test_versions() -> None:
    assert AutoAttackSuite("rand").parts == ("apgd-ce", "apgd-dlr")
    assert len(AutoAttackSuite("plus").parts) == 6
    assert AutoAttackSuite("plus", attacks=("fab",)).parts == ("fab",)


# Broken images are dropped from the active batch.


def brightness(x: Tensor) -> Tensor:
    """Class 1 where the only pixel is brighter than one half."""
    return torch.cat([0.5 - x.flatten(1), x.flatten(1) - 0.5], 1)


def one_pixel_images(*pixels: float) -> Tensor:
    return torch.tensor(pixels).view(-1, 1, 1, 1)


def test_broken_images_get_their_true_class_and_no_gradient() -> None:
    model = ActiveBatchModel(brightness, torch.tensor([0, 0, 1]))
    torch.testing.assert_close(model(one_pixel_images(0.4, 0.6, 0.8)), brightness(one_pixel_images(0.4, 0.6, 0.8)))
    x = one_pixel_images(0.3, 0.9, 0.1).requires_grad_()
    logits = model(x)
    torch.testing.assert_close(logits, torch.tensor([[0.2, -0.2], [1, 0], [0.4, -0.4]]))
    (grad,) = torch.autograd.grad(logits[:, 1].sum(), x)
    assert grad.flatten().tolist() == [1, 0, 1]
    assert model(one_pixel_images(0.6, 0.9, 0.9)).argmax(1).tolist() == [1, 0, 1], (
        "the second pass broke the third image"
    )


def test_no_pass_when_all_images_are_broken() -> None:
    seen: list[int] = []

    def counting(x: Tensor) -> Tensor:
        seen.append(len(x))
        return brightness(x)

    model = ActiveBatchModel(counting, torch.tensor([0, 0]))
    model(one_pixel_images(0.9, 0.9))
    x = one_pixel_images(0.2, 0.2).requires_grad_()
    (grad,) = torch.autograd.grad(model(x).sum(), x)
    assert seen == [2]
    assert not grad.any()


@pytest.mark.parametrize("kind", [APGDAttack, APGDAttack_targeted])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_dropping_broken_images_keeps_all_verdicts(kind: Any, norm: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)).requires_grad_(False)
    x = torch.rand(30, 3, 8, 8)
    y = model(x).argmax(1)
    settings = {"eps": 0.012 if norm == "Linf" else 0.12, "norm": norm, "device": "cpu", "n_iter": 20, "seed": 1}
    theirs, ours = kind(model, **settings), kind(model, **settings)
    drop_broken_images(ours)
    expected, adv = theirs.perturb(x, y), ours.perturb(x, y)
    broken = model(expected).argmax(1) != y
    assert 3 < int(broken.sum()) < 27, "the test needs broken and robust images"
    assert torch.equal(model(adv).argmax(1) != y, broken)
    assert torch.equal(adv[~broken], expected[~broken])


def test_the_model_is_restored_when_a_run_fails() -> None:
    def failing(x: Tensor) -> Tensor:
        raise ZeroDivisionError

    attack = APGDAttack(failing, eps=0.1, device="cpu")
    attack.init_hyperparam(one_pixel_images(0.5))
    drop_broken_images(attack)
    with pytest.raises(ZeroDivisionError):
        attack.attack_single_run(one_pixel_images(0.5), torch.tensor([0]))
    assert attack.model is failing
