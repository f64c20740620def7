"""Surrogates: logits by hand, the model's own decision, gradients and text forms."""

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks import surrogates
from empir_plugin.attacks.surrogates import OverMembers, Reweighted, Source, Surrogate, Weighted, parse_surrogate
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanProbability

OVER_MEMBERS = ["voters", "mean_probability", "mean_logits", "sharpened_vote:0.1", "weighted:0.5,0,1", "reweighted:2"]
TEXTS = ["plain", "member:1", *OVER_MEMBERS]


def constant_ensemble(*rows: list[float]) -> Ensemble:
    """An ensemble whose members return the given logits for every image."""

    class ConstantLogits(nn.Module):
        def __init__(self, row: list[float]) -> None:
            super().__init__()
            self.row = torch.tensor([row], dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            return self.row + 0 * x.sum()

    return Ensemble([ConstantLogits(row) for row in rows], MaxVote())


ROWS = [1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 0.0, 0.0]
X = torch.zeros(1, 1, 1, 1, dtype=torch.float64)


def probabilities(row: int) -> Tensor:
    return torch.tensor([ROWS[row]], dtype=torch.float64).softmax(1)


@pytest.mark.parametrize("text", TEXTS)
def test_text_round_trip(text: str) -> None:
    assert str(parse_surrogate(text)) == text


@pytest.mark.parametrize("text", TEXTS)
def test_every_surrogate_returns_the_decision_of_the_model(
    text: str, small_members: list[nn.Module], images: Tensor
) -> None:
    ensemble = Ensemble(small_members)
    view = parse_surrogate(text)(ensemble, images)
    assert torch.equal(view.decide(), ensemble(images).argmax(1))


@pytest.mark.parametrize("text", TEXTS)
def test_every_surrogate_has_a_gradient(text: str, small_members: list[nn.Module], images: Tensor) -> None:
    view = parse_surrogate(text)(Ensemble(small_members), images.requires_grad_(True))
    (grad,) = torch.autograd.grad(view.logits[:, 0].sum(), images)
    assert (grad.flatten(1).abs().sum(1) > 0).all()


@pytest.mark.parametrize(
    ("surrogate", "expected"),
    [
        (surrogates.plain, (probabilities(0) + probabilities(2)).log() - torch.tensor(2.0).log()),
        (surrogates.voters, (probabilities(0) + probabilities(2)).log() - torch.tensor(2.0).log()),
        (surrogates.mean_probability, ((probabilities(0) + probabilities(1) + probabilities(2)) / 3).log()),
        (surrogates.mean_logits, torch.tensor([[4.0, 2.0, 0.0]]) / 3),
        (surrogates.member(1), torch.tensor([[0.0, 2.0, 0.0]])),
        (surrogates.member(-1), torch.tensor([[3.0, 0.0, 0.0]])),
        (surrogates.weighted([1, 0, 3]), (0.25 * probabilities(0) + 0.75 * probabilities(2)).log()),
        (surrogates.reweighted(1e-3), probabilities(0).log()),
    ],
    ids=str,
)
def test_logits_by_hand(surrogate: Surrogate, expected: Tensor) -> None:
    torch.testing.assert_close(surrogate(constant_ensemble(*ROWS), X).logits, expected.double())


def test_sharpened_vote_approaches_the_shares_of_votes() -> None:
    shares = surrogates.sharpened_vote(0.01)(constant_ensemble(*ROWS), X).logits.exp()
    torch.testing.assert_close(shares, torch.tensor([[2 / 3, 1 / 3, 0.0]], dtype=torch.float64))


def test_outvoted_members_get_no_weight_and_voters_share_it_at_high_temperature() -> None:
    equal = surrogates.reweighted(1e9)(constant_ensemble(*ROWS), X).logits
    torch.testing.assert_close(equal, surrogates.voters(constant_ensemble(*ROWS), X).logits)


def test_tied_members_get_weights() -> None:
    tied = torch.zeros(3, 2, 10, dtype=torch.float64)  # as from networks without biases on a black image
    torch.testing.assert_close(Reweighted()(tied, None), torch.full((2, 10), 0.1, dtype=torch.float64).log())


def test_reweighting_gives_the_gradient_to_the_weakest_voter() -> None:
    logits = torch.tensor(ROWS, dtype=torch.float64).unsqueeze(1).requires_grad_(True)
    out = Reweighted(0.1)(logits, None)
    (grad,) = torch.autograd.grad(out[0, 0], logits)
    strength = grad.abs().sum((1, 2))
    assert strength[0] > 0
    assert strength[1] == 0
    assert strength[2] < 1e-6 * strength[0]


def test_a_source_supplies_logits_and_the_model_decides(small_members: list[nn.Module], images: Tensor) -> None:
    source, target = small_members[:2]
    view = Source(source)(target, images)
    assert torch.equal(view.logits, source(images))
    assert torch.equal(view.decide(), target(images).argmax(1))


def test_other_members_are_not_differentiated(small_members: list[nn.Module], images: Tensor) -> None:
    for other in (0, 2):
        small_members[other].register_full_backward_hook(lambda *_: pytest.fail("another member was differentiated"))
    view = surrogates.member(1)(Ensemble(small_members), images.requires_grad_(True))
    view.decide()
    torch.autograd.grad(view.logits.sum(), images)


def test_mean_probability_is_the_rule_of_the_ensemble(small_members: list[nn.Module], images: Tensor) -> None:
    ensemble = Ensemble(small_members, MeanProbability())
    assert torch.equal(surrogates.mean_probability(ensemble, images).logits, ensemble(images))
    assert OverMembers(MeanProbability()) == surrogates.mean_probability


def test_a_single_network_has_no_members(small_network: nn.Module, images: Tensor) -> None:
    for text in ("voters", "member:0"):
        with pytest.raises(InputError, match=rf"surrogate {text} .*Sequential has none: attack it with .*'plain'"):
            parse_surrogate(text)(small_network, images)


def test_no_such_member() -> None:
    with pytest.raises(InputError, match=r"member .*0 to 2, got 3"):
        surrogates.member(3)(constant_ensemble(*ROWS), X)


def test_one_weight_per_member() -> None:
    with pytest.raises(InputError, match=r"weights .*one per member, 3, got 2"):
        surrogates.weighted([1, 1])(constant_ensemble(*ROWS), X)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -0.5)])
def test_invalid_weights(weights: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=rf"weights .*got \({weights[0]}, {weights[1]}\)"):
        Weighted(weights)


@pytest.mark.parametrize("text", ["", "vote", "member", "member:x", "sharpened_vote:0", "weighted:1,x", "plain:1"])
def test_invalid_text(text: str) -> None:
    with pytest.raises(InputError, match=rf"voters, .*got '{text}'|temperature .*got 0"):
        parse_surrogate(text)


def test_has_member_logits_on_every_python_version(small_members: list[nn.Module]) -> None:
    """From 3.12 on, ``isinstance`` with a runtime-checkable protocol misses what ``nn.Module.__getattr__`` returns."""

    class Wrapped(nn.Module):
        def __init__(self, inner: Ensemble) -> None:
            super().__init__()
            self.inner = inner

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(super().__getattr__("inner"), name)

    ensemble = Ensemble(small_members)
    assert surrogates.has_member_logits(ensemble)
    assert surrogates.has_member_logits(Wrapped(ensemble))
    assert not any(surrogates.has_member_logits(other) for other in (nn.ModuleList(small_members), nn.Flatten(), None))
