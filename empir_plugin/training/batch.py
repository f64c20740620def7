"""What an objective is given in one training step, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin._files.tables import check_positive
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble


class Fit(NamedTuple):
    """How a network does on one batch.

    Args:
        loss: What training lowers, one number with a gradient.
        logits: Logits ``(N, K)`` for the images it was taught with, attacked ones for instance.
    """

    loss: Tensor
    logits: Tensor


def check_gce_q(q: float, label_smoothing: float) -> None:
    """Refuse a generalized cross-entropy that is none, or that smoothed labels leave undefined.

    Raises:
        InputError: If q lies outside [0, 1], or is above 0 beside smoothed labels.
    """
    if not 0 <= q <= 1:
        raise InputError(f"gce_q must lie in [0, 1], got {q!r}")
    if q and label_smoothing:
        raise InputError(f"gce_q is for labels that are certain, got label_smoothing {label_smoothing!r}: set one to 0")


@dataclass(frozen=True)
class Criterion:
    """The mean cross-entropy between a network's output and the labels, or its bounded form.

    With ``gce_q`` it is the generalized cross-entropy ``(1 - p**q) / q`` of https://arxiv.org/abs/1805.07836, equation
    6, p being the probability of the label: the cross-entropy as q goes to 0, ``1 - p`` at 1. An image's gradient is
    that of its cross-entropy times ``p**q``: the less, the more hopeless the image is.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes.
        member_share: For an ensemble: share of the loss that is the mean of the members' own cross-entropies. The
            rest is that of their common decision, which teaches a member the less the surer the others are.
        temperature: What the logits are divided by.
        gce_q: The q of the generalized cross-entropy; 0 for the cross-entropy itself.

    Raises:
        InputError: If a share or ``gce_q`` lies outside [0, 1], the temperature is not above 0, labels are both
            smoothed and bounded, or a network that is no ensemble is asked for its members.

    Example:
        >>> Criterion()(nn.Flatten(), torch.zeros(2, 1, 1, 4), torch.tensor([0, 3])).loss
        tensor(1.3863)
        >>> Criterion(gce_q=1.0)(nn.Flatten(), torch.zeros(2, 1, 1, 4), torch.tensor([0, 3])).loss
        tensor(0.7500)
    """

    label_smoothing: float = 0.0
    member_share: float = 0.0
    temperature: float = 1.0
    gce_q: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise InputError(f"label_smoothing must lie in [0, 1), got {self.label_smoothing!r}")
        if not 0 <= self.member_share <= 1:
            raise InputError(f"member_share must lie in [0, 1], got {self.member_share!r}")
        check_positive("temperature", self.temperature)
        check_gce_q(self.gce_q, self.label_smoothing)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Fit:
        """Measure on images ``(N, C, H, W)`` with labels ``(N,)``."""
        if not self.member_share:
            logits = model(x)
            return Fit(self._distance(logits, y), logits)
        if not isinstance(model, Ensemble):
            raise InputError(f"member_share is for ensembles, got a {type(model).__name__}: set it to 0")
        of_members = model.member_logits(x)  # (M, N, K)
        logits = model.rule(of_members, model.leader)
        own = torch.stack([self._distance(one, y) for one in of_members]).mean()
        return Fit(torch.lerp(self._distance(logits, y), own, self.member_share), logits)

    def _distance(self, logits: Tensor, y: Tensor) -> Tensor:
        scaled = logits if self.temperature == 1 else logits / self.temperature
        if not self.gce_q:
            return F.cross_entropy(scaled, y, label_smoothing=self.label_smoothing)
        q = self.gce_q
        return -torch.expm1(-q * F.cross_entropy(scaled, y, reduction="none")).mean() / q


cross_entropy = Criterion()


@dataclass(frozen=True, eq=False)
class Lesson:
    """One training step, as an objective sees it.

    Args:
        x: Images ``(N, C, H, W)`` in [0, 1], augmented.
        y: True labels ``(N,)``.
        criterion: What tells how far an output is from the labels.
        seed: Of everything random in this step; another one in every step.
        progress: Share of all steps that is done after this one, in (0, 1].
    """

    x: Tensor
    y: Tensor
    criterion: Criterion = cross_entropy
    seed: int = 0
    progress: float = 1.0
