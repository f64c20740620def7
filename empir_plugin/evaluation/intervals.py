"""Confidence intervals of accuracies: how far a number on so many images can be from the one on all images."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95
"""Of the intervals in tables: so many of them cover the accuracy on all images that the test images were drawn from."""


def wilson_interval(count: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The Wilson score interval of a share, https://doi.org/10.1080/01621459.1927.10502953.

    Unlike the normal approximation it stays within 0 to 1, and does not vanish at 0 or n of n.

    Args:
        count: Images that count, 0 to ``n``.
        n: Images in all, at least 1.
        confidence: Between 0 and 1.

    Returns:
        Low and high end, as shares.

    Raises:
        ValueError: If ``count`` is not in 0 to ``n``, ``n`` is below 1, or ``confidence`` is not between 0 and 1.

    Example:
        >>> low, high = wilson_interval(8, 10)
        >>> round(low, 3), round(high, 3)
        (0.49, 0.943)
        >>> [round(end, 3) for end in wilson_interval(0, 100)]
        [0.0, 0.037]
    """
    if not (n >= 1 and 0 <= count <= n and 0 < confidence < 1):
        raise ValueError(f"an interval needs 0 <= count <= n and 0 < confidence < 1, got {count}, {n}, {confidence}")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share, weight = count / n, z * z / n
    middle = (share + weight / 2) / (1 + weight)
    half = z * math.sqrt(share * (1 - share) / n + weight / (4 * n)) / (1 + weight)
    # Rounding must not move an end past the share itself.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def interval_text(verdicts: str) -> str:
    """The 95 % Wilson interval of an accuracy, in percent.

    Args:
        verdicts: One character per image: 1 if it counts.

    Example:
        >>> interval_text("1111111100")
        '49.0-94.3'
    """
    low, high = wilson_interval(verdicts.count("1"), len(verdicts))
    return f"{100 * low:.1f}-{100 * high:.1f}"
