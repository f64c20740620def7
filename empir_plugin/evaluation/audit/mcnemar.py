"""Two attacks on the same images, of which it is known beforehand which ought to be the stronger."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from empir_plugin.evaluation.audit.measurements import Columns, Evidence
from empir_plugin.evaluation.audit.report import Finding, follows, found, tail


@dataclass(frozen=True)
class Beats:
    """Fails if one of several attacks breaks images that a reference, which has to be no weaker, leaves.

    The value is the share of images that only the challenger breaks, less the share that only the reference breaks.
    Several challengers divide the allowed chance between them.

    Args:
        name: The sign of masking it looks for.
        challengers: Picks the attacks out of the evidence.
        reference: Picks what they are compared with.
        slack: By which share of the images a challenger may win.
        reason: Why that much.
    """

    name: str
    challengers: Callable[[Evidence], Columns]
    reference: Callable[[Evidence], Columns]
    slack: float
    reason: str

    def __call__(self, evidence: Evidence) -> Finding:
        """Compare each challenger with the reference."""
        challengers, (against, reference) = self.challengers(evidence), first(self.reference(evidence))
        duels = [Duel.of(name, column, against, reference, len(challengers)) for name, column in challengers.items()]
        if not duels:
            return Finding(self.name, "Does not apply to this model.", 0.0, self.slack, 1.0, self.reason, passed=True)
        worst = max(duels, key=lambda duel: (not follows(duel.gap, self.slack, duel.chance), duel.gap))
        numbers = worst.gap, self.slack, worst.chance
        broken = counts({**challengers, against: reference})
        return found(self.name, worst.measured, numbers, self.reason, images_broken=broken, images=worst.images)


@dataclass(frozen=True)
class Duel:
    """Two attacks on the same images: which of them fell to one alone."""

    name: str
    against: str
    broken: int
    broken_by_reference: int
    wins: int
    losses: int
    images: int
    duels: int

    @classmethod
    def of(cls, name: str, challenger: Tensor, against: str, reference: Tensor, duels: int = 1) -> Duel:
        """Count what fell, from who broke which images ``(N,)``; ``duels`` share the chance of one of them failing."""
        wins, losses = int((challenger & ~reference).sum()), int((reference & ~challenger).sum())
        broken = int(challenger.sum()), int(reference.sum())
        return cls(name, against, *broken, wins, losses, len(reference), duels)

    @property
    def gap(self) -> float:
        """Share of the images only the challenger breaks, less the share only the reference does."""
        return (self.wins - self.losses) / self.images

    @property
    def chance(self) -> float:
        """Probability of as many wins or more if every image in question were a coin toss, for any of the duels."""
        return min(1.0, self.duels * tail(self.wins, self.wins + self.losses, 0.5))

    @property
    def measured(self) -> str:
        """The counts as a sentence."""
        name = f"{self.name[:1].upper()}{self.name[1:]}"
        alone = f"{self.wins} fall to the first alone, {self.losses} to the second"
        return (
            f"{name} breaks {self.broken} of {self.images} images, {self.against} {self.broken_by_reference}; {alone}."
        )


def counts(columns: Columns) -> dict[str, int]:
    """How many images each attack broke.

    Example:
        >>> import torch
        >>> counts({"FGSM": torch.tensor([True, False, True])})
        {'FGSM': 2}
    """
    return {name: int(column.sum()) for name, column in columns.items()}


def first(columns: Columns) -> tuple[str, Tensor]:
    """The name and the column ``(N,)`` of the first attack."""
    return next(iter(columns.items()))
