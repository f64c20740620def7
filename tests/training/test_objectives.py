"""Objectives against answers known by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import QuantConv2d
from empir_plugin.models.quantize import Precision
from empir_plugin.training.adversary import fgsm, pgd
from empir_plugin.training.batch import Criterion, TrainingBatch
from empir_plugin.training.objectives import (
    Adversarial,
    Clean,
    Distilled,
    Divergence,
    GradientPenalty,
    Objective,
    Trades,
    clean,
)


class Slope(nn.Module):
    """Two classes, logits 0 and ``w . x``: every loss and gradient is a line of algebra."""

    def __init__(self, w: list[float]) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(w, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) * self.w).sum(1)
        return torch.stack([torch.zeros_like(score), score], 1)


class Blind(nn.Module):
    """The same logits for whatever image, and yet a gradient."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tensor([1.0, 2.0, 0.5]) + 0 * x.sum((1, 2, 3)).unsqueeze(1)


W = [2.0, -1.0, 0.5]
X = torch.tensor([[0.2, 0.4, 0.6], [0.5, 0.5, 0.5]], dtype=torch.float64).view(2, 1, 1, 3)
Y = torch.tensor([1, 0])
BATCH = TrainingBatch(X, Y)


def _softplus(value: float) -> float:
    return math.log1p(math.exp(value))


def test_clean_training_is_the_cross_entropy() -> None:
    output = clean(Slope(W), BATCH)
    assert output.loss.item() == pytest.approx((_softplus(-0.3) + _softplus(0.75)) / 2)
    smoothed = clean(Slope(W), TrainingBatch(X, Y, Criterion(label_smoothing=0.2)))
    assert torch.equal(smoothed.loss, F.cross_entropy(Slope(W)(X), Y, label_smoothing=0.2))
    warm = Clean(temperature=10.0)(Slope(W), BATCH)
    assert warm.loss.item() == pytest.approx((_softplus(-0.03) + _softplus(0.075)) / 2)
    assert torch.equal(warm.logits, output.logits), "logits are those of the network, at temperature 1"


@pytest.mark.parametrize("q", [1e-3, 0.5, 1.0])
def test_the_generalized_cross_entropy_by_hand(q: float) -> None:
    model, reference = Slope(W), Slope(W)
    bounded = clean(model, TrainingBatch(X, Y, Criterion(gce_q=q)))
    # Scores 0.3 for class 1 and 0.75 against class 0: the label's probability is the logistic of 0.3 and of -0.75.
    p = [1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(0.75))]
    assert bounded.loss.item() == pytest.approx(sum((1 - each**q) / q for each in p) / 2)
    assert torch.equal(bounded.logits, reference(X))
    bounded.loss.backward()
    each = F.cross_entropy(reference(X), Y, reduction="none")
    (torch.tensor(p, dtype=torch.float64) ** q * each).mean().backward()
    assert torch.allclose(model.w.grad, reference.w.grad), "an image weighs p**q times what it did"  # type: ignore[arg-type]


def test_the_generalized_cross_entropy_tends_to_the_cross_entropy() -> None:
    near = clean(Slope(W), TrainingBatch(X, Y, Criterion(gce_q=1e-9))).loss
    assert near.item() == pytest.approx(clean(Slope(W), BATCH).loss.item(), abs=1e-8)
    ensemble = Ensemble([Slope([1.0, 1.0, 1.0]), Slope([-2.0, 0.0, 3.0])], MeanProbability())
    mean = torch.stack([member(X).softmax(1) for member in ensemble.members]).mean(0)
    output = clean(ensemble, TrainingBatch(X, Y, Criterion(gce_q=1.0)))
    assert output.loss.item() == pytest.approx(1 - mean[torch.arange(2), Y].mean().item()), "of the common decision"
    hopeless = TrainingBatch(
        torch.full((1, 1, 1, 3), 100.0, dtype=torch.float64), torch.tensor([0]), Criterion(gce_q=0.5)
    )
    assert clean(Slope(W), hopeless).loss.item() == pytest.approx(2.0), "it has a bound, 1 / q"


def test_fgsm_training_takes_the_loss_at_the_adversary_known_by_hand() -> None:
    output = Adversarial(fgsm("Linf:0.1"))(Slope(W), BATCH)
    # Against class 1 the score falls by 0.1 * |w|_1 = 0.35, against class 0 it rises by as much.
    assert output.logits[:, 1].tolist() == pytest.approx([0.3 - 0.35, 0.75 + 0.35])
    assert output.loss.item() == pytest.approx((_softplus(0.05) + _softplus(1.1)) / 2)
    assert output.loss > clean(Slope(W), BATCH).loss


def test_a_clean_share_mixes_both_losses() -> None:
    attacked = Adversarial(fgsm("Linf:0.1"))(Slope(W), BATCH).loss
    mixed = Adversarial(fgsm("Linf:0.1"), clean_share=0.25)(Slope(W), BATCH).loss
    assert mixed.item() == pytest.approx(0.75 * attacked.item() + 0.25 * clean(Slope(W), BATCH).loss.item())


def test_the_gradient_of_adversarial_training_stops_at_the_adversary() -> None:
    model = Slope(W)
    Adversarial(fgsm("Linf:0.1"))(model, BATCH).loss.backward()
    found = fgsm("Linf:0.1")(model, BATCH)
    probability = model(found).softmax(1)[:, 1] - Y
    expected = (probability.unsqueeze(1) * found.flatten(1)).mean(0)
    assert torch.allclose(model.w.grad, expected)  # type: ignore[arg-type]


def test_trades_adds_nothing_where_the_output_is_constant() -> None:
    batch = TrainingBatch(torch.full((4, 1, 2, 2), 0.5), torch.tensor([0, 1, 2, 0]))
    adversary = pgd("Linf:0.2", steps=2)
    assert Trades(adversary, beta=6.0)(Blind(), batch).loss == clean(Blind(), batch).loss
    assert Trades(adversary, beta=0.0)(Slope(W), BATCH).loss == clean(Slope(W), BATCH).loss


def test_trades_adds_beta_times_the_divergence_at_the_corner_it_finds() -> None:
    model = Slope(W)
    base = clean(model, BATCH).loss.item()
    once, six_times = (Trades(pgd("Linf:0.1", steps=20), beta)(model, BATCH).loss.item() - base for beta in (1, 6))
    p = model(X).softmax(1)
    corners = [model(X + sign * 0.1 * model.w.sign().view(1, 1, 3)).log_softmax(1) for sign in (1, -1)]
    up, down = [(p * (p.log() - q)).sum(1).tolist() for q in corners]  # which one depends on the start
    possible = [(one + other) / 2 for one in (up[0], down[0]) for other in (up[1], down[1])]
    assert min(abs(once - value) for value in possible) < 1e-9
    assert six_times == pytest.approx(6 * once)


def test_divergence_is_kullback_leibler_from_the_reference() -> None:
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.25, 0.5]])
    expected = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert Divergence(p.log())(q.log() + 3, torch.tensor([0])).item() == pytest.approx(expected)
    assert Divergence(p.log())(p.log(), torch.tensor([0])).item() == 0


def test_distillation_has_the_gradient_known_by_hand() -> None:
    logits = nn.Parameter(torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]]))
    answers = torch.tensor([[10.0, 0.0, -10.0], [0.0, 20.0, 5.0]])
    student, teacher = _table(logits), _table(nn.Parameter(answers))
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    Distilled(teacher, temperature=20.0)(student, TrainingBatch(images, torch.tensor([0, 1]))).loss.backward()
    expected = ((logits / 20).softmax(1) - (answers / 20).softmax(1)) / 20 / 2
    assert torch.allclose(logits.grad, expected.detach(), atol=1e-7)  # type: ignore[arg-type]


def _table(logits: nn.Parameter) -> nn.Module:
    """Image number i, a single pixel of that value, has the logits of row i."""

    class Table(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logits = logits

        def forward(self, x: Tensor) -> Tensor:
            return self.logits[x.flatten().long()]

    return Table()


def test_soft_labels_belong_to_their_image_whatever_the_order() -> None:
    answers = nn.Parameter(8 * torch.eye(4))
    images, y = torch.arange(4.0).view(4, 1, 1, 1), torch.arange(4)
    objective = Distilled(_table(answers), temperature=2.0)
    order = torch.tensor([2, 0, 3, 1])
    right = objective(_table(answers), TrainingBatch(images[order], y[order])).loss
    wrong = objective(_table(nn.Parameter(8 * torch.eye(4)[order])), TrainingBatch(images, y)).loss
    assert torch.allclose(right, objective(_table(answers), TrainingBatch(images, y)).loss)
    assert wrong > right + 1


def test_distillation_may_include_a_share_of_the_labels() -> None:
    student, teacher = _table(nn.Parameter(torch.randn(2, 3))), _table(nn.Parameter(torch.randn(2, 3)))
    batch = TrainingBatch(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([2, 0]))
    soft, hard = Distilled(teacher, 100.0)(student, batch).loss, clean(student, batch).loss
    assert Distilled(teacher, 100.0, 0.3)(student, batch).loss.item() == pytest.approx(
        0.7 * soft.item() + 0.3 * hard.item()
    )


def test_the_gradient_penalty_and_its_gradient_match_those_by_hand() -> None:
    model, weight = Slope(W), 5.0
    p = torch.tensor([0.3, 0.75], dtype=torch.float64).sigmoid()
    residual = (p - Y) / 2  # d(mean loss) / d(score); the gradient with respect to an image is this times w
    w = torch.tensor(W, dtype=torch.float64)
    output = GradientPenalty(weight)(model, BATCH)
    penalty = weight / 2 * (residual.square().sum() * w.square().sum())
    assert (output.loss - clean(model, BATCH).loss).item() == pytest.approx(penalty.item())
    output.loss.backward()
    steepness = (residual * p * (1 - p) / 2).unsqueeze(1) * X.flatten(1)
    own = weight * (steepness.sum(0) * w.square().sum() + residual.square().sum() * w)
    plain = ((p - Y).unsqueeze(1) * X.flatten(1)).mean(0)
    assert torch.allclose(model.w.grad, plain + own)  # type: ignore[arg-type]


def test_the_gradient_penalty_reaches_through_a_quantized_network() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(QuantConv2d(1, 10, 4, precision=Precision(4, 4), scale="max"), nn.Flatten())
    batch = TrainingBatch(torch.rand(8, 1, 4, 4), torch.arange(8))
    lengths = []
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        (GradientPenalty(50.0)(model, batch).loss - clean(model, batch).loss).backward()
        optimizer.step()
        lengths.append((GradientPenalty(50.0)(model, batch).loss - clean(model, batch).loss).item())
    assert lengths[-1] < 0.5 * lengths[0]


def test_members_share_the_loss_by_hand() -> None:
    one, two = Slope([1.0, 1.0, 1.0]), Slope([-2.0, 0.0, 3.0])
    ensemble = Ensemble([one, two], MeanProbability())
    own = [clean(one, BATCH).loss.item(), clean(two, BATCH).loss.item()]
    mean = (one(X).softmax(1) + two(X).softmax(1)) / 2
    common = -mean[torch.arange(2), Y].log().mean().item()
    shared = clean(ensemble, TrainingBatch(X, Y, Criterion(member_share=0.25)))
    assert clean(ensemble, BATCH).loss.item() == pytest.approx(common)
    assert shared.loss.item() == pytest.approx(0.75 * common + 0.25 * sum(own) / 2)
    assert torch.allclose(shared.logits.exp(), mean)
    with pytest.raises(InputError, match="member_share is for ensembles, got a Slope"):
        clean(one, TrainingBatch(X, Y, Criterion(member_share=0.25)))


def _tiny_ensemble() -> Ensemble:
    torch.manual_seed(1)

    def member(conv: nn.Module) -> nn.Module:
        return nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4))

    low = QuantConv2d(1, 8, 3, precision=Precision(4, 4), scale="max")
    return Ensemble([member(nn.Conv2d(1, 8, 3)), member(low)], MeanProbability())


def _bars() -> TrainingBatch:
    x = 0.2 * torch.rand(32, 1, 6, 6, generator=torch.Generator().manual_seed(5))
    y = torch.arange(32) % 4
    x[torch.arange(32), 0, y + 1] += 0.7
    return TrainingBatch(x, y)


@pytest.mark.parametrize(
    "objective",
    [
        Adversarial(pgd("Linf:0.1", steps=2)),
        Trades(pgd("Linf:0.1", steps=2), beta=2.0),
        GradientPenalty(10.0),
    ],
    ids=["adversarial", "trades", "gradient_penalty"],
)
def test_an_ensemble_is_trained_as_a_whole(objective: Objective) -> None:
    ensemble, bars = _tiny_ensemble(), _bars()
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=1e-2)
    losses = []
    for seed in range(40):
        output = objective(ensemble.train(), TrainingBatch(bars.x, bars.y, Criterion(member_share=0.2), seed=seed))
        optimizer.zero_grad()
        output.loss.backward()
        assert all(p.grad is not None and p.grad.any() for p in ensemble.parameters()), "every member is trained"
        optimizer.step()
        losses.append(output.loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_an_attack_on_an_ensemble_targets_its_common_decision() -> None:
    ensemble, bars = _tiny_ensemble(), _bars()
    adversary = pgd("Linf:0.1", steps=3)
    together = adversary(ensemble, bars)
    assert not torch.equal(together, adversary(ensemble.members[0], bars))
    assert (
        clean(ensemble, TrainingBatch(together, bars.y)).loss
        > clean(ensemble, TrainingBatch(adversary(ensemble.members[0], bars), bars.y)).loss
    )


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        (lambda: Clean(temperature=0.0), "temperature must be above 0 and finite, got 0.0"),
        (lambda: Adversarial(fgsm("Linf:0.1"), clean_share=1.0), r"clean_share must lie in \[0, 1\)"),
        (lambda: Trades(fgsm("Linf:0.1"), beta=-1.0), "beta must be 0 or more and finite, got -1.0"),
        (lambda: Trades(fgsm("Linf:0.1"), beta=float("nan")), "beta must be 0 or more and finite, got nan"),
        (lambda: GradientPenalty(-100.0), "weight must be 0 or more and finite, got -100.0"),
        (lambda: Distilled(nn.Flatten(), temperature=0.0), "temperature must be above 0"),
        (lambda: Distilled(nn.Flatten(), temperature=1.0, label_share=1.0), r"label_share must lie in \[0, 1\)"),
        (lambda: Criterion(label_smoothing=1.0), r"label_smoothing must lie in \[0, 1\)"),
        (lambda: Criterion(member_share=1.5), r"member_share must lie in \[0, 1\]"),
        (lambda: Criterion(gce_q=1.5), r"gce_q must lie in \[0, 1\], got 1.5"),
        (lambda: Criterion(gce_q=float("nan")), r"gce_q must lie in \[0, 1\], got nan"),
        (lambda: Criterion(0.1, gce_q=0.5), "gce_q .*label_smoothing 0.1"),
    ],
)
def test_impossible_objectives_are_refused(build: object, sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        build()  # type: ignore[operator]
