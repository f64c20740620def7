"""Rules by which an ensemble might decide, for an attacker to differentiate: like the ensemble's own, but smooth.

:class:`MeanLogits` is also a rule to decide by. Each maps member logits ``(M, N, K)`` and the index of the first
full-precision member to ``(N, K)``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from empir_plugin.errors import InputError
from empir_plugin.models.ensemble import MaxVote, MeanProbability


@dataclass(frozen=True)
class MeanLogits:
    """The mean of the members' logits ``(N, K)``. A member of large logits counts most.

    Their softmax is the members' geometric mean probability, normalised, to which one member that all but excludes a
    class can put a veto; :class:`~empir_plugin.models.ensemble.MeanProbability` is the arithmetic mean.

    Example:
        >>> MeanLogits()(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), None)
        tensor([[1.0000, 0.5000]])
    """

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Average over the members."""
        return logits.mean(0)


@dataclass(frozen=True)
class SharpenedVote:
    """Log of the mean over members of ``softmax(logits / temperature)``, ``(N, K)``.

    Low temperatures come near the share of votes; high ones bring saturated members' gradients back.

    Args:
        temperature: Above 0.
    """

    temperature: float

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the mean sharpened probability."""
        return MeanProbability()(logits / self.temperature, leader)

    def __str__(self) -> str:
        return f"sharpened_vote:{self.temperature:g}"


@dataclass(frozen=True)
class Weighted:
    """Log of the weighted mean of the members' probabilities ``(N, K)``.

    Args:
        weights: One per member, not negative, of any positive sum.

    Raises:
        InputError: If no weight is positive or one is negative, or when the ensemble has another number of members.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not sum(self.weights) > 0 or min(self.weights) < 0:
            raise InputError(f"weights must not be negative and not all zero, got {self.weights}")

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the weighted mean probability."""
        if len(self.weights) != len(logits):
            raise InputError(f"one weight per member is needed: {len(logits)}, got {len(self.weights)}")
        weights = logits.new_tensor(self.weights)
        return _log_weighted_mean(logits.log_softmax(-1), (weights / weights.sum())[:, None])

    def __str__(self) -> str:
        return "weighted:" + ",".join(f"{weight:g}" for weight in self.weights)


@dataclass(frozen=True)
class Reweighted:
    """Members weighted anew at every step, in the manner of MORA, https://arxiv.org/abs/2211.08008.

    A vote is lost member by member: the weight goes to the voters of the winning class that are nearest to giving it
    up, ``softmax(-margin / temperature)``, and none to members outvoted already. The weights count as constants in the
    gradient. (MORA's own weights follow from its smoothed vote; the idea is the same, the formula is not.)

    Args:
        temperature: Above 0, in units of a margin between log-probabilities. Low: the weakest voter alone; high: all
            voters alike.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the mean probability under the present weights."""
        log_p = logits.log_softmax(-1)
        with torch.no_grad():
            winner = MaxVote()(logits, leader).argmax(1)  # (N,)
            best, second = log_p.topk(2, dim=-1).values.unbind(-1)  # (M, N) each
            # topk breaks ties in another way than the vote does, and the winner's voters must be voters.
            margin = (best - second).masked_fill(logits.argmax(-1) != winner, float("inf"))
            weights = (-margin / self.temperature).softmax(0)
        return _log_weighted_mean(log_p, weights)

    def __str__(self) -> str:
        return f"reweighted:{self.temperature:g}"


def _log_weighted_mean(log_p: Tensor, weights: Tensor) -> Tensor:
    """Log of the sum over members of ``weights`` ``(M, N)`` or ``(M, 1)``, of sum 1, times ``exp(log_p)``."""
    return (log_p + weights.log().unsqueeze(-1)).logsumexp(0)
