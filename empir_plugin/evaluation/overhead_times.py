"""What a measurement of latency says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Spread:
    """Median and the 10th and 90th percentile of repeated measurements."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of one or more numbers.

        Example:
            >>> Spread.of([1.0, 2.0, 3.0])
            Spread(median=2.0, p10=1.2, p90=2.8)
        """
        ranks = torch.tensor([0.5, 0.1, 0.9], dtype=torch.float64)
        return cls(*(round(value, 9) for value in torch.tensor(values, dtype=torch.float64).quantile(ranks).tolist()))


@dataclass(frozen=True, eq=False)
class Execution:
    """Another way to run the model.

    Args:
        backend: Its name, such as ``"int8 (onednn)"``.
        network: What runs; None where it cannot.
        unavailable: Why it cannot; empty where it can.
    """

    backend: str
    network: nn.Module | None = None
    unavailable: str = ""


@dataclass(frozen=True)
class BackendTime:
    """The time of one way to run the model, or the full-precision network.

    Args:
        network: ``"model"`` or ``"baseline"``.
        backend: Which way.
        milliseconds: Of one forward pass; None where it was not measured.
        ratio: To the baseline in its faster layout, in each round; None where it was not measured.
        unavailable: Why it was not; empty where it was.
    """

    network: str
    backend: str
    milliseconds: Spread | None
    ratio: Spread | None
    unavailable: str = ""


@dataclass(frozen=True)
class Latency:
    """Measured times of one forward pass.

    Args:
        device: ``"cpu"`` or ``"cuda"``, and which processor that is.
        backend: How the model was executed; the baseline is in float32.
        threads: Of the CPU.
        batch_size: Images per forward pass.
        repeats: Rounds.
        execution: How the members of an ensemble follow each other.
        baseline_layout: The memory layout in which the baseline was faster.
        model: Milliseconds.
        baseline: Milliseconds, in its faster layout.
        ratio: Of the times in each round; 3 is three times the baseline's.
        backends: Everything that took its turn, the above included, and what could not.
    """

    device: str
    backend: str
    threads: int
    batch_size: int
    repeats: int
    execution: str
    baseline_layout: str
    model: Spread
    baseline: Spread
    ratio: Spread
    backends: tuple[BackendTime, ...] = ()
