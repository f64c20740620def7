"""Several processes on one evaluation: ``torchrun`` starts them, and each takes a share of the shards.

They exchange only texts and numbers of finished images, through the key-value store of torch.distributed that
``torchrun`` runs, so no collective backend is needed, any device works, and no tensor is ever waited for.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeVar

import torch
from torch.distributed import HashStore, Store  # pyright: ignore[reportPrivateImportUsage]

from empir_plugin.errors import EmpirError, EvaluationError
from empir_plugin.evaluation.progress import OnProgress, Progress

T = TypeVar("T")

_TIMEOUT = timedelta(minutes=10)
"""For all processes to start."""
_UNITS = 1000
"""Of work in one image: the store adds whole numbers."""
_POLL = 0.2
"""Seconds between two looks at the progress of the others."""


@dataclass(frozen=True, eq=False)
class Team:
    """The processes of an evaluation, as one of them sees them; without arguments, a single process.

    Every process must make the same calls in the same order.

    Args:
        rank: Number of this process, from 0.
        size: How many there are.
        store: The key-value store they exchange texts and numbers through.

    Example:
        >>> team = Team()
        >>> team.is_leader, team.own([10, 11, 12]), team.round().gather("mine")
        (True, [10, 11, 12], ['mine'])
    """

    rank: int = 0
    size: int = 1
    store: Store = field(default_factory=HashStore)
    _rounds: Iterator[int] = field(default_factory=itertools.count, repr=False)

    @property
    def is_leader(self) -> bool:
        """Whether this process holds the lock, shows the progress and writes the record."""
        return self.rank == 0

    def own(self, items: Sequence[T]) -> list[T]:
        """This process's share: every ``size``-th item."""
        return list(items[self.rank :: self.size])

    def round(self, total: int = 0, on_progress: OnProgress | None = None) -> Round:
        """Begin a computation at the end of which every process has every result.

        Args:
            total: Images in all, for progress reports.
            on_progress: Called as images are finished, in the leader.
        """
        show = on_progress if self.is_leader else None
        return Round(self, f"empir-evaluation/round{next(self._rounds)}", total, show)


@dataclass(frozen=True, eq=False)
class Round:
    """One computation that the processes of a team share.

    Args:
        team: The processes.
        name: Prefix of its keys in the store.
        total: Images in all.
        on_progress: Called as images are finished.
    """

    team: Team
    name: str
    total: int = 0
    on_progress: OnProgress | None = None
    _reported: list[str] = field(default_factory=list)

    def count(self, what: str, amount: int = 0) -> int:
        """Add to a number all processes share, and return its new value."""
        return self.team.store.add(f"{self.name}/count/{what}", amount)

    def report(self, title: str, images: int, work: float | None = None, note: str = "") -> None:
        """Count images of an attack as finished, and report how many all processes have finished.

        Args:
            title: Name of the attack.
            images: How many more are finished.
            work: How much more work is done, in images; as many as are finished by default.
            note: What is running in this process.
        """
        done = self.count(title, images)
        units = self.count(f"work/{title}", round(_UNITS * (images if work is None else work)))
        if title not in self._reported:
            self._reported.append(title)
        if self.on_progress is not None:
            work = max(done, min(units / _UNITS, self.total))
            self.on_progress(Progress(title, done, self.total, work, note))

    @contextmanager
    def announce_failure(self) -> Iterator[None]:
        """Tell the other processes of an error that ends the block, so that they stop after their current shard."""
        try:
            yield
        except EmpirError as error:
            self.team.store.set(f"{self.name}/failure", str(error))
            self.team.store.add(f"{self.name}/failed", 1)
            raise

    def stop_if_failed(self) -> None:
        """Stop this process if another one has failed.

        Raises:
            EvaluationError: With the message of the other one's error.
        """
        if self.team.store.add(f"{self.name}/failed", 0):
            raise EvaluationError(self.team.store.get(f"{self.name}/failure").decode())

    def after_leader(self, what: str) -> None:
        """Wait until the leader gets here; the leader itself does not wait.

        Args:
            what: Name of what the leader has done by then.

        Raises:
            EvaluationError: If another process failed.
        """
        done = self.count(what, int(self.team.is_leader))
        while not done:
            self.stop_if_failed()
            time.sleep(_POLL)
            done = self.count(what)

    def gather(self, text: str) -> list[str]:
        """The texts of all processes, by rank; progress is reported while waiting for them.

        Args:
            text: This process's own.

        Raises:
            EvaluationError: If another process failed.
        """
        self.team.store.set(f"{self.name}/text{self.team.rank}", text)
        arrived = self.team.store.add(f"{self.name}/arrived", 1)
        while arrived < self.team.size:
            self.stop_if_failed()
            self._refresh()
            time.sleep(_POLL)
            arrived = self.team.store.add(f"{self.name}/arrived", 0)
        self._refresh()
        return [self.team.store.get(f"{self.name}/text{rank}").decode() for rank in range(self.team.size)]

    def _refresh(self) -> None:
        for title in self._reported:
            self.report(title, 0)


@contextmanager
def torchrun_team(*, threads: int | None = None) -> Iterator[Team]:
    """The team started by ``torchrun`` (https://pytorch.org/docs/stable/elastic/run.html), or this process alone.

    The processes of a machine share its cores. (``torchrun`` itself gives each process a single thread.)

    Args:
        threads: CPU threads of each process. By default ``OMP_NUM_THREADS`` if it is more than 1, else each process
            gets its share of the cores.

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
    team = _join()
    found = torch.get_num_threads()
    torch.set_num_threads(threads or _threads())
    try:
        yield team
        _leave(team)
    finally:
        torch.set_num_threads(found)


def _join() -> Team:
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, size = next(iter(rendezvous("env://", timeout=_TIMEOUT)))
    except (RuntimeError, ValueError, OSError) as error:
        raise EvaluationError(
            f"the processes of torchrun do not find each other ({error}): start them again"
        ) from error
    return Team(rank, size, store)


def _leave(team: Team) -> None:
    """Let the leader wait for the others: where no torchrun runs the store, it ends with the leader's process."""
    left = team.store.add("empir-evaluation/left", 1)
    while team.is_leader and left < team.size:
        time.sleep(_POLL)
        left = team.store.add("empir-evaluation/left", 0)


def _threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "1")
    if asked.isdecimal() and int(asked) > 1:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def device_of_rank(device: torch.device) -> torch.device:
    """The GPU of this process, if ``cuda`` was asked for without a number and ``torchrun`` started several processes.

    Example:
        >>> device_of_rank(torch.device("cpu"))
        device(type='cpu')
    """
    if device.type != "cuda" or device.index is not None or "LOCAL_RANK" not in os.environ:
        return device
    return torch.device("cuda", int(os.environ["LOCAL_RANK"]) % max(1, torch.cuda.device_count()))
