"""Several processes on one evaluation: ``torchrun`` starts them, shards are dealt out, verdicts come together.

Only texts and numbers of finished images are exchanged, through the key-value store of torch.distributed that
``torchrun`` runs, so it needs no collective backend, works with any device, and never waits for a tensor.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

import torch

from empir_plugin.errors import EmpirError, EvaluationError

T = TypeVar("T")

_PATIENCE = timedelta(minutes=10)
"""For all processes to start, and for a text that is known to be there to arrive."""
_LOOK = 0.2
"""Seconds between two looks at how far the others are."""


class Board(Protocol):
    """Where the processes of a team leave word for each other: torch's key-value stores have this form."""

    def add(self, key: str, amount: int, /) -> int:
        """Raise a number, from 0, and return what it is now."""
        ...

    def set(self, key: str, value: str, /) -> None:
        """Leave a text."""
        ...

    def get(self, key: str, /) -> bytes:
        """Read a text, waiting for it."""
        ...


class _OwnBoard:
    """The board of a process that is alone."""

    def __init__(self) -> None:
        self._numbers: Counter[str] = Counter()
        self._texts: dict[str, str] = {}

    def add(self, key: str, amount: int, /) -> int:
        self._numbers[key] += amount
        return self._numbers[key]

    def set(self, key: str, value: str, /) -> None:
        self._texts[key] = value

    def get(self, key: str, /) -> bytes:
        return self._texts[key].encode()


@dataclass(frozen=True, eq=False)
class Team:
    """The processes of an evaluation, as one of them sees it; without arguments, a process that is alone.

    Every process must make the same calls in the same order.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.
        board: Where they leave word.

    Example:
        >>> team = Team()
        >>> team.is_leader, team.own([10, 11, 12]), team.round().gather("mine")
        (True, [10, 11, 12], ['mine'])
    """

    rank: int = 0
    size: int = 1
    board: Board = field(default_factory=_OwnBoard)
    _rounds: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def is_leader(self) -> bool:
        """Whether this process holds the lock, shows the progress and writes the record."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """This process's share of the work: every ``size``-th item."""
        return list(items[self.rank :: self.size])

    def round(self) -> Round:
        """Begin a piece of work that ends with everybody knowing everybody's result."""
        return Round(self, f"empir-evaluation/round{next(self._rounds)}")


@dataclass(frozen=True, eq=False)
class Round:
    """One piece of work of a team.

    Args:
        team: Who works.
        name: Its name on the board.
    """

    team: Team
    name: str

    def count(self, what: str, amount: int = 0) -> int:
        """Add to a number all processes share, and return what it is now."""
        return self.team.board.add(f"{self.name}/count/{what}", amount)

    @contextmanager
    def announcing_failure(self) -> Iterator[None]:
        """Let the others know of an error that ends the block, so that they stop after the shard at hand."""
        try:
            yield
        except EmpirError as error:
            self.team.board.set(f"{self.name}/failure", str(error))
            self.team.board.add(f"{self.name}/failed", 1)
            raise

    def stop_if_failed(self) -> None:
        """End this process's part if another one's has failed.

        Raises:
            EvaluationError: With the other one's sentence.
        """
        if self.team.board.add(f"{self.name}/failed", 0):
            raise EvaluationError(self.team.board.get(f"{self.name}/failure").decode())

    def after_leader(self, what: str) -> None:
        """Go on, as the leader, having done something that must come first; as another process, once it is done.

        Args:
            what: Name of it.

        Raises:
            EvaluationError: If another process failed.
        """
        done = self.count(what, int(self.team.is_leader))
        while not done:
            self.stop_if_failed()
            time.sleep(_LOOK)
            done = self.count(what)

    def gather(self, text: str, while_waiting: Callable[[], None] = lambda: None) -> list[str]:
        """Everybody's text, by rank, once all are there.

        Args:
            text: This process's own.
            while_waiting: Called again and again until then.

        Raises:
            EvaluationError: If another process failed.
        """
        self.team.board.set(f"{self.name}/text{self.team.rank}", text)
        arrived = self.team.board.add(f"{self.name}/arrived", 1)
        while arrived < self.team.size:
            self.stop_if_failed()
            while_waiting()
            time.sleep(_LOOK)
            arrived = self.team.board.add(f"{self.name}/arrived", 0)
        while_waiting()
        return [self.team.board.get(f"{self.name}/text{rank}").decode() for rank in range(self.team.size)]


@contextmanager
def torchrun_team(*, threads: int | None = None) -> Iterator[Team]:
    """The team ``torchrun`` (https://pytorch.org/docs/stable/elastic/run.html) started, or this process alone.

    The cores of a machine are shared out among its processes. (``torchrun`` itself gives each a single thread.)

    Args:
        threads: CPU threads of each process. Left out, ``OMP_NUM_THREADS`` counts where it says more than 1, else
            each gets its share of the cores.

    Raises:
        EvaluationError: If the processes do not find each other.

    Example:
        >>> with torchrun_team() as team:
        ...     team.size
        1
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= set(os.environ):
        yield Team()
        return
    team = _joined()
    found = torch.get_num_threads()
    torch.set_num_threads(threads or _threads())
    try:
        yield team
        _leave(team)
    finally:
        torch.set_num_threads(found)


def _joined() -> Team:
    from torch.distributed.rendezvous import rendezvous

    try:
        board, rank, size = next(iter(rendezvous("env://", timeout=_PATIENCE)))
    except (RuntimeError, ValueError, OSError) as error:
        raise EvaluationError(
            f"the processes of torchrun do not find each other ({error}): start them again"
        ) from error
    return Team(rank, size, board)


def _leave(team: Team) -> None:
    """Wait, as the leader, for the others: where no torchrun keeps the board, it ends with the leader's process."""
    left = team.board.add("empir-evaluation/left", 1)
    while team.is_leader and left < team.size:
        time.sleep(_LOOK)
        left = team.board.add("empir-evaluation/left", 0)


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "1")
    if asked.isdecimal() and int(asked) > 1:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def device_of_rank(device: torch.device) -> torch.device:
    """The GPU of this process, where ``cuda`` was asked for without a number and ``torchrun`` started several.

    Example:
        >>> device_of_rank(torch.device("cpu"))
        device(type='cpu')
    """
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
