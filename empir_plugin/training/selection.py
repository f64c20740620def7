"""Selection between averaged and last weights, for each member, by accuracy on held-out training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from empir_plugin.attacks.gradient import pgd
from empir_plugin.data.image_set import ImageSet
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.training.adversary import attack_mode
from empir_plugin.training.loop import TrainedNetwork, parts_of
from empir_plugin.training.recipe import HoldOut

_BATCH = 250


@dataclass(frozen=True)
class Score:
    """Accuracy on the held-out images.

    Args:
        averaged: For each member, whether its averaged weights were used.
        clean: Share of the images classified correctly.
        robust: Share classified correctly under attack as well; equal to ``clean`` without a threat.
    """

    averaged: tuple[bool, ...]
    clean: float
    robust: float


@dataclass(frozen=True, eq=False)
class WeightSelection:
    """A network with the selected weights.

    Args:
        model: The network.
        scores: Scores of all combinations tried, in order; empty without held-out images.
    """

    model: nn.Module
    scores: tuple[Score, ...] = ()


def select_weights(
    trained: TrainedNetwork, decays: tuple[float, ...], data: ImageSet | None, holdout: HoldOut | None
) -> WeightSelection:
    """Select between the averaged and the last weights of each member that has an average.

    Averaged weights for all members are tried first. Then each member in turn is tried with its last weights, which
    are kept if the robust accuracy rises, or the clean accuracy at equal robust accuracy. Without held-out images,
    averaged weights are used.

    Args:
        trained: Network with last and with averaged weights.
        decays: Decay of each member's average; a member with 0 has no average.
        data: Held-out images, if any.
        holdout: Threat and steps of the attack to measure with.
    """
    picks = [decay > 0 for decay in decays]
    if data is None or holdout is None:
        return WeightSelection(_compose(trained, picks))
    best = measure(_compose(trained, picks), data, holdout, picks)
    scores = [best]
    for i in [i for i, pick in enumerate(picks) if pick]:
        other = [pick and j != i for j, pick in enumerate(best.averaged)]
        scores.append(measure(_compose(trained, other), data, holdout, other))
        best = max(best, scores[-1], key=lambda score: (score.robust, score.clean))
    return WeightSelection(_compose(trained, best.averaged), tuple(scores))


def measure(model: nn.Module, data: ImageSet, holdout: HoldOut, averaged: list[bool]) -> Score:
    """Measure clean accuracy and accuracy under PGD on held-out images; the network is left unchanged."""
    device = next(model.parameters()).device
    attack, clean, robust = pgd(holdout.steps), 0, 0
    with attack_mode(model):
        for start in range(0, len(data), _BATCH):
            x, y = (part.to(device) for part in data.batch(start, min(start + _BATCH, len(data))))
            x = x.contiguous(memory_format=torch.channels_last)
            correct = _is_correct(model, x, y)
            clean += int(correct.sum())
            if holdout.threat is not None:
                x, y = x[correct], y[correct]
                correct = _is_correct(model, attack(model, x, y, holdout.threat, seed=start), y)
            robust += int(correct.sum())
    return Score(tuple(averaged), clean / len(data), robust / len(data))


@torch.no_grad()
def _is_correct(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return model(x).argmax(1) == y


def _compose(trained: TrainedNetwork, picks: list[bool] | tuple[bool, ...]) -> nn.Module:
    pairs = zip(parts_of(trained.average), parts_of(trained.last), picks, strict=True)
    parts = [average if pick else last for average, last, pick in pairs]
    return Ensemble(parts, trained.last.rule) if isinstance(trained.last, Ensemble) else parts[0]
