"""BNN and XNOR weights: their values, codes and gradients, and how they differ from DoReFa's one bit."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from empir_plugin.errors import InputError
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.quantize import WeightQuantizer
from empir_plugin.models.weight_quantizers import OneBit, SignWeightQuantizer, clip_latent_

W = torch.tensor([[-2.0, 0.5, 0.0], [0.3, -0.3, 0.6]])


def test_bnn_is_the_sign_and_zero_is_positive() -> None:
    assert SignWeightQuantizer()(W).tolist() == [[-1, 1, 1], [1, -1, 1]]


def test_xnor_has_one_mean_for_each_filter_and_dorefa_one_for_all() -> None:
    first, second = 2.5 / 3, 0.4
    expected = torch.tensor([[-first, first, first], [second, -second, second]])
    torch.testing.assert_close(SignWeightQuantizer(per_filter=True)(W), expected)
    torch.testing.assert_close(WeightQuantizer(1)(W).abs().unique(), torch.tensor([3.7 / 6]))


def test_bnn_s_gradient_stops_where_the_latent_weight_exceeds_one() -> None:
    w = W.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((SignWeightQuantizer()(w) * torch.arange(6.0).view(2, 3)).sum(), w)
    assert gradient.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_xnor_s_gradient_is_that_of_its_paper() -> None:
    w, upstream = W.clone().requires_grad_(True), torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((SignWeightQuantizer(per_filter=True)(w) * upstream).sum(), w)
    alpha, sign = W.abs().mean(1, keepdim=True), torch.where(W < 0, -1.0, 1.0)
    # d(alpha sign)/dw: alpha where |w| <= 1, and through the mean sign(w)/n times what every weight is worth.
    expected = upstream * alpha * (W.abs() <= 1) + W.sign() * (upstream * sign).mean(1, keepdim=True)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("per_filter", [False, True], ids=["bnn", "xnor"])
def test_codes_give_the_same_weights_back_bit_for_bit(per_filter: bool) -> None:
    w, rule = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(0)), SignWeightQuantizer(per_filter)
    assert torch.equal(rule.decode(rule.codes(w), rule.factor(w)), rule(w))
    assert rule.codes(w).unique().tolist() == [0, 1]
    assert rule.factor(w).shape == ((5,) if per_filter else ())


def test_latent_weights_are_clipped_only_where_a_paper_clips_them() -> None:
    def made(one_bit: str) -> nn.Sequential:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
        for parameter in model.parameters():
            nn.init.constant_(parameter, 3.0)
        quantize_(model, "w1", one_bit=one_bit)
        clip_latent_(model)
        return model

    assert [float(layer.weight.detach().max()) for layer in made("bnn").children()] == [3, 1, 3]
    assert [float(layer.weight.detach().max()) for layer in made("dorefa").children()] == [3, 3, 3]


def test_kinds_have_texts() -> None:
    assert [str(SignWeightQuantizer()), str(SignWeightQuantizer(True))] == ["bnn", "xnor"]
    with pytest.raises(InputError, match="one_bit must be one of dorefa, bnn, xnor, got 'twn'"):
        OneBit.parse("twn")
