"""The mu-law: known values, selected layers, and masked gradients."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from empir_plugin.attacks.gradient import pgd
from empir_plugin.attacks.losses import Loss, cross_entropy, margin
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.models.layers import QuantLinear, bake_
from empir_plugin.models.mu_law import Beyond, mu_law, mu_law_
from empir_plugin.models.quantize import Precision


def network(seed: int = 0, scale: float = 1.0) -> nn.Sequential:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter *= scale
    return model.eval()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


# -- The function


def test_values_by_hand() -> None:
    w = torch.tensor([-1.0, -1 / 17, 0.0, 1 / 85, 3 / 255, 15 / 255, 63 / 255, 1.0])
    expected = torch.tensor([-1.0, -0.5, 0.0, 0.25, 0.25, 0.5, 0.75, 1.0])  # ln 4, 16, 64 and 256 are 1 to 4 of ln 4
    torch.testing.assert_close(mu_law(w), expected)


@pytest.mark.parametrize(("w", "gain"), [(0.05, 9.453), (0.2, 3.563), (1.0, 1.0)])
def test_small_weights_gain_most(w: float, gain: float) -> None:
    assert float(mu_law(torch.tensor(w))) / w == pytest.approx(gain, abs=1e-3)


def test_the_slope_at_zero_is_46() -> None:
    assert float(mu_law(torch.tensor(1e-7, dtype=torch.float64))) / 1e-7 == pytest.approx(255 / math.log(256), rel=1e-4)


@given(st.floats(-1, 1), st.floats(0.01, 1e4))
def test_equation_3b_undoes_it(w: float, mu: float) -> None:
    y = float(mu_law(torch.tensor(w, dtype=torch.float64), mu))
    assert -1 <= y <= 1
    assert math.copysign(((1 + mu) ** abs(y) - 1) / mu, y) == pytest.approx(w, abs=1e-9)


@pytest.mark.parametrize("mu", [0, -1, math.inf, math.nan])
def test_bad_mu(mu: float) -> None:
    for refused in (lambda: mu_law(torch.zeros(2), mu), lambda: mu_law_(network(), mu=mu)):
        with pytest.raises(InputError, match=r"mu .*above 0"):
            refused()


@pytest.mark.parametrize("bad", [1.5, -1.5, math.nan])
def test_numbers_beyond_one_are_refused(bad: float) -> None:
    with pytest.raises(InputError, match=r"\[-1, 1\].*(1.5|nan).*scale or clamp"):
        mu_law(torch.tensor([0.5, bad]))


# -- On layers


@pytest.mark.parametrize(
    ("layers", "names"),
    [(1, ("5",)), (2, ("3", "5")), (3, ("0", "3", "5")), (["0", "5"], ("0", "5")), ("*", ("0", "3", "5"))],
)
def test_chosen_weights_are_mapped_and_nothing_else(layers: Any, names: tuple[str, ...]) -> None:
    model = network()
    before = weights(model)
    assert mu_law_(model, layers) == names
    for key, value in model.state_dict().items():
        mapped = key in {f"{name}.weight" for name in names}
        assert torch.equal(value, mu_law(before[key]) if mapped else before[key]), key


def test_weights_beyond_one_are_refused_clamped_or_scaled() -> None:
    layer = nn.Linear(3, 1, bias=False)
    wide = torch.tensor([[-2.0, 0.5, 2 / 17]])
    for beyond, expected in (
        ("clamp", [-1.0, math.log(128.5) / math.log(256), math.log(1 + 510 / 17) / math.log(256)]),
        (Beyond.SCALE, [-2.0, 2 * math.log(1 + 255 / 4) / math.log(256), 1.0]),
    ):
        layer.weight.data = wide.clone()
        mu_law_(layer, beyond=beyond)
        torch.testing.assert_close(layer.weight.detach(), torch.tensor([expected]))
    model = nn.Sequential(nn.Linear(3, 3), layer)
    layer.weight.data = wide.clone()
    before = weights(model)
    with pytest.raises(InputError, match=r"size 2.*beyond='scale' or 'clamp'"):
        mu_law_(model, 2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "left as it was"


def test_scaling_is_the_law_itself_where_no_weight_lies_beyond_one() -> None:
    plain, scaled = network(), network()
    mu_law_(plain, 3)
    mu_law_(scaled, 3, beyond="scale")
    assert all(torch.equal(value, weights(plain)[key]) for key, value in scaled.state_dict().items())


def test_quantized_layers_are_mapped_and_then_quantized() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(QuantLinear(6, 4, precision=Precision(3, 32), scale="max")).eval()
    mapped = model[0].weight_quantizer(mu_law(model[0].weight.detach()))
    bake_(model)
    assert not torch.equal(model[0].quantized_weight(), mapped)
    mu_law_(model)
    assert torch.equal(model[0].quantized_weight(), mapped)


def test_every_member_of_an_ensemble_is_mapped() -> None:
    assert mu_law_(Ensemble([network(), network(1)])) == ("members.0.5", "members.1.5")
    assert mu_law_(Ensemble([nn.Linear(2, 2)])) == ("members.0",)


@pytest.mark.parametrize("layers", [0, 4, -1])
def test_bad_number_of_layers(layers: int) -> None:
    with pytest.raises(InputError, match=rf"layers .*1 to 3.* {layers}"):
        mu_law_(network(), layers)


RECOMPUTED = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
    "pruned at random": lambda layer: prune.random_unstructured(layer, "weight", 0.5),
    "weight-normed": torch.nn.utils.weight_norm,
    "spectral-normed": torch.nn.utils.spectral_norm,
    "parametrized": torch.nn.utils.parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("change", RECOMPUTED.values(), ids=RECOMPUTED)
def test_weights_that_are_recomputed_are_refused_and_no_other_layer_takes_their_place(change: Any) -> None:
    model = network()
    change(model[5])
    before = weights(model)
    for layers in (1, 2, "5"):
        with pytest.raises(InputError, match=r"^5 cannot be mapped .*recomputed.*prune\.remove"):
            mu_law_(model, layers)
    assert all(torch.equal(value, before[name]) for name, value in weights(model).items())
    assert mu_law_(model, "3") == ("3",)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_torchscript_is_refused_by_its_name() -> None:
    with pytest.raises(InputError, match=r"the model is TorchScript.*pass the module it was made from"):
        mu_law_(torch.jit.trace(network(), torch.rand(1, 1, 6, 6)))


def test_bad_names() -> None:
    with pytest.raises(InputError, match=r"'fc'.* 0, 3, 5"):
        mu_law_(network(), ["fc"])
    with pytest.raises(InputError, match="nothing to map"):
        mu_law_(nn.Flatten())
    with pytest.raises(InputError, match=r"beyond .*refuse, clamp, scale.*'wrap'"):
        mu_law_(network(), beyond="wrap")


# -- Attacked


def test_pgd_on_an_ensemble_sees_the_mapped_weights_at_the_raw_image() -> None:
    x = torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    mapped = network()
    mu_law_(mapped, 2)
    ensemble = Ensemble([mapped, network(1)], MeanProbability())
    y = ensemble(x).argmax(1)
    found = pgd(10)(ensemble, x, y, Threat.parse("Linf:0.5"))
    assert (ensemble(found).argmax(1) != y).any()
    assert torch.equal(pgd(10)(ensemble, x, y, Threat.parse("Linf:0.5")), found)


def test_the_cross_entropy_loses_its_gradient_and_the_margin_does_not() -> None:
    """Weights of 1/255 become 32 times as large, and a difference of logits of 6 becomes one of 200."""
    layer, x, y = nn.Linear(2, 2, bias=False), torch.tensor([[[[0.9, 0.1]]]]), torch.tensor([0])
    layer.weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 255
    model = nn.Sequential(nn.Flatten(), layer)
    mapped = copy.deepcopy(model)
    mu_law_(mapped)

    def slope(network: nn.Module, loss: Loss) -> float:
        image = x.clone().requires_grad_(True)
        return float(torch.autograd.grad(loss(1000 * network(image), y).sum(), image)[0].abs().max())

    assert slope(model, cross_entropy) > 0.01
    assert slope(mapped, cross_entropy) == 0
    assert slope(mapped, margin) == pytest.approx(slope(model, margin) * 255 / 8)
