"""Averaged or last weights? Every member's are chosen on images kept back from training."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from empir_plugin.attacks.gradient import pgd
from empir_plugin.data.image_set import ImageSet
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.training.adversary import as_attacked
from empir_plugin.training.loop import Trained, parts_of
from empir_plugin.training.recipe import HoldOut

_BATCH = 250


@dataclass(frozen=True)
class Score:
    """Accuracy on the images kept back.

    Args:
        averaged: For every member, whether it had its averaged weights.
        clean: Share of the images classified correctly.
        robust: Share of them also classified correctly under attack; the same as ``clean`` without a threat.
    """

    averaged: tuple[bool, ...]
    clean: float
    robust: float


@dataclass(frozen=True, eq=False)
class Selection:
    """A network with its weights chosen.

    Args:
        model: The network.
        scores: Of all choices that were tried, in their order; none if no image was kept back.
    """

    model: nn.Module
    scores: tuple[Score, ...] = ()


def select(trained: Trained, decays: tuple[float, ...], data: ImageSet | None, holdout: HoldOut | None) -> Selection:
    """Choose the weights of every member that has an average.

    All averages are tried first; then, member by member, the last weights, kept if the robust accuracy rises. Without
    images, all averages are taken.

    Args:
        trained: Network with last and with averaged weights.
        decays: Of the averages; a member with 0 has none.
        data: Images kept back.
        holdout: What to measure on them.
    """
    picks = [decay > 0 for decay in decays]
    if data is None or holdout is None:
        return Selection(_composed(trained, picks))
    best = measure(_composed(trained, picks), data, holdout, picks)
    scores = [best]
    for i in [i for i, pick in enumerate(picks) if pick]:
        other = [pick and j != i for j, pick in enumerate(best.averaged)]
        scores.append(measure(_composed(trained, other), data, holdout, other))
        best = max(best, scores[-1], key=lambda score: (score.robust, score.clean))
    return Selection(_composed(trained, best.averaged), tuple(scores))


def measure(model: nn.Module, data: ImageSet, holdout: HoldOut, averaged: list[bool]) -> Score:
    """Accuracy of a network on images kept back, clean and under PGD; the network is left as it was."""
    device = next(model.parameters()).device
    attack, clean, robust = pgd(holdout.steps), 0, 0
    with as_attacked(model):
        for start in range(0, len(data), _BATCH):
            x, y = (part.to(device) for part in data.batch(start, min(start + _BATCH, len(data))))
            x = x.contiguous(memory_format=torch.channels_last)
            right = _right(model, x, y)
            clean += int(right.sum())
            if holdout.threat is not None:
                x, y = x[right], y[right]
                right = _right(model, attack(model, x, y, holdout.threat, seed=start), y)
            robust += int(right.sum())
    return Score(tuple(averaged), clean / len(data), robust / len(data))


@torch.no_grad()
def _right(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return model(x).argmax(1) == y


def _composed(trained: Trained, picks: list[bool] | tuple[bool, ...]) -> nn.Module:
    pairs = zip(parts_of(trained.average), parts_of(trained.last), picks, strict=True)
    parts = [average if pick else last for average, last, pick in pairs]
    return Ensemble(parts, trained.last.rule) if isinstance(trained.last, Ensemble) else parts[0]
