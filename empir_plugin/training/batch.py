"""The training batch an objective receives, the loss output it returns, and the loss on labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin._files.tables import check_positive
from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import Ensemble


class LossOutput(NamedTuple):
    """Loss of a network on one batch, with the logits it was computed from.

    Args:
        loss: The loss to minimize, a scalar with a gradient.
        logits: Logits ``(N, K)`` for the images trained on, which may be attacked ones.
    """

    loss: Tensor
    logits: Tensor


def check_gce_q(q: float, label_smoothing: float) -> None:
    """Check the q of a generalized cross-entropy; it is undefined for smoothed labels.

    Raises:
        InputError: If q lies outside [0, 1], or both q and the label smoothing are above 0.
    """
    if not 0 <= q <= 1:
        raise InputError(f"gce_q must lie in [0, 1], got {q!r}")
    if q and label_smoothing:
        raise InputError(f"gce_q needs hard labels, got label_smoothing {label_smoothing!r}: set one of them to 0")


@dataclass(frozen=True)
class Criterion:
    """The mean cross-entropy between a network's output and the labels, or the bounded generalized cross-entropy.

    With ``gce_q`` it is the generalized cross-entropy ``(1 - p**q) / q`` of https://arxiv.org/abs/1805.07836, equation
    6, where p is the probability of the label. It tends to the cross-entropy as q goes to 0 and equals ``1 - p`` at 1.
    Each image's gradient is that of its cross-entropy times ``p**q``, so badly misclassified images count less.

    Args:
        label_smoothing: Share of the target that is spread evenly over all classes, in [0, 1).
        member_share: For an ensemble: share of the loss that is the mean of the members' own cross-entropies, in
            [0, 1]. The rest is the cross-entropy of their common decision, in which a member's gradient shrinks as the
            others become more confident.
        temperature: Divisor of the logits.
        gce_q: The q of the generalized cross-entropy, in [0, 1]; 0 for the cross-entropy itself.

    Raises:
        InputError: If a share or ``gce_q`` lies outside its range, the temperature is not above 0, ``gce_q`` is
            combined with label smoothing, or ``member_share`` is set for a network that is no ensemble.

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

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> LossOutput:
        """Compute the loss on images ``(N, C, H, W)`` with labels ``(N,)``."""
        if not self.member_share:
            logits = model(x)
            return LossOutput(self._loss(logits, y), logits)
        if not isinstance(model, Ensemble):
            raise InputError(f"member_share is for ensembles, got a {type(model).__name__}: set it to 0")
        member_logits = model.member_logits(x)  # (M, N, K)
        logits = model.rule(member_logits, model.leader)  # (N, K)
        member_loss = torch.stack([self._loss(each, y) for each in member_logits]).mean()
        return LossOutput(torch.lerp(self._loss(logits, y), member_loss, self.member_share), logits)

    def _loss(self, logits: Tensor, y: Tensor) -> Tensor:
        scaled = logits if self.temperature == 1 else logits / self.temperature
        if not self.gce_q:
            return F.cross_entropy(scaled, y, label_smoothing=self.label_smoothing)
        q = self.gce_q
        return -torch.expm1(-q * F.cross_entropy(scaled, y, reduction="none")).mean() / q


cross_entropy = Criterion()


@dataclass(frozen=True, eq=False)
class TrainingBatch:
    """One batch of images, with everything else an objective needs in one training step.

    Args:
        x: Augmented images ``(N, C, H, W)`` in [0, 1].
        y: True labels ``(N,)``.
        criterion: The loss on the labels.
        seed: Seed of all randomness in this step, different in every step.
        progress: Share of all training steps completed after this one, in (0, 1].
    """

    x: Tensor
    y: Tensor
    criterion: Criterion = cross_entropy
    seed: int = 0
    progress: float = 1.0
