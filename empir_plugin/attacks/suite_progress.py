"""How far a run of AutoAttack is: part, batch and restart, the images finished, and the share of the work done."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

_INTERVAL = 0.2
"""Seconds between two reports within a restart."""
_BACKWARD, _MIXED = 3.0, 4.0
"""Cost of a forward and backward pass, and of one with another forward pass, in forward passes."""


@dataclass(frozen=True)
class SuiteProgress:
    """The progress of a run of AutoAttack.

    Args:
        finished: Images that some part has broken.
        work: The same, and of every other image the share of its forward and backward passes that are done.
        note: What is running.
    """

    finished: int
    work: float
    note: str


OnSuiteProgress = Callable[[SuiteProgress], None]
"""Called at every part, batch and restart, and a few times a second in between."""


@dataclass(frozen=True)
class _Plan:
    """What a part costs at most: its restarts, the calls of the model in each, and the cost of one call."""

    runs: int
    calls: int
    cost: float

    @property
    def total(self) -> float:
        return self.runs * self.calls * self.cost


def _plan(part: str, adversary: Any) -> _Plan:
    attack = attack_of(part, adversary)
    if part == "square":
        return _Plan(attack.n_restarts, attack.n_queries, 1.0)
    targets = attack.n_target_classes if part.endswith("-t") else 1
    # AutoAttack gives targeted FAB a single restart.
    restarts = 1 if part == "fab-t" else attack.n_restarts
    calls, cost = (2 * attack.n_iter, _MIXED / 2) if part.startswith("fab") else (attack.n_iter, _BACKWARD)
    return _Plan(targets * restarts, calls, cost)


def attack_of(part: str, adversary: Any) -> Any:
    """AutoAttack's object for a part."""
    names = {"square": "square", "fab": "fab", "fab-t": "fab", "apgd-t": "apgd_targeted"}
    return getattr(adversary, names.get(part, "apgd"))


class SuiteMeter:
    """Follows AutoAttack through its parts, and reports.

    Args:
        parts: That run, in order.
        adversary: AutoAttack's own object; its attacks are changed to tell the meter of every batch and restart.
        images: How many it attacks.
        report: Called with the progress.
    """

    def __init__(self, parts: Sequence[str], adversary: Any, images: int, report: OnSuiteProgress) -> None:
        self._parts, self._images, self._report = parts, images, report
        self._plans = [_plan(part, adversary) for part in parts]
        self._part = self._batch = self._batches = self._run = self._calls = 0
        self._alive = self._left = images
        self._reported = 0.0
        for attack in {id(each): each for each in (attack_of(part, adversary) for part in parts)}.values():
            self._watch(attack)

    def begin_part(self, index: int, alive: int, batch_size: int) -> None:
        """A part begins on the images no earlier part has broken."""
        self._part, self._alive, self._left = index, alive, alive
        self._batch = self._run = self._calls = 0
        self._batches = -(-alive // batch_size)

    def count_call(self) -> None:
        """The model was called once more."""
        if not self._run:
            return  # AutoAttack's own checks, before the first restart.
        self._calls += 1
        if time.monotonic() - self._reported > _INTERVAL:
            self._tell()

    def _watch(self, attack: Any) -> None:
        perturb, single_run = attack.perturb, attack.attack_single_run

        def watched_perturb(x: Tensor, *args: Any, **settings: Any) -> Any:
            self._batch, self._run, self._calls, self._left = self._batch + 1, 0, 0, len(x)
            return perturb(x, *args, **settings)

        def watched_run(x: Tensor, *args: Any, **settings: Any) -> Any:
            with self._restart(len(x)):
                return single_run(x, *args, **settings)

        attack.perturb, attack.attack_single_run = watched_perturb, watched_run

    @contextmanager
    def _restart(self, left: int) -> Iterator[None]:
        """One restart on the images of the batch that are left."""
        self._alive -= self._left - left
        self._left = left
        self._run, self._calls = self._run + 1, 0
        self._tell()
        yield

    def _tell(self) -> None:
        self._reported = time.monotonic()
        finished = self._images - self._alive
        self._report(SuiteProgress(finished, finished + self._alive * self._share, self._note))

    @property
    def _share(self) -> float:
        """The share of the work on an unbroken image that is done."""
        plan = self._plans[self._part]
        run = max(0, self._run - 1) + min(1.0, self._calls / plan.calls)
        batch = (max(0, self._batch - 1) + min(1.0, run / plan.runs)) / max(1, self._batches)
        done = sum(each.total for each in self._plans[: self._part]) + min(1.0, batch) * plan.total
        return done / sum(each.total for each in self._plans)

    @property
    def _note(self) -> str:
        plan = self._plans[self._part]
        counts = f"part {self._part + 1}/{len(self._parts)}, batch {self._batch}/{self._batches}"
        return f"{self._parts[self._part]}: {counts}, restart {self._run}/{plan.runs}"
