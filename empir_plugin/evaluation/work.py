"""The work of an evaluation: every attack on every shard, from the store where it is finished, by whichever process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.attack_spec import Labels, Planned
from empir_plugin.evaluation.cache.keys import attack_key, clean_key, shard_key
from empir_plugin.evaluation.cache.store import Fallen, Key, Store
from empir_plugin.evaluation.distributed import Round
from empir_plugin.evaluation.outcome import Outcome
from empir_plugin.evaluation.shards import Bench, Shard, Tick

CLEAN = "clean"
"""What progress and outcomes call the clean images."""

OnProgress = Callable[[str, int, int], None]
"""Told the attack's name, images done and images in all."""


@dataclass(frozen=True, eq=False)
class Shelf:
    """Where this evaluation's finished shards are kept; nowhere by default.

    Args:
        store: The shards of this model and data set.
        common: What their keys share.
        images: Whether adversarial images are kept.
    """

    store: Store | None = None
    common: Key = field(default_factory=dict)
    images: bool = False

    def fetch(
        self, make_key: Callable[[], Key], compute: Callable[[], tuple[Outcome, Fallen | None]]
    ) -> tuple[Outcome, bool]:
        """The outcome under a key, and whether it had to be computed; the key is made only where results are kept."""
        if self.store is None:
            return compute()[0], True
        key = make_key()
        found = self.store.load(key, images=self.images)
        if found is not None:
            return found, False
        outcome, fallen = compute()
        return self.store.save(key, outcome, fallen if self.images else None), True


@dataclass(frozen=True, eq=False)
class Progress:
    """Images done by all processes, shown by one.

    Args:
        round: Where processes add up.
        total: Images in all.
        show: Shown to, if by anybody.
    """

    round: Round
    total: int
    show: OnProgress | None
    _titles: list[str] = field(default_factory=list)

    def add(self, title: str, images: int) -> None:
        """Count images as done."""
        done = self.round.count(title, images)
        if title not in self._titles:
            self._titles.append(title)
        if self.show is not None:
            self.show(title, done, self.total)

    def refresh(self) -> None:
        """Show what the others have done."""
        for title in self._titles:
            self.add(title, 0)


@dataclass(frozen=True, eq=False)
class Work:
    """Everything an evaluation has to do.

    Args:
        bench: Where attacks are carried out.
        plan: The attacks, in order.
        shards: All of them.
        shelf: Where finished ones are.
        round: The processes.
        progress: Whom to tell.
        cascade: Whether images that fell are spared later attacks.
    """

    bench: Bench
    plan: Sequence[Planned]
    shards: Sequence[Shard]
    shelf: Shelf
    round: Round
    progress: Progress
    cascade: bool

    def everything(self) -> dict[str, list[Outcome]]:
        """Do this process's share, and put it together with the others'.

        Returns:
            Outcomes of all shards in order, for :data:`CLEAN` and for each attack.

        Raises:
            EvaluationError: If a shard fails, here or elsewhere.
        """
        own = self.round.team.own(self.shards)
        mine = {title: dict(zip([s.number for s in own], column, strict=True)) for title, column in self._columns(own)}
        tables = {title: {number: o.to_table() for number, o in column.items()} for title, column in mine.items()}
        return self._together(self.round.gather(json.dumps(tables), self.progress.refresh))

    def _together(self, texts: Sequence[str]) -> dict[str, list[Outcome]]:
        titles = (CLEAN, *(planned.name for planned in self.plan))
        found: dict[str, dict[int, Outcome]] = {title: {} for title in titles}
        for text in texts:
            for title, column in json.loads(text).items():
                found[title].update({int(number): Outcome.from_table(table) for number, table in column.items()})
        return {title: [column[shard.number] for shard in self.shards] for title, column in found.items()}

    def _columns(self, own: Sequence[Shard]) -> Iterator[tuple[str, list[Outcome]]]:
        """Attack by attack, the outcomes of the shards of this process."""
        clean = [self._clean(shard) for shard in own]
        yield CLEAN, clean
        seen = [torch.tensor(outcome.decisions) for outcome in clean]
        correct = [self._correct(shard, outcome) for shard, outcome in zip(own, clean, strict=True)]
        standing = list(correct)
        for planned in self.plan:
            counts = _can_cascade(planned, self.bench.threat)
            column = self._column(planned, own, standing if self.cascade and counts else correct, seen)
            if counts:
                held = [self._correct(shard, outcome) for shard, outcome in zip(own, column, strict=True)]
                standing = [before & after for before, after in zip(standing, held, strict=True)]
            yield planned.name, column

    def _column(
        self, planned: Planned, own: Sequence[Shard], begin: Sequence[Tensor], seen: Sequence[Tensor]
    ) -> list[Outcome]:
        key = {} if self.shelf.store is None else attack_key(self.shelf.common, planned, self.bench.threat)
        self.progress.add(planned.name, 0)
        column: list[Outcome] = []
        for shard, standing, decided in zip(own, begin, seen, strict=True):
            wanted = torch.ones_like(standing) if planned.attack_all else standing
            own_key = partial(shard_key, key, shard, self.bench.data, wanted)
            column.append(self._attacked(planned, shard, own_key, (wanted, decided)))
        return column

    def _clean(self, shard: Shard) -> Outcome:
        self.round.stop_if_failed()
        plain = Shelf(self.shelf.store, self.shelf.common)
        key = partial(clean_key, self.shelf.common, shard, self.bench.data)
        outcome, _ = plain.fetch(key, lambda: (self.bench.clean(shard), None))
        self.progress.add(CLEAN, len(shard))
        return outcome

    def _attacked(
        self, planned: Planned, shard: Shard, key: Callable[[], Key], images: tuple[Tensor, Tensor]
    ) -> Outcome:
        self.round.stop_if_failed()
        tick = self._tick(planned.name)
        outcome, computed = self.shelf.fetch(key, lambda: self.bench.attacked(planned, shard, *images, tick))
        if not computed:
            tick(len(shard))
        return outcome

    def _tick(self, title: str) -> Tick:
        return lambda images: self.progress.add(title, images)

    def _correct(self, shard: Shard, outcome: Outcome) -> Tensor:
        return torch.tensor(outcome.decisions) == self.bench.data.labels[shard.start : shard.stop]


def _can_cascade(planned: Planned, threat: Threat) -> bool:
    return planned.counts_under(threat) and not planned.attack_all and planned.labels is Labels.TRUE
