"""Ensembles of networks, and the rules by which they decide: EMPIR's vote, the mean probability, the mean logits.

Source: Sen et al., "EMPIR", ICLR 2020, https://openreview.net/forum?id=HJem3yHKwH, Sections 3 and 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.errors import InputError
from empir_plugin.models.layers import is_full_precision

Rule = Callable[[Tensor, "int | None"], Tensor]
"""From member logits ``(M, N, K)`` and the index of the first full-precision member to log-probabilities ``(N, K)``."""


def _log_mean(log_probabilities: Tensor, count: Tensor | int) -> Tensor:
    """Log of the sum over members of ``exp(log_probabilities)`` ``(M, N, K)`` divided by ``count``."""
    total = log_probabilities.logsumexp(0)
    return total - (math.log(count) if isinstance(count, int) else count.log())


@dataclass(frozen=True)
class MeanProbability:
    """The class of the highest mean probability wins.

    Example:
        >>> MeanProbability()(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), None).exp()
        tensor([[0.5749, 0.4251]])
    """

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the members' mean probability ``(N, K)``."""
        return _log_mean(logits.log_softmax(-1), len(logits))


@dataclass(frozen=True)
class MeanLogits:
    """The class of the highest mean logit wins; a member of large logits counts most.

    The softmax of the mean logits is the members' geometric mean probability, normalised: a single member that all but
    excludes a class can veto it. :class:`MeanProbability` is the arithmetic mean.

    Example:
        >>> MeanLogits()(torch.tensor([[[2.0, 0.0]], [[0.0, 1.0]]]), None)
        tensor([[1.0000, 0.5000]])
    """

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Mean of the members' logits ``(N, K)``."""
        return logits.mean(0)


@dataclass(frozen=True)
class MaxVote:
    """The class with most votes wins; a tie goes to the first full-precision member's class if it is one of the tied.

    Otherwise the tied class of highest mean probability wins. So with two low-precision members and a full-precision
    one, the full-precision member decides if all three votes differ, as in EMPIR's release.

    The output is the log of the mean probability of the members that voted for the winner: its argmax is the vote, and
    its gradient is the one attacked in Section 4.2 of the paper (outvoted members contribute none).

    Example:
        >>> logits = torch.tensor([[[3.0, 0.0, 0.0]], [[0.0, 1.0, 0.0]], [[0.0, 0.0, 2.0]]])
        >>> MaxVote()(logits, leader=2).argmax(1)
        tensor([2])
    """

    def __call__(self, logits: Tensor, leader: int | None) -> Tensor:
        """Log of the mean probability of the winner's voters ``(N, K)``."""
        log_p = logits.log_softmax(-1)
        votes = logits.argmax(-1)  # (M, N); of the logits, since the softmax can round two of them to one number
        winner = _winner(votes, log_p.detach(), leader)  # (N,)
        voted = votes == winner  # (M, N)
        mean = _log_mean(log_p.masked_fill(~voted.unsqueeze(-1), -math.inf), voted.sum(0).unsqueeze(-1))
        return _lift(mean, winner)


def _winner(votes: Tensor, log_p: Tensor, leader: int | None) -> Tensor:
    """The class ``(N,)`` elected by votes ``(M, N)``."""
    counts = _one_hot(votes, log_p.shape[-1]).sum(0)  # (N, K)
    tied = counts == counts.amax(1, keepdim=True)  # (N, K)
    by_probability = log_p.logsumexp(0).masked_fill(~tied, -math.inf).argmax(1)
    if leader is None:
        return by_probability
    choice = votes[leader]
    return torch.where(tied.gather(1, choice.unsqueeze(1)).squeeze(1), choice, by_probability)


def _one_hot(classes: Tensor, count: int) -> Tensor:
    """Where a class is the given one ``(..., K)``; torch's own cannot be differentiated under ``vmap``."""
    return classes.unsqueeze(-1) == torch.arange(count, device=classes.device)


def _lift(log_p: Tensor, winner: Tensor) -> Tensor:
    """Raise the winner's entry where rounding made it equal to one of lower index, so the winner is the argmax."""
    best, index = log_p.detach().max(1, keepdim=True)
    raised = _one_hot(winner, log_p.shape[1]) & (index != winner.unsqueeze(1))  # (N, K)
    above = torch.nextafter(best, torch.full_like(best, math.inf))
    return torch.where(raised, above + (log_p - log_p.detach()), log_p)


def _check_members(outputs: list[Any]) -> list[Tensor]:
    for index, output in enumerate(outputs):
        if not isinstance(output, Tensor):
            got = type(output).__name__
            raise InputError(f"member {index} must return logits (N, K), got a {got}: wrap it and return its logits")
        if output.shape != outputs[0].shape:
            got = f"{tuple(outputs[0].shape)} from member 0 and {tuple(output.shape)} from member {index}"
            raise InputError(f"members must return logits (N, K) of the same classes, got {got}: replace one of them")
    return outputs


def shift_above_zero_(model: nn.Module) -> None:
    """Shift a model's outputs above zero, in place: its log-probabilities become logits as other libraries expect them.

    The outputs of an image are shifted by one number, so decision and gradients stay; differences between classes
    change by rounding alone.

    Args:
        model: From images ``(N, C, H, W)`` to logits or log-probabilities ``(N, K)``.

    Example:
        >>> ensemble = Ensemble([nn.Flatten()], MeanProbability())
        >>> shift_above_zero_(ensemble)
        >>> ensemble(torch.tensor([[[[1.0, 3.0]]]]))
        tensor([[1., 3.]])
    """
    model.register_forward_hook(_shift_above_zero)


def _shift_above_zero(model: nn.Module, inputs: tuple[Tensor, ...], logits: Tensor) -> Tensor:
    lowest = logits.detach().amin(1, keepdim=True)
    return _lift(logits - lowest + 1, logits.argmax(1))


class Ensemble(nn.Module):
    """An ensemble of any number of full- and low-precision networks.

    The transforms of ``torch.func`` apply, except that torch does not nest forward mode: ``jvp`` inside of another
    ``dual_level`` raises its error.

    Args:
        members: Networks from images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        rule: How the members' logits become one decision.

    Raises:
        InputError: If there is no member.

    Example:
        >>> ensemble = Ensemble([nn.Flatten(), nn.Flatten()], MeanProbability())
        >>> ensemble(torch.rand(4, 1, 1, 3)).shape, ensemble.member_logits(torch.rand(4, 1, 1, 3)).shape
        (torch.Size([4, 3]), torch.Size([2, 4, 3]))
    """

    def __init__(self, members: Sequence[nn.Module], rule: Rule | None = None) -> None:
        super().__init__()
        if not members:
            raise InputError("an ensemble needs at least one member, got none")
        self.members = nn.ModuleList(members)
        self.rule = MaxVote() if rule is None else rule

    @property
    def leader(self) -> int | None:
        """Index of the first full-precision member, which decides ties; None if there is none."""
        return next((i for i, member in enumerate(self.members) if is_full_precision(member)), None)

    def extra_repr(self) -> str:
        """The rule, which determines the function of the ensemble."""
        return f"rule={self.rule}"

    def member_logits(self, x: Tensor) -> Tensor:
        """Logits ``(M, N, K)`` of every member for images ``(N, C, H, W)``.

        Raises:
            InputError: If a member does not return a tensor, or one of another shape than the first.
        """
        return torch.stack(_check_members([member(x) for member in self.members]))

    def forward(self, x: Tensor) -> Tensor:
        """Log-probabilities ``(N, K)``, up to a constant per image, whose argmax is the ensemble's decision."""
        return self.rule(self.member_logits(x), self.leader)
