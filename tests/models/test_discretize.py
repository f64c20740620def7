"""Input discretization: against integer arithmetic, and in networks and ensembles under attack."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.surrogates import parse_surrogate
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.identity import model_fingerprint
from empir_plugin.models.architectures import MNISTConv
from empir_plugin.models.backward import identity, soft
from empir_plugin.models.discretize import Discretized, InputDiscretizer, Levels, discretized
from empir_plugin.models.ensemble import Ensemble, MaxVote, MeanProbability
from empir_plugin.models.layers import use_backward_rule
from empir_plugin.models.quantize import Precision
from empir_plugin.zoo.quantized.architectures import network

PIXELS = torch.arange(256) / 255


def flat(*values: float) -> Tensor:
    return torch.tensor(values).view(1, 1, 1, -1)


# -- Values


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (Levels.FLOOR, [0, 0, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1, 1]),
        (Levels.CENTER, [0.125, 0.125, 0.375, 0.375, 0.625, 0.625, 0.875, 0.875]),
        (Levels.ROUND, [0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 2 / 3, 1]),
    ],
    ids=str,
)
def test_two_bits_by_hand(levels: Levels, expected: list[float]) -> None:
    edges = torch.tensor([0, 63, 64, 127, 128, 191, 192, 255]) / 255
    torch.testing.assert_close(InputDiscretizer(2, levels)(edges), torch.tensor(expected))


@pytest.mark.parametrize("bits", range(1, 9))
def test_quotients_are_those_of_whole_numbers(bits: int) -> None:
    codes = torch.tensor([pixel // 2 ** (8 - bits) for pixel in range(256)])
    floor, center = InputDiscretizer(bits)(PIXELS), InputDiscretizer(bits, Levels.CENTER)(PIXELS)
    assert torch.equal(floor, codes / (2**bits - 1))
    assert torch.equal(center, (2 * codes + 1) * 2 ** (8 - bits) / 512)
    nearest = torch.tensor([round(pixel * (2**bits - 1) / 255) for pixel in range(256)])
    assert torch.equal(InputDiscretizer(bits, Levels.ROUND)(PIXELS), nearest / (2**bits - 1))


def test_eight_bits_are_the_image() -> None:
    assert torch.equal(InputDiscretizer(8)(PIXELS), PIXELS)
    assert torch.equal(InputDiscretizer(8, Levels.ROUND)(PIXELS), PIXELS)


@pytest.mark.parametrize(("bits", "eps", "share"), [(2, 8, 48), (2, 16, 96), (4, 8, 240)])
def test_an_attacker_of_the_raw_image_changes_this_many_pixels(bits: int, eps: int, share: int) -> None:
    """Of 256 values: those no further than eps from a border between two quotients."""
    discretize = InputDiscretizer(bits)
    moved = [(discretize(PIXELS + sign * eps / 255) != discretize(PIXELS)) for sign in (1, -1)]
    assert int((moved[0] | moved[1]).sum()) == share


def test_what_is_added_to_the_discretized_image_is_taken_away_again_below_half_a_level() -> None:
    """The paper's flat columns: at 2 bits, 8 and 16 of 255 change nothing, and 32 changes every pixel but white."""
    centers = torch.tensor([32, 96, 160, 224]) / 255
    discretize = InputDiscretizer(2)
    for eps in (8, 16):
        assert torch.equal(discretize(centers + eps / 255), discretize(centers))
    assert (discretize(centers + 32 / 255) != discretize(centers)).tolist() == [True, True, True, False]


@given(st.integers(1, 8), st.sampled_from(Levels), st.lists(st.floats(0, 1, width=32), min_size=2, max_size=20))
def test_few_levels_in_order_and_in_range(bits: int, levels: Levels, pixels: list[float]) -> None:
    found = InputDiscretizer(bits, levels)(torch.tensor(sorted(pixels)))
    assert (found.diff() >= 0).all()
    assert 0 <= found.min() <= found.max() <= 1
    assert len(InputDiscretizer(bits, levels)(torch.linspace(0, 1, 2000)).unique()) == 2**bits


@given(st.integers(1, 8), st.sampled_from([Levels.FLOOR, Levels.ROUND]), st.floats(0, 1, width=32))
def test_quantizing_twice_equals_quantizing_once(bits: int, levels: Levels, pixel: float) -> None:
    discretize = InputDiscretizer(bits, levels)
    once = discretize(torch.tensor([pixel]))
    assert torch.equal(discretize(once), once)


def test_half_precision_chooses_the_levels_of_float32() -> None:
    pixels = PIXELS.to(torch.bfloat16)
    found = InputDiscretizer(4)(pixels)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, InputDiscretizer(4)(pixels.float()).to(torch.bfloat16))


# -- Gradients


def test_gradients_pass_straight_through_on_the_box_and_stop_outside_of_it() -> None:
    x = torch.tensor([-0.5, 0.0, 0.3, 1.0, 1.5], requires_grad=True)
    for levels in Levels:
        (gradient,) = torch.autograd.grad(InputDiscretizer(2, levels)(x).sum(), x)
        assert gradient.tolist() == [0, 1, 1, 1, 0]


def test_an_attacker_s_rule_applies_to_the_discretization_inside_its_context() -> None:
    model, x = Discretized(nn.Flatten(), 2), torch.tensor([[[[-0.5, 0.3, 1.5]]]], requires_grad=True)
    slopes = []
    for rule in (identity, soft):
        with use_backward_rule(model, rule):
            inside = model(x)
        assert torch.equal(inside, model(x))
        slopes.append(torch.autograd.grad(inside.sum(), x)[0].flatten())
    assert slopes[0].tolist() == [1, 1, 1]
    assert slopes[1][1] == 1 > slopes[1][0] == slopes[1][2] > 0
    assert torch.autograd.grad(model(x).sum(), x)[0].flatten().tolist() == [0, 1, 0]


def test_second_derivatives_pass_through() -> None:
    x = torch.tensor([0.2, 0.9], dtype=torch.float64, requires_grad=True)
    y = InputDiscretizer(2)(x)
    (gradient,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(gradient.sum(), x)
    torch.testing.assert_close(second, 6 * y.detach())


# -- In front of networks


def test_weights_keep_their_names_behind_a_prefix() -> None:
    bare = MNISTConv()
    model = Discretized(MNISTConv(), 3)
    model.network.load_state_dict(bare.state_dict())
    assert list(model.state_dict()) == [f"network.{key}" for key in bare.state_dict()]
    x = torch.rand(2, 1, 28, 28)
    assert torch.equal(model(x), bare(InputDiscretizer(3)(x)))


# On Python 3.13.0, and no other, torch.compile warns of slower guards: a bug of that release, python/cpython#125608.
@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0:RuntimeWarning")
@pytest.mark.skipif(torch.__version__.startswith("2.5."), reason="no torch.compile with setup_context there")
def test_copies_pickles_and_exports_compute_the_same() -> None:
    torch.manual_seed(0)
    model, x = Discretized(MNISTConv(Precision(2, 4), scale="max"), 2, "center").eval(), torch.rand(2, 1, 28, 28)
    expected = model(x)
    assert not torch.equal(expected, model.network(x))
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    assert torch.equal(torch.export.export(model, (x,)).module()(x), expected)
    assert torch.equal(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


def test_a_network_of_robustbench() -> None:
    torch.manual_seed(0)
    bare, x = network("WideResNet-10-1", num_classes=10).eval(), torch.rand(2, 3, 32, 32)
    assert torch.equal(Discretized(bare, 4)(x), bare(InputDiscretizer(4)(x)))


def test_names_in_records_contain_bits_and_levels() -> None:
    bare = nn.Flatten()
    models = [bare, Discretized(bare, 2), Discretized(bare, 3), Discretized(bare, 2, "center")]
    assert len({model_fingerprint(model) for model in models}) == 4


def test_a_network_without_weights_stays_one() -> None:
    bare = nn.Flatten()
    bare.weights_loaded = False
    assert Discretized(bare, 2).weights_loaded is False
    assert discretized(Ensemble([bare]), 2).members[0].weights_loaded is False
    assert Discretized(nn.Flatten(), 2).weights_loaded is True


def test_an_ensemble_behind_a_discretization_is_an_ensemble() -> None:
    torch.manual_seed(0)
    ensemble = Ensemble([MNISTConv(Precision(2, 4)), MNISTConv()], MaxVote()).eval()
    model, x = discretized(ensemble, 2), torch.rand(8, 1, 28, 28)
    assert isinstance(model, Ensemble)
    assert model.leader == ensemble.leader == 1
    assert not model.training
    assert torch.equal(model(x), ensemble(InputDiscretizer(2)(x)))
    assert type(ensemble.members[0]) is MNISTConv
    with pytest.raises(InputError, match=r"call discretized\(ensemble, ...\) instead"):
        Discretized(ensemble, 2)


@pytest.mark.parametrize("bits", [0, 9, -1, 2.0, "2", None])
def test_bad_bits(bits: object) -> None:
    with pytest.raises(InputError, match=r"bits of a pixel .*1 to 8"):
        InputDiscretizer(bits)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"bits of a pixel .*1 to 8"):
        discretized(nn.Flatten(), bits)  # type: ignore[arg-type]


def test_bad_levels() -> None:
    with pytest.raises(InputError, match=r"levels .*floor, center, round.*'nearest'"):
        Discretized(nn.Flatten(), 2, "nearest")


# -- Attacked


class Compare(nn.Module):
    """Classes 0 and 1: which of two pixels is the brighter."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.flatten(1).unbind(1)
        return torch.stack([left - right, right - left], 1)


IMAGE, LABEL = flat(130, 120) / 255, torch.tensor([0])


@pytest.mark.parametrize("surrogate", ["plain", "mean_probability", "member:0"])
@pytest.mark.parametrize("rule", [MaxVote(), MeanProbability()], ids=str)
def test_pgd_attacks_a_member_at_the_raw_image(surrogate: str, rule: MeanProbability | MaxVote) -> None:
    """Pixels of 130 and 120 are quotients of 2 and 1 at two bits: 9 turn them round, and 1 does nothing."""
    ensemble = Ensemble([Discretized(Compare(), 2), Discretized(Compare(), 4, "center"), Compare()], rule)
    attack = pgd(10, surrogate=parse_surrogate(surrogate))
    found = attack(ensemble, IMAGE, LABEL, Threat.parse("Linf:9/255"))
    assert ensemble(found).argmax(1) != LABEL
    left, right = (255 * found).flatten().tolist()
    assert left < right
    kept = attack(ensemble, IMAGE, LABEL, Threat.parse("Linf:1/255"))
    assert ensemble(kept).argmax(1) == LABEL
    assert torch.equal(kept, IMAGE), "an image that withstands comes back"


def test_without_the_straight_through_gradient_there_is_nothing_to_climb() -> None:
    class Hard(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return Compare()(InputDiscretizer(2)(x.detach()))

    with pytest.raises(EvaluationError, match="gives no gradient"):
        pgd(1)(Ensemble([Hard()]), IMAGE, LABEL, Threat.parse("Linf:9/255"))
