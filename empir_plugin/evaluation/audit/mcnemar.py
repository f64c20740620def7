"""The significance test between two attacks, or two models, on the same images: the exact McNemar test.

Only images that exactly one of the two attacks breaks tell them apart. If neither were the stronger, each of those
would be a fair coin toss, so the p-value is a tail of the binomial distribution
(https://en.wikipedia.org/wiki/McNemar%27s_test#Variations).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class McNemarTest:
    """A one-sided exact McNemar test: does the first attack break more of the same images than the second?

    Args:
        first: Name of the first attack.
        second: Name of the second attack.
        broken_by_first: Images it breaks.
        broken_by_second: Images it breaks.
        only_first: Images that only the first attack breaks.
        only_second: Images that only the second attack breaks.
        images: How many there are.
        comparisons: How many tests are made at once: the p-value is multiplied by it (Bonferroni).

    Example:
        >>> import math, torch
        >>> one, other = torch.tensor([True] * 7 + [False]), torch.zeros(8, dtype=torch.bool)
        >>> math.isclose(McNemarTest.of("FGSM", one, "PGD", other).p_value, 0.5**7)
        True
    """

    first: str
    second: str
    broken_by_first: int
    broken_by_second: int
    only_first: int
    only_second: int
    images: int
    comparisons: int = 1

    @classmethod
    def of(cls, first: str, broken: Tensor, second: str, broken_by_second: Tensor, comparisons: int = 1) -> McNemarTest:
        """Count from which images ``(N,)`` each attack broke."""
        only_first = int((broken & ~broken_by_second).sum())
        only_second = int((broken_by_second & ~broken).sum())
        counts = int(broken.sum()), int(broken_by_second.sum()), only_first, only_second
        return cls(first, second, *counts, len(broken), comparisons)

    @property
    def difference(self) -> float:
        """Share of the images only the first attack breaks, minus the share only the second does."""
        return (self.only_first - self.only_second) / self.images

    @property
    def p_value(self) -> float:
        """Probability of as many images broken by the first attack alone, or more, if neither were the stronger."""
        discordant = self.only_first + self.only_second
        return min(1.0, self.comparisons * binomial_tail(self.only_first, discordant, 0.5))

    @property
    def two_sided_p_value(self) -> float:
        """Probability of a difference as large as this one, in either direction, if neither were the stronger."""
        discordant = self.only_first + self.only_second
        return min(1.0, 2 * self.comparisons * binomial_tail(max(self.only_first, self.only_second), discordant, 0.5))

    def describe(self) -> str:
        """The counts as a sentence."""
        name = f"{self.first[:1].upper()}{self.first[1:]}"
        return (
            f"{name} breaks {self.broken_by_first} of {self.images} images, {self.second} {self.broken_by_second}; "
            f"{self.only_first} are broken by the first alone, {self.only_second} by the second alone."
        )


def binomial_tail(count: int, trials: int, probability: float) -> float:
    """Probability of ``count`` or more successes in ``trials`` independent trials.

    Example:
        >>> round(binomial_tail(7, 7, 0.5), 7), binomial_tail(0, 5, 0.5)
        (0.0078125, 1.0)
    """
    if count <= 0:
        return 1.0
    logs = (_log_choose(trials, k) + k * math.log(probability) for k in range(count, trials + 1))
    rest = (math.log1p(-probability) * (trials - k) for k in range(count, trials + 1))
    return min(1.0, math.fsum(math.exp(log + other) for log, other in zip(logs, rest, strict=True)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
