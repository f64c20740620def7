from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.gradient import bim, pgd
from empir_plugin.attacks.surrogates import Through, mean_probability, parse_surrogate, plain
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.backward import BackwardRule, Soft, as_trained, clamp_min, identity, parse_backward, soft
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import QuantConv2d, QuantLinear, use_backward_rule
from empir_plugin.models.quantize import ActivationQuantizer, Precision

POINTS = [-4.0, -1.0, -0.1, -0.0, 0.0, 0.3, 1.0, 1.1, 2.0, 5.0]
RULES = [as_trained, identity, soft, Soft(3.0)]
W2A2 = Precision.parse("w2a2")


def slope(rule: BackwardRule, points: list[float]) -> list[float]:
    x = torch.tensor(points, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(rule(x).sum(), x)
    return grad.tolist()


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    conv = QuantConv2d(3, 8, 3, bias=False, precision=W2A2)
    head = QuantLinear(8 * 36, 5, precision=Precision.parse("w4a2"))
    net = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), head)
    return net.eval()


@pytest.fixture
def x() -> Tensor:
    return torch.rand(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_forward_pass_keeps_its_bits(rule: BackwardRule, bits: int) -> None:
    points = torch.cat([torch.tensor(POINTS), torch.linspace(-2, 3, 4001)])
    assert torch.equal(ActivationQuantizer(bits, rule)(points), ActivationQuantizer(bits)(points))


def test_slopes() -> None:
    assert slope(as_trained, POINTS) == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert slope(identity, POINTS) == [1.0] * 10
    found = slope(Soft(0.7), POINTS)
    expected = []
    for point in POINTS:
        s = 1 / (1 + math.exp(-max(-point, point - 1, 0) / 0.7))
        expected.append(4 * s * (1 - s))
    assert found == pytest.approx(expected, rel=1e-12)
    assert found[3:7] == [1.0] * 4


def test_soft_lies_between_the_clip_and_the_identity() -> None:
    points = torch.linspace(-3, 4, 71, dtype=torch.float64).tolist()
    for narrow, wide in zip(slope(Soft(1e-3), points), slope(as_trained, points), strict=True):
        assert narrow == pytest.approx(wide, abs=1e-9)
    assert slope(Soft(1e6), points) == pytest.approx([1.0] * 71)
    assert sorted(slope(soft, [1.0, 1.5, 2.0, 3.0]), reverse=True) == slope(soft, [1.0, 1.5, 2.0, 3.0])


@pytest.mark.parametrize("rule", [as_trained, identity, soft, Soft(0.7)], ids=str)
def test_the_backward_pass_alone_is_that_of_the_rule(rule: BackwardRule) -> None:
    points = torch.tensor(
        [*POINTS, 0.0, -0.0, 1.0, 1 + 2**-23, 1 - 2**-24, -(2.0**-149), 2.0**-149], requires_grad=True
    )
    upstream = torch.linspace(-2, 2, len(points))
    (expected,) = torch.autograd.grad(rule(points), points, upstream)
    assert torch.equal(rule.backward(upstream.clone(), points.detach()), expected)
    with torch.no_grad():
        assert torch.equal(rule.backward(upstream.clone(), points.detach()), expected)


def test_a_lower_bound_has_slope_one_at_exactly_the_bound() -> None:
    assert clamp_min(torch.tensor(POINTS), 0.3).tolist() == torch.tensor(POINTS).clamp_min(0.3).tolist()
    assert slope(lambda x: clamp_min(x, 0.3), POINTS) == [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert slope(lambda x: clamp_min(x, 0), [-0.0, 0.0]) == [1, 1]


@pytest.mark.parametrize("rule", [*RULES, pytest.param(lambda x: clamp_min(x, 0.3), id="clamp_min")], ids=str)
def test_forward_mode_has_the_same_slopes(rule: BackwardRule) -> None:
    points, ones = torch.tensor(POINTS, dtype=torch.float64), torch.ones(len(POINTS), dtype=torch.float64)
    value, tangent = torch.func.jvp(rule, (points,), (ones,))
    assert torch.equal(value, rule(points))
    assert tangent.tolist() == slope(rule, POINTS)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_transforms_of_functions_can_be_nested(rule: BackwardRule) -> None:
    def cube(x: Tensor) -> Tensor:
        return rule(x).pow(3).sum()

    x = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64)
    expected = torch.diag(6 * x)
    torch.testing.assert_close(torch.func.hessian(cube)(x), expected)
    torch.testing.assert_close(torch.func.jacfwd(torch.func.jacfwd(cube))(x), expected)
    torch.testing.assert_close(torch.func.jacrev(torch.func.jacfwd(cube))(x), expected)
    rows = torch.vmap(torch.func.jacfwd(cube))(torch.stack([x, x + 3]))
    assert torch.equal(rows[0], torch.func.grad(cube)(x))
    assert torch.equal(rows[1], torch.func.grad(cube)(x + 3))


def test_the_quantizer_uses_the_rule_and_32_bits_have_no_clip() -> None:
    assert slope(ActivationQuantizer(2, identity), POINTS) == [1.0] * 10
    for rule in RULES:
        assert slope(ActivationQuantizer(32, rule), POINTS) == [1.0] * 10


def test_inside_the_model_gradients_change_and_outputs_do_not(x: Tensor) -> None:
    model = network()
    x = (5 * x).requires_grad_(True)  # mostly beyond the clip of the first layer
    before = model(x)
    (clipped,) = torch.autograd.grad(before.sum(), x)
    with use_backward_rule(model, identity):
        inside = model(x)
    after = model(x)
    (seen,) = torch.autograd.grad(inside.sum(), x)
    (restored,) = torch.autograd.grad(after.sum(), x)
    assert torch.equal(inside, before)
    assert torch.equal(after, before)
    assert torch.equal(restored, clipped)
    assert (clipped == 0).double().mean() > 0.5
    assert (seen == 0).double().mean() < 0.1


def test_the_rule_is_reset_after_an_exception() -> None:
    model = network()
    with pytest.raises(RuntimeError, match="stop"), use_backward_rule(model, identity):
        raise RuntimeError("stop")
    assert [layer.activation_quantizer.clip for layer in model if hasattr(layer, "activation_quantizer")] == [
        as_trained,
        as_trained,
    ]


@pytest.mark.parametrize(
    "text", ["plain/identity", "mean_probability/soft", "member:1/soft:0.25", "weighted:1,0.5/clip", "voters/identity"]
)
def test_text_round_trip(text: str, x: Tensor) -> None:
    surrogate = parse_surrogate(text)
    assert str(surrogate) == text
    assert surrogate == parse_surrogate(text)
    ensemble = Ensemble([network(0), network(1)])
    bare = parse_surrogate(text.partition("/")[0])
    assert torch.equal(surrogate(ensemble, x).logits, bare(ensemble, x).logits)
    assert torch.equal(surrogate(ensemble, x).decide(), ensemble(x).argmax(1))


@pytest.mark.parametrize(
    "text", ["plain/", "plain/what", "/identity", "plain/identity/soft", "plain/soft:0", "plain/clip:1"]
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"written as one of|above 0"):
        parse_surrogate(text)


def test_soft_without_a_number_is_the_default() -> None:
    assert parse_backward("soft") == soft
    assert str(Soft(0.5)) == "soft"
    with pytest.raises(InputError, match="above 0"):
        Soft(0)


def test_a_model_without_quantized_layers_is_refused(x: Tensor) -> None:
    for model in (nn.Flatten(), lambda x: x.flatten(1), Ensemble([nn.Flatten()])):
        with pytest.raises(InputError, match="attack it with plain"):
            Through(plain, identity)(model, x)


def test_second_derivatives_pass_through(x: Tensor) -> None:
    """Gradient penalties differentiate the gradient."""
    for rule in RULES:
        x = torch.tensor([0.2, 0.9, 1.0], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(rule(x).pow(3).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(grad.sum(), x)
        torch.testing.assert_close(second, 6 * x.detach())


def saturated() -> tuple[nn.Module, Tensor, Tensor]:
    """Two classes separated by the first pixel, behind a 1-bit quantizer that sees 4 x - 1.

    The clip is flat for pixels below 1/4 and from 1/2; the decision changes at x = 3/8.
    """
    scale = nn.Conv2d(1, 1, 1)
    head = QuantLinear(1, 3, precision=Precision.parse("w32a1"))
    with torch.no_grad():
        scale.weight.fill_(4.0), scale.bias.fill_(-1.0)  # type: ignore[union-attr]
        head.weight.copy_(torch.tensor([[-1.0], [1.0], [0.0]]))
        head.bias.copy_(torch.tensor([0.5, -0.5, -9.0]))
    x = torch.tensor([0.1, 0.2, 0.6, 0.7]).view(4, 1, 1, 1)
    return nn.Sequential(scale, nn.Flatten(), head).eval(), x, torch.tensor([0, 0, 1, 1])


@pytest.mark.parametrize(("text", "broken"), [("plain", 0), ("plain/identity", 4), ("plain/soft:2", 4)])
def test_an_attack_with_another_gradient_of_the_clip_breaks_images(text: str, broken: int) -> None:
    model, x, y = saturated()
    assert torch.equal(model(x).argmax(1), y)
    adv = bim(20, surrogate=parse_surrogate(text))(model, x, y, Threat.parse("Linf:0.35"))
    assert int((model(adv).argmax(1) != y).sum()) == broken


def test_below_the_distance_no_rule_finds_anything() -> None:
    model, x, y = saturated()
    for rule in RULES:
        adv = pgd(20, surrogate=Through(plain, rule))(model, x, y, Threat.parse("Linf:0.15"))
        assert torch.equal(model(adv).argmax(1), y)


def test_autoattack_runs_through_a_rule(x: Tensor) -> None:
    ensemble = Ensemble([network(0), network(1)])
    y = ensemble(x).argmax(1)
    suite = AutoAttackSuite(attacks=("apgd-ce",), surrogate=Through(mean_probability, identity))
    result = suite.run(ensemble, x, y, Threat.parse("Linf:0.1"))
    assert torch.equal(ensemble(result.images).argmax(1) == y, result.robust["apgd-ce"])
    assert not any("dynamic" in flag for flag in result.flags)
