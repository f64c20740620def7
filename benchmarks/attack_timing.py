"""Time attacks on the same images, interleaved, and count the images they pass through the network."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor, nn

Make = Callable[["Counter", Tensor, Tensor], Tensor]
"""An attack: from network, images ``(N, C, H, W)`` and labels ``(N,)`` to adversarial images."""


class Role(Enum):
    """How a contender is compared."""

    OURS = "ours"
    OURS_BF16 = "ours with bf16 gradients"
    PLAIN_PEER = "peer on the network as written"
    PREPARED_PEER = "peer on our prepared network"
    BARE = "bare passes"


@dataclass(frozen=True, eq=False)
class Contender:
    """An attack of one library on one form of the network.

    Args:
        name: Its name in tables.
        role: How it is compared.
        network: The network to attack.
        make: The attack.
    """

    name: str
    role: Role
    network: nn.Module
    make: Make


@dataclass
class Tally:
    """Number of images passed through a network: forward only, and forward with gradient."""

    forward: int = 0
    gradient: int = 0


@dataclass(frozen=True, eq=False)
class Timed:
    """Measurements of one contender.

    Args:
        contender: The contender.
        seconds: Wall-clock time of every round.
        cpu_seconds: Processor time of every round, over all threads; other processes affect it less.
        images: Adversarial images of the last round ``(N, C, H, W)``.
        tally: Image passes of one round.
    """

    contender: Contender
    seconds: tuple[float, ...]
    cpu_seconds: tuple[float, ...]
    images: Tensor
    tally: Tally

    @property
    def median(self) -> float:
        """Median of the rounds, in seconds."""
        return statistics.median(self.seconds)

    def ratio_to(self, other: Timed) -> float:
        """Ratio of this median time to the other's."""
        return self.median / other.median

    def ratios_to(self, other: Timed) -> tuple[float, float]:
        """The smallest and the largest ratio of times within a round."""
        ratios = [mine / its for mine, its in zip(self.seconds, other.seconds, strict=True)]
        return min(ratios), max(ratios)


class Counter(nn.Module):
    """A network that counts the images passed through it; a hook would keep it from running on integers as a whole.

    Args:
        network: The network.
        tally: Where to count.
    """

    def __init__(self, network: nn.Module, tally: Tally) -> None:
        super().__init__()
        self.network, self.tally = network, tally

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images ``(N, C, H, W)``."""
        if torch.is_grad_enabled() and x.requires_grad:
            self.tally.gradient += len(x)
        else:
            self.tally.forward += len(x)
        return self.network(x)

    def around(self, network: nn.Module) -> Counter:
        """Another form of the network, counted together with this one."""
        return Counter(network, self.tally).eval()


def race(
    contenders: Sequence[Contender],
    x: Tensor,
    y: Tensor,
    repeats: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
    on_run: Callable[[int, Contender, float], None] | None = None,
) -> list[Timed]:
    """Run every contender ``repeats`` times, interleaved so that machine noise affects all equally.

    Args:
        contenders: The contenders; each round starts with another one.
        x: Images ``(N, C, H, W)`` in [0, 1].
        y: Labels ``(N,)``.
        repeats: Rounds.
        clock: A clock, in seconds.
        on_run: Called after each run with its round, its contender and its seconds.
    """
    runs: dict[Contender, list[_Run]] = {contender: [] for contender in contenders}
    for contender in contenders:
        _warm_up(contender.network, x[:2])
    for number in range(repeats):
        turn = number % len(contenders)
        for contender in (*contenders[turn:], *contenders[:turn]):
            runs[contender].append(_run(contender, x, y, clock))
            if on_run is not None:
                on_run(number, contender, runs[contender][-1].seconds)
    return [_summarize(contender, its) for contender, its in runs.items()]


@dataclass(frozen=True, eq=False)
class _Run:
    """One contender in one round."""

    seconds: float
    cpu_seconds: float
    images: Tensor
    tally: Tally


def _run(contender: Contender, x: Tensor, y: Tensor, clock: Callable[[], float]) -> _Run:
    x, y = x.clone(), y.clone()
    network = Counter(contender.network, Tally()).eval()
    start, cpu_start = clock(), time.process_time()
    images = contender.make(network, x, y)
    run = _Run(clock() - start, time.process_time() - cpu_start, images.detach(), network.tally)
    contender.network.zero_grad(set_to_none=True)
    return run


def _summarize(contender: Contender, runs: Sequence[_Run]) -> Timed:
    seconds, cpu_seconds = tuple(run.seconds for run in runs), tuple(run.cpu_seconds for run in runs)
    return Timed(contender, seconds, cpu_seconds, runs[-1].images, runs[-1].tally)


def _warm_up(network: nn.Module, x: Tensor) -> None:
    network(x.clone().requires_grad_(True)).sum().backward()
    network.zero_grad(set_to_none=True)
