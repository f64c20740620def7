"""The boundary search and its examples, on networks whose boundary is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.architectures import FCN
from empir_plugin.models.discretize import Discretized
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.quantize import Precision
from empir_plugin.training.batch import TrainingBatch
from empir_plugin.training.boundary import Boundary, BoundaryRetrain, BoundarySearch, class_weights
from empir_plugin.training.objectives import Objective, clean
from empir_plugin.training.schedules import parse_objective


class Line(nn.Module):
    """Class 1 where ``w . x > b``: the boundary is ``|w . x - b| / |w|`` away, along ``w``."""

    def __init__(self, w: list[float], b: float) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.tensor(w)), nn.Parameter(torch.tensor(b))

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) * self.w).sum(1) - self.b
        return torch.stack([torch.zeros_like(score), score], 1)


X = torch.tensor([[0.5, 0.6], [0.4, 0.4], [0.5, 0.3], [0.9, 0.9]]).view(4, 1, 1, 2)
Y = torch.tensor([1, 0, 0, 0])  # the last is wrong
LINE = Line([3.0, 4.0], 3.6)
BATCH = TrainingBatch(X, Y, seed=3)
EXACT = BoundarySearch(0.5, halvings=20)


def test_the_gradient_search_finds_the_distance_to_a_line() -> None:
    found = EXACT(LINE, BATCH)
    assert found.radius.tolist() == pytest.approx([0.06, 0.16, 0.18, 0.0], abs=1e-5)
    assert found.direction.flatten(1).norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    assert found.direction[1].flatten().tolist() == pytest.approx([0.6, 0.8])
    assert found.direction[0].flatten().tolist() == pytest.approx([-0.6, -0.8])


def test_the_decision_changes_at_the_boundary_and_not_before() -> None:
    found, rows = EXACT(LINE, BATCH), slice(0, 3)
    assert (LINE(found.at(X, 0.99)).argmax(1) == Y)[rows].all()
    assert (LINE(found.at(X, 1.01)).argmax(1) != Y)[rows].all()


def test_bisection_overestimates_by_at_most_the_reach_over_two_to_the_halvings() -> None:
    for halvings in (1, 3, 6):
        error = BoundarySearch(0.5, 0, halvings)(LINE, BATCH).radius - EXACT(LINE, BATCH).radius
        assert error.min() >= -1e-6
        assert error.max() <= 0.5 / 2**halvings


def test_a_boundary_out_of_reach_gives_the_reach_along_the_gradient() -> None:
    found = BoundarySearch(0.1, 8)(LINE, BATCH)
    assert found.radius[1:3].tolist() == pytest.approx([0.1, 0.1])
    assert found.direction[1].flatten().tolist() == pytest.approx([0.6, 0.8])


class Corner(nn.Module):
    """Class 1 above 0.6 in the second pixel, while the gradient points along the first."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.flatten(1).unbind(1)
        score = torch.where(second > 0.6, 1.0, -1.0) + 1e-3 * (first - first.detach())
        return torch.stack([torch.zeros_like(score), score], 1)


def test_random_directions_find_a_boundary_the_gradient_misses() -> None:
    alone, more = (BoundarySearch(0.4, count, 12)(Corner(), BATCH).radius for count in (0, 16))
    assert alone[1] == pytest.approx(0.4)
    assert 0.2 <= more[1] < 0.3
    assert (more <= alone).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 1.5))
def test_examples_lie_in_the_box_and_within_reach(seed: int, reach: float) -> None:
    x = torch.rand(6, 1, 1, 2, generator=torch.Generator().manual_seed(seed))
    batch = TrainingBatch(x, (LINE(x)[:, 1] > 0).long(), seed=seed)
    examples, labels = BoundaryRetrain(reach, directions=1, spread=0.5).examples(LINE, batch)
    assert examples.min() >= 0
    assert examples.max() <= 1
    nearest = torch.cdist(examples.flatten(1), x.flatten(1)).min(1).values
    assert nearest.max() <= 1.5 * reach + 1e-5
    assert set(labels.tolist()) <= set(batch.y.tolist())


def test_every_class_is_drawn_in_inverse_proportion_to_its_mean_distance() -> None:
    radius, y = torch.tensor([0.1, 0.3, 0.6, 0.0]), torch.tensor([4, 4, 7, 9])
    weights = class_weights(radius, y, least=0.05)
    assert weights.tolist() == pytest.approx([1 / 0.4, 1 / 0.4, 1 / 0.6, 1 / 0.05])
    assert (weights[:2].sum() / weights[2]).item() == pytest.approx(0.6 / 0.2), "not by the number of images"


def test_examples_lie_alternately_before_and_beyond_the_boundary_and_keep_their_label() -> None:
    one = TrainingBatch(X[1:2].expand(6, -1, -1, -1), Y[1:2].expand(6))
    examples, labels = BoundaryRetrain(0.5, 0, 20, spread=0.25).examples(LINE, one)
    way = torch.tensor([0.6, 0.8]) * 0.16
    for i, share in enumerate([0.75, 1.25] * 3):
        torch.testing.assert_close(examples[i].flatten(), X[1].flatten() + share * way, atol=1e-5, rtol=0)
    assert LINE(examples).argmax(1).tolist() == [0, 1] * 3
    assert labels.tolist() == [0] * 6


def test_the_loss_is_the_mean_of_clean_images_and_examples() -> None:
    objective = BoundaryRetrain(0.5, clean_share=0.25)
    examples, labels = objective.examples(LINE, BATCH)
    output, unharmed = objective(LINE, BATCH), clean(LINE, BATCH)
    near = clean(LINE, TrainingBatch(examples, labels)).loss
    assert output.loss.item() == pytest.approx(0.75 * near.item() + 0.25 * unharmed.loss.item())
    assert torch.equal(output.logits, unharmed.logits), "they belong to the labels of the batch"


def test_the_same_seed_gives_the_same_examples() -> None:
    objective = BoundaryRetrain(0.5)
    first, again = objective.examples(LINE, BATCH), objective.examples(LINE, BATCH)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], objective.examples(LINE, TrainingBatch(X, Y, seed=4))[0])


def test_the_network_is_left_unchanged() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Dropout(0.5), nn.Linear(2, 2)).train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    BoundarySearch(0.5)(model, BATCH)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_a_confident_network_learns_only_at_its_boundary() -> None:
    """Logits of 30 at the images themselves: nothing is left to learn there, and the boundary is 0.03 from one."""
    x = torch.tensor([[0.3, 0.5], [0.7, 0.5]]).view(2, 1, 1, 2)

    def least(objective: Objective) -> float:
        model = Line([1000.0, 0.0], 330.0)
        optimizer = torch.optim.SGD(model.parameters(), lr=50.0)
        for seed in range(60):
            optimizer.zero_grad()
            objective(model, TrainingBatch(x, torch.tensor([0, 1]), seed=seed)).loss.backward()
            optimizer.step()
        return float(EXACT(model, TrainingBatch(x, torch.tensor([0, 1]))).radius.min())

    assert least(clean) == pytest.approx(0.03, abs=1e-4)
    assert least(BoundaryRetrain(0.5)) > 0.12


def test_members_of_an_ensemble_are_retrained_together() -> None:
    torch.manual_seed(0)
    members = [FCN(width=8), Discretized(FCN(Precision(1, 1), width=8), 2)]
    ensemble = Ensemble(members, MeanProbability()).train()
    batch = TrainingBatch(torch.rand(8, 1, 28, 28), torch.arange(8))
    BoundaryRetrain(2.0, directions=1, halvings=3)(ensemble, batch).loss.backward()
    for member in members:
        assert all(p.grad is not None and p.grad.isfinite().all() for p in member.parameters())


def test_a_recipe_states_it_as_a_table() -> None:
    table = {"kind": "boundary_retrain", "reach": 2, "directions": 3}
    assert parse_objective(table) == BoundaryRetrain(2, directions=3)
    with pytest.raises(InputError, match=r"lacks the key\(s\) reach"):
        parse_objective({"kind": "boundary_retrain"})


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"reach": 0.0}, "reach must be above 0 and finite, got 0.0"),
        ({"reach": math.inf}, "reach must be above 0 and finite, got inf"),
        ({"directions": -1}, "directions must be 0 or more and halvings 1 or more, got -1 and 8"),
        ({"halvings": 0}, "directions must be 0 or more and halvings 1 or more, got 4 and 0"),
        ({"spread": 0.0}, "spread must lie between 0 and 1, got 0.0"),
        ({"spread": 1.0}, "spread must lie between 0 and 1, got 1.0"),
        ({"clean_share": 1.0}, r"clean_share must lie in \[0, 1\), got 1.0"),
    ],
)
def test_bad_settings_are_refused(setting: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        BoundaryRetrain(**{"reach": 1.0, **setting})


def test_moved_images_are_clipped_to_the_box() -> None:
    boundary = Boundary(torch.tensor([0.5]), torch.tensor([[[[1.0, 0.0]]]]))
    assert boundary.at(torch.tensor([[[[0.8, 0.2]]]]), 1.0).flatten().tolist() == pytest.approx([1.0, 0.2])
