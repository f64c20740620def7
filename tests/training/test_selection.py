"""Each member gets the weights that are better on the held-out images."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.models.ensemble import Ensemble, MeanProbability
from empir_plugin.training.loop import TrainedNetwork
from empir_plugin.training.recipe import HoldOut
from empir_plugin.training.selection import measure, select_weights


class Brighter(nn.Module):
    """Class 1 if the pixel is above the threshold; with a sign of -1 always wrong, with 0 always class 0."""

    def __init__(self, sign: float, threshold: float = 0.5) -> None:
        super().__init__()
        self.sign = nn.Parameter(torch.tensor(sign))
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        score = 8 * self.sign * (x.flatten(1).mean(1) - self.threshold)
        return torch.stack([torch.zeros_like(score), score], 1)


def _pixels(*values: int) -> ImageSet:
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageSet("mnist", "train", images, (images.flatten() > 127).long(), ("dark", "bright"))


DATA = _pixels(10, 100, 140, 250)
PLAIN = HoldOut(images=4)


def _trained(last: list[float], average: list[float]) -> TrainedNetwork:
    def network(signs: list[float]) -> nn.Module:
        return Ensemble([Brighter(sign) for sign in signs], MeanProbability())

    return TrainedNetwork(network(last), network(average), ())


def test_accuracy_is_measured_clean_and_under_attack() -> None:
    score = measure(Brighter(1.0), DATA, HoldOut(4, Threat.parse("Linf:0.2")), [False])
    assert (score.clean, score.robust) == (1.0, 0.5), "an attack of 0.2 turns 100 and 140, not 10 and 250"
    assert measure(Brighter(0.0), DATA, PLAIN, [False]).robust == 0.5
    assert measure(Brighter(-1.0), DATA, HoldOut(4, Threat.parse("Linf:0.2")), [False]).robust == 0.0


def test_each_member_gets_its_better_weights() -> None:
    chosen = select_weights(_trained([1.0, -3.0], [-3.0, 1.0]), (0.9, 0.9), DATA, PLAIN)
    assert [score.averaged for score in chosen.scores] == [(True, True), (False, True), (False, False)]
    assert [score.robust for score in chosen.scores] == [0.0, 1.0, 0.0]
    assert [member.sign.item() for member in chosen.model.members] == [1.0, 1.0]  # type: ignore[union-attr]


def test_averages_are_kept_where_nothing_is_better() -> None:
    chosen = select_weights(_trained([1.0, 1.0], [2.0, 2.0]), (0.9, 0.9), DATA, PLAIN)
    assert [member.sign.item() for member in chosen.model.members] == [2.0, 2.0]  # type: ignore[union-attr]


def test_a_member_without_an_average_keeps_its_last_weights() -> None:
    chosen = select_weights(_trained([1.0, -1.0], [3.0, 2.0]), (0.9, 0.0), DATA, PLAIN)
    assert chosen.model.members[1].sign.item() == -1.0  # type: ignore[union-attr,index]
    assert len(chosen.scores) == 2


def test_without_images_the_averages_are_taken() -> None:
    chosen = select_weights(_trained([1.0, 1.0], [-1.0, -1.0]), (0.9, 0.0), None, None)
    assert [member.sign.item() for member in chosen.model.members] == [-1.0, 1.0]  # type: ignore[union-attr]
    assert chosen.scores == ()


def test_a_single_network_comes_back_as_one() -> None:
    chosen = select_weights(TrainedNetwork(Brighter(1.0), Brighter(-1.0), ()), (0.9,), DATA, PLAIN)
    assert isinstance(chosen.model, Brighter)
    assert chosen.model.sign.item() == 1.0
