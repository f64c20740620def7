"""What one check of an audit found, and when chance explains it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from empir_plugin.errors import EvaluationError

SIGNIFICANCE = 0.01
"""How improbable chance must make a measurement beyond its threshold before it counts."""


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Args:
        name: The sign of masking it looks for.
        measured: What was measured, as a sentence.
        value: The number that was compared: a share, or a count of warnings.
        threshold: What it may be at most.
        chance: How probable a value this high is, on that many images, for a model at the threshold.
        reason: Why that threshold.
        passed: Whether the value is not above the threshold, or is so by chance.
        evidence: The numbers behind it, such as how many images fell to which attack.

    Raises:
        EvaluationError: If a field is not of its form, or ``passed`` does not follow from the numbers.

    Example:
        >>> Finding("noise", "Noise broke 3 of 4 images.", 0.75, 0.5, 0.31, "noise is blind", True).passed
        True
    """

    name: str
    measured: str
    value: float
    threshold: float
    chance: float
    reason: str
    passed: bool
    evidence: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_texts("a check", {"name": self.name, "measured": self.measured, "reason": self.reason})
        numbers = self.value, self.threshold, self.chance
        if any(type(number) not in (int, float) or not math.isfinite(number) for number in numbers):
            raise EvaluationError(f"{self.name}: value, threshold and chance must be numbers, got {numbers}")
        if not (0 <= self.chance <= 1 and isinstance(self.evidence, dict)):
            raise EvaluationError(f"{self.name}: chance lies in 0..1 and evidence is a table, got {self.chance}")
        if self.passed is not follows(self.value, self.threshold, self.chance):
            raise EvaluationError(f"{self.name}: passed is {self.passed}, which does not follow from its numbers")


def follows(value: float, threshold: float, chance: float) -> bool:
    """Whether a check passes: not above its threshold, or so close that chance explains it.

    Example:
        >>> follows(0.1, 0.02, 0.5), follows(0.1, 0.02, 0.001)
        (True, False)
    """
    return not (value > threshold and chance < SIGNIFICANCE)


def found(name: str, measured: str, numbers: tuple[float, float, float], reason: str, **evidence: Any) -> Finding:
    """A finding from value, threshold and chance; whether it passed follows.

    Example:
        >>> found("eps to 1", "9 of 64 images survive.", (9 / 64, 0.01, 1e-8), "a budget of 1 always wins").passed
        False
    """
    return Finding(name, measured, *numbers, reason, follows(*numbers), evidence)


def tail(count: int, trials: int, probability: float) -> float:
    """Probability of ``count`` or more successes in independent trials: the exact binomial tail.

    Example:
        >>> round(tail(7, 7, 0.5), 7), tail(0, 5, 0.5)
        (0.0078125, 1.0)
    """
    if count <= 0:
        return 1.0
    logs = (_log_choose(trials, k) + k * math.log(probability) for k in range(count, trials + 1))
    rest = (math.log1p(-probability) * (trials - k) for k in range(count, trials + 1))
    return min(1.0, math.fsum(math.exp(log + left) for log, left in zip(logs, rest, strict=True)))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def check_texts(what: str, texts: Mapping[str, object]) -> None:
    """Refuse what is no text, or an empty one.

    Raises:
        EvaluationError: If one of the named ``texts`` is not.
    """
    for name, text in texts.items():
        if not (isinstance(text, str) and text):
            raise EvaluationError(f"{name} of {what} must be a text, got {text!r}")
