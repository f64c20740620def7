"""Ensembles: votes by hand, mean probabilities and logits, and an argmax that is the decision."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanLogits, MeanProbability, Rule
from empir_plugin.models.layers import QuantLinear
from empir_plugin.models.quantize import Precision

A, B, C, D = range(4)
Doubles = NDArray[np.float64]


def ballot(*votes: tuple[int, float]) -> Tensor:
    """Logits ``(M, 1, 4)`` of members that vote for a class with a lead over the others, which are equal."""
    logits = torch.zeros(len(votes), 1, 4)
    for member, (choice, lead) in enumerate(votes):
        logits[member, 0, choice] = lead
    return logits


def decision(rule: Rule, logits: Tensor, leader: int | None) -> list[int]:
    return rule(logits, leader).argmax(1).tolist()


# -- The oracle: one image at a time in float64, written from the paper


def softmax(logits: Doubles) -> Doubles:
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def favourites(logits: Doubles) -> set[int]:
    """The classes with most votes, of members' logits ``(M, K)``."""
    votes = [int(row.argmax()) for row in logits]
    most = max(votes.count(vote) for vote in votes)
    return {vote for vote in votes if votes.count(vote) == most}


# -- Votes


@pytest.mark.parametrize(
    ("votes", "leader", "expected"),
    [
        pytest.param([(A, 1), (A, 1), (A, 1)], 2, A, id="unanimous"),
        pytest.param([(A, 1), (A, 1), (B, 9)], 2, A, id="two-outvote-a-sure-fp"),
        pytest.param([(A, 9), (B, 1), (B, 1)], 2, B, id="fp-and-one-against-a-sure-one"),
        pytest.param([(B, 1), (A, 9), (B, 1)], 2, B, id="fp-and-the-other-one"),
        pytest.param([(A, 9), (B, 8), (C, 1)], 2, C, id="three-way-split-falls-to-fp"),
        pytest.param([(C, 1), (B, 8), (A, 9)], 0, C, id="three-way-split-fp-first"),
        pytest.param([(A, 1), (B, 3), (C, 2)], None, B, id="three-way-split-no-fp-surest-wins"),
        pytest.param([(D, 1), (B, 3), (B, 3)], None, B, id="majority-no-fp"),
        pytest.param([(A, 1), (B, 9)], 0, A, id="two-members-fp-decides"),
        pytest.param([(B, 9), (A, 1)], 1, A, id="two-members-fp-decides-at-the-end"),
        pytest.param([(A, 1), (B, 2)], None, B, id="two-members-no-fp"),
        pytest.param([(D, 1)], 0, D, id="single-fp"),
        pytest.param([(D, 1)], None, D, id="single-low"),
        pytest.param([(A, 1), (A, 1), (B, 2), (B, 2), (A, 1)], 2, A, id="five-majority"),
        pytest.param([(A, 1), (A, 1), (B, 2), (B, 2), (C, 9)], 4, B, id="five-fp-not-among-the-tied"),
        pytest.param([(A, 1), (A, 1), (B, 2), (B, 2), (C, 9)], 0, A, id="five-fp-among-the-tied"),
        pytest.param([(A, 1), (A, 1), (B, 2), (C, 9), (D, 9)], 4, A, id="five-plurality-is-enough"),
        pytest.param([(C, 1), (C, 1), (B, 9), (B, 9), (A, 1), (A, 1), (D, 9)], 4, A, id="seven-three-tied-fp-among"),
        pytest.param([(C, 1), (C, 1), (B, 5), (B, 5), (A, 1), (A, 1), (D, 9)], 6, B, id="seven-three-tied-fp-not"),
        pytest.param([(C, 1), (C, 1), (C, 1), (B, 9), (B, 9), (B, 9), (D, 1)], 6, B, id="seven-two-tied-fp-not"),
        pytest.param([(C, 1), (C, 1), (C, 1), (C, 1), (B, 9), (B, 9), (B, 9)], 4, C, id="seven-majority-against-fp"),
    ],
)
def test_votes_by_hand(votes: list[tuple[int, float]], leader: int | None, expected: int) -> None:
    assert decision(MaxVote(), ballot(*votes), leader) == [expected]


def test_ties_are_decided_by_the_mean_over_all_members() -> None:
    """A's two voters are surer than B's, but the one for C thinks well of B."""
    voters = torch.tensor([[[2.0, 0.0, 0.0]], [[2.0, 0.0, 0.0]], [[0.0, 1.9, 0.0]], [[0.0, 1.9, 0.0]]])
    outsider = torch.tensor([[[0.0, 3.9, 4.0]]])
    assert decision(MaxVote(), voters, None) == [A]
    assert decision(MaxVote(), torch.cat([voters, outsider]), None) == [B]


@pytest.mark.parametrize("leader", [None, 0])
def test_an_exact_tie_in_a_members_logits_is_a_vote_for_its_first_class(leader: int | None) -> None:
    logits = torch.tensor([[[1.0, 1.0, 0.0]]])
    assert decision(MaxVote(), logits, leader) == [A]
    assert decision(MaxVote(), torch.tensor([[[0.0, 1.0, 1.0]]]), leader) == [B]


def test_images_are_judged_one_by_one() -> None:
    logits = torch.cat([ballot((A, 1), (A, 1), (B, 1)), ballot((C, 1), (B, 1), (D, 1))], 1)
    assert decision(MaxVote(), logits, 2) == [A, D]


# -- What the vote returns


@pytest.mark.parametrize(
    ("votes", "leader", "voters"),
    [
        ([(A, 1), (A, 2), (B, 9)], 2, [0, 1]),
        ([(A, 9), (B, 8), (C, 1)], 2, [2]),
        ([(A, 1), (A, 2), (A, 3)], 2, [0, 1, 2]),
        ([(B, 1), (A, 2), (B, 3), (A, 5), (C, 4)], 0, [0, 2]),
    ],
)
def test_the_log_of_the_mean_probability_of_the_voters(
    votes: list[tuple[int, float]], leader: int, voters: list[int]
) -> None:
    logits = ballot(*votes) + torch.randn(len(votes), 1, 4, generator=torch.Generator().manual_seed(0)) / 10
    expected = np.log(softmax(logits.double().numpy())[voters].mean(0))
    np.testing.assert_allclose(MaxVote()(logits, leader).numpy(), expected, rtol=1e-5)


def test_mean_probability_equals_the_oracle() -> None:
    logits = 3 * torch.randn(5, 7, 4, generator=torch.Generator().manual_seed(0))
    expected = np.log(softmax(logits.double().numpy()).mean(0))
    np.testing.assert_allclose(MeanProbability()(logits, None).numpy(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(MeanProbability()(logits, 3), MeanProbability()(logits, None))


def test_mean_probability_is_no_vote() -> None:
    logits = ballot((A, 1), (A, 1), (B, 9))
    assert decision(MeanProbability(), logits, 2) == [B]
    assert decision(MaxVote(), logits, 2) == [A]


def test_mean_probability_of_saturated_members_stays_finite() -> None:
    logits = torch.tensor([[[1e4, -1e4]], [[1e4, 0.0]]])
    np.testing.assert_allclose(MeanProbability()(logits, None).numpy(), [[0.0, -1e4 - np.log(2)]], rtol=1e-6)


# Distances that the softmax rounds away, and others that it saturates on.
logit = st.sampled_from([0.0, -1e-30, 1e-30, 1.0, 1.0 + 2**-23, 1e4, -1e4, 9999.0, 1e-8, 16.0]) | st.floats(
    -1e4, 1e4, width=32
)


@st.composite
def elections(draw: st.DrawFn) -> tuple[Tensor, int | None]:
    """Logits ``(M, 3, K)`` of up to 7 members for up to 5 classes, and a leader or none."""
    members, classes = draw(st.integers(1, 7)), draw(st.integers(2, 5))
    rows = draw(st.lists(logit, min_size=members * classes, max_size=members * classes))
    leader = draw(st.none() | st.integers(0, members - 1))
    logits = torch.tensor(rows).view(members, 1, classes)
    return torch.cat([logits, logits.flip(-1), logits.roll(1, -1)], 1), leader


@settings(deadline=None, max_examples=100)
@given(elections())
def test_the_argmax_is_the_vote(election: tuple[Tensor, int | None]) -> None:
    logits, leader = election
    for image, winner in enumerate(decision(MaxVote(), logits, leader)):
        rows = logits[:, image].double().numpy()
        tied = favourites(rows)
        assert winner in tied
        if leader is not None and int(rows[leader].argmax()) in tied:
            assert winner == int(rows[leader].argmax())
        else:
            mean = softmax(rows).mean(0)
            assert mean[winner] >= max(mean[choice] for choice in tied) - 1e-6


@settings(deadline=None, max_examples=40)
@given(elections())
def test_rows_are_probabilities(election: tuple[Tensor, int | None]) -> None:
    logits, leader = election
    for rule in (MaxVote(), MeanProbability()):
        out = rule(logits, leader)
        assert out.shape == logits.shape[1:]
        assert not out.isnan().any()
        total = out.exp().sum(1)
        torch.testing.assert_close(total, torch.ones_like(total), atol=1e-5, rtol=0)


@settings(deadline=None, max_examples=40)
@given(elections())
def test_a_single_member_decides_as_it_would_alone(election: tuple[Tensor, int | None]) -> None:
    alone = election[0][:1]
    assert decision(MaxVote(), alone, 0) == alone[0].argmax(1).tolist()


def test_the_vote_is_right_for_logits_that_the_softmax_makes_equal() -> None:
    logits = torch.tensor([[[-1e-30, 0.0]]])
    assert torch.equal(*logits.log_softmax(-1)[0].T)
    out = MaxVote()(logits, 0)
    assert out.argmax(1).tolist() == [1]
    torch.testing.assert_close(out, torch.full((1, 2), 0.5).log())


# -- Gradients


def gradient(rule: Rule, logits: Tensor, leader: int | None, choice: int) -> Tensor:
    logits = logits.detach().requires_grad_()
    (grad,) = torch.autograd.grad(rule(logits, leader)[:, choice].sum(), logits)
    return grad


@pytest.mark.parametrize("choice", range(4))
def test_outvoted_members_get_no_gradient_and_voters_that_of_their_log_mean(choice: int) -> None:
    logits = ballot((A, 1), (B, 5), (A, 3)).double()
    grad = gradient(MaxVote(), logits, 1, choice)
    voters = logits[[0, 2]].requires_grad_()
    (expected,) = torch.autograd.grad(voters.softmax(-1).mean(0).log()[0, choice], voters)
    assert torch.equal(grad[1], torch.zeros(1, 4, dtype=torch.float64))
    torch.testing.assert_close(grad[[0, 2]], expected)
    assert float(grad[0].abs().max()) > 0.01


def test_a_split_gives_the_whole_gradient_to_the_full_precision_member() -> None:
    grad = gradient(MaxVote(), ballot((A, 5), (B, 5), (C, 1)), 2, C)
    assert not grad[:2].any()
    p = ballot((C, 1)).softmax(-1)[0, 0]
    torch.testing.assert_close(grad[2, 0], torch.eye(4)[C] - p)


def test_every_member_has_a_part_in_the_gradient_of_the_mean_probability() -> None:
    logits = ballot((A, 1), (B, 5), (A, 3)).double()
    grad = gradient(MeanProbability(), logits, None, A)
    p = logits.softmax(-1)[:, 0]  # (M, K)
    expected = p[:, :1] * (torch.eye(4)[A] - p) / p[:, A].sum()
    torch.testing.assert_close(grad[:, 0], expected)


@settings(deadline=None, max_examples=40)
@given(elections(), st.integers(0, 1))
def test_gradients_are_finite_and_sum_to_zero(election: tuple[Tensor, int | None], choice: int) -> None:
    """A constant added to a member's logits changes nothing."""
    logits, leader = election
    for rule in (MaxVote(), MeanProbability()):
        grad = gradient(rule, logits, leader, choice)
        assert grad.isfinite().all()
        assert float(grad.sum(-1).abs().max()) < 1e-5


@settings(deadline=None, max_examples=40)
@given(elections())
def test_voters_alone_have_a_gradient(election: tuple[Tensor, int | None]) -> None:
    logits, leader = election
    winner = MaxVote()(logits, leader).argmax(1)
    outvoted = logits.argmax(-1) != winner
    for choice in range(logits.shape[-1]):
        assert not gradient(MaxVote(), logits, leader, choice)[outvoted].any()


def test_a_lifted_winner_keeps_its_gradient() -> None:
    logits = torch.tensor([[[-1e-30, 0.0]]])
    torch.testing.assert_close(gradient(MaxVote(), logits, 0, 1), torch.tensor([[[-0.5, 0.5]]]))
    torch.testing.assert_close(gradient(MaxVote(), logits, 0, 0), torch.tensor([[[0.5, -0.5]]]))


# -- The module


def member(text: str | None, seed: int = 0) -> nn.Module:
    """A network for images ``(N, 1, 2, 2)`` and three classes."""
    torch.manual_seed(seed)
    last = nn.Linear(4, 3) if text is None else QuantLinear(4, 3, precision=Precision.parse(text))
    return nn.Sequential(nn.Flatten(), last)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        pytest.param(["w2a4", "w4a2", None], 2, id="as-released"),
        pytest.param([None, "w2a4"], 0, id="first"),
        pytest.param(["w2a4", None, None], 1, id="several-the-first-leads"),
        pytest.param(["w2a4", "w4a32", "w32a4"], None, id="none"),
        pytest.param(["w2a4", "fp"], 1, id="quantized-layer-of-32-bits"),
        pytest.param([None], 0, id="single"),
    ],
)
def test_the_leader_is_the_first_full_precision_member(texts: list[str | None], expected: int | None) -> None:
    assert Ensemble([member(text) for text in texts]).leader == expected


class Says(nn.Module):
    """A full-precision member whose logits are given."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([logits], dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), -1)


def test_of_several_full_precision_members_the_first_decides() -> None:
    low = member("w2a4")
    assert Ensemble([Says(0, 0, 1), Says(9, 0, 0)])(torch.zeros(1)).argmax(1).tolist() == [C]
    assert Ensemble([Says(9, 0, 0), Says(0, 0, 1)])(torch.zeros(1)).argmax(1).tolist() == [A]
    assert Ensemble([low, Says(0, 0, 1), Says(9, 0, 0)]).leader == 1


def test_the_default_rule_is_the_vote() -> None:
    assert Ensemble([member(None)]).rule == MaxVote()


@pytest.mark.parametrize("rule", [MaxVote(), MeanProbability()], ids=repr)
def test_the_ensemble_applies_its_rule_to_its_members_logits(rule: Rule) -> None:
    members = [member("w2a4", 0), member("w4a2", 1), member(None, 2)]
    ensemble, x = Ensemble(members, rule), torch.rand(8, 1, 2, 2)
    logits = ensemble.member_logits(x)
    assert logits.shape == (3, 8, 3)
    for single, expected in zip(logits, members, strict=True):
        assert torch.equal(single, expected(x))
    assert torch.equal(ensemble(x), rule(logits, 2))
    assert torch.equal(ensemble(x), ensemble(x))


@pytest.mark.parametrize("rule", [MaxVote(), MeanProbability()], ids=repr)
def test_the_gradient_reaches_the_image(rule: Rule) -> None:
    ensemble = Ensemble([member("w2a4", 0), member("w4a2", 1), member(None, 2)], rule)
    x = torch.rand(8, 1, 2, 2).requires_grad_()
    ensemble(x)[:, 0].sum().backward()
    assert x.grad is not None
    assert (x.grad.flatten(1).abs().sum(1) > 0).all()


def test_members_are_part_of_the_state() -> None:
    keys = Ensemble([member("w2a4"), member(None)]).state_dict()
    assert list(keys) == ["members.0.1.weight", "members.0.1.bias", "members.1.1.weight", "members.1.1.bias"]


def test_an_empty_ensemble() -> None:
    with pytest.raises(InputError, match=r"at least one member.*none"):
        Ensemble([])


class Returns(nn.Module):
    """Returns anything, made of the images."""

    def __init__(self, output: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> object:
        return self.output(x.flatten(1))


@pytest.mark.parametrize("rule", [MaxVote(), MeanProbability(), MeanLogits()])
@pytest.mark.parametrize(
    ("output", "sentence"),
    [
        (lambda y: (y, None), r"member 1 must return logits \(N, K\), got a tuple: wrap it"),
        (lambda y: {"logits": y}, r"member 1 .*got a dict"),
        (lambda y: None, r"member 1 .*got a NoneType"),
        (lambda y: y.numpy(), r"member 1 .*got a ndarray"),
        (lambda y: y[:, :2], r"same classes, got \(2, 3\) from member 0 and \(2, 2\) from member 1"),
        (lambda y: y.argmax(1), r"got \(2, 3\) from member 0 and \(2,\) from member 1"),
    ],
)
def test_a_member_that_returns_something_else_is_named(
    output: Callable[[Tensor], object], sentence: str, rule: Rule
) -> None:
    ensemble = Ensemble([nn.Flatten(), Returns(output)], rule)
    with pytest.raises(InputError, match=sentence):
        ensemble(torch.rand(2, 3, 1, 1))


def test_its_text_names_the_rule_which_decides_what_it_computes() -> None:
    members = [nn.Flatten(), nn.Flatten()]
    assert "rule=MaxVote()" in repr(Ensemble(members))
    assert "rule=MeanProbability()" in repr(Ensemble(members, MeanProbability()))


# -- Transforms of functions


def small_ensemble(rule: Rule) -> Ensemble:
    torch.manual_seed(0)
    bits = [Precision.parse("w2a2"), Precision.parse("w4a2"), Precision()]
    members = [nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), QuantLinear(8, 4, precision=b)) for b in bits]
    return Ensemble(members, rule).eval()


RULES = pytest.mark.parametrize("rule", [MaxVote(), MeanProbability(), MeanLogits()], ids=str)


@RULES
def test_vectorized_gradients_equal_the_loop_over_images(rule: Rule) -> None:
    ensemble, x, y = small_ensemble(rule), torch.rand(6, 3, 2, 2), torch.arange(6) % 4

    def loss(image: Tensor, label: Tensor) -> Tensor:
        return nn.functional.cross_entropy(ensemble(image[None]), label[None])

    together = torch.vmap(torch.func.grad(loss))(x, y)
    one_by_one = torch.stack([torch.func.grad(loss)(image, label) for image, label in zip(x, y, strict=True)])
    torch.testing.assert_close(together, one_by_one)
    assert together.flatten(1).any(1).all()


@RULES
def test_forward_mode_equals_reverse_mode(rule: Rule) -> None:
    ensemble, x = small_ensemble(rule), torch.rand(5, 3, 2, 2)
    direction = torch.randn_like(x)
    jacobian = torch.vmap(torch.func.jacrev(lambda image: ensemble(image[None])[0]))(x)  # (N, K, C, H, W)
    logits, tangent = torch.func.jvp(ensemble, (x,), (direction,))
    assert torch.equal(logits, ensemble(x))
    torch.testing.assert_close(tangent, (jacobian * direction.unsqueeze(1)).flatten(2).sum(2))
    torch.testing.assert_close(torch.vmap(torch.func.jacfwd(lambda image: ensemble(image[None])[0]))(x), jacobian)
    assert jacobian.any()


def test_a_lifted_winner_has_the_gradient_it_had() -> None:
    """Two classes whose log-probabilities round to one number; the vote is for the second."""
    logits = torch.tensor([[[0.0, 1e-9, -9.0]]])
    rule = MaxVote()
    assert rule(logits, None).argmax(1).item() == 1
    for differentiate in (torch.func.jacfwd, torch.func.jacrev):
        found = differentiate(lambda z: rule(z, None))(logits)
        expected = differentiate(lambda z: z[0].log_softmax(-1))(logits)
        torch.testing.assert_close(found, expected)


def test_jvp_inside_of_another_level_raises_torch_s_own_error_as_documented() -> None:
    ensemble, x = Ensemble([nn.Flatten(), nn.Flatten()]), torch.rand(2, 1, 1, 3)
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match="forward mode AD"):
        torch.func.jvp(ensemble, (x,), (x,))
