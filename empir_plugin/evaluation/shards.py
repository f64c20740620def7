"""Shards: the pieces an evaluation is cut into, and whether each of them is finished already or has to be computed.

A shard is a run of consecutive images of a fixed size, however many processes work on them. Its outcome depends on
nothing outside of it: not on other shards, not on the process that computed it, not on what ran before.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.evaluation.cache.keys import attack_key, clean_key, shard_key
from empir_plugin.evaluation.cache.store import Cache, Key
from empir_plugin.evaluation.distributed import Round
from empir_plugin.evaluation.evaluator import Evaluator, Settings
from empir_plugin.evaluation.outcome import Outcome, Shard

CLEAN = "clean"
"""Name of the clean images in progress reports and among the outcomes."""


def cut(n: int, size: int) -> list[Shard]:
    """Cut ``n`` images into shards of ``size``; the last may be smaller.

    Example:
        >>> [str(shard) for shard in cut(5, 3)]
        ['shard 0 (images 0 to 2)', 'shard 1 (images 3 to 4)']
    """
    return [Shard(number, start, min(start + size, n)) for number, start in enumerate(range(0, n, size))]


def with_shard_size(settings: Settings, specs: Sequence[AttackSpec]) -> Settings:
    """The settings with a shard size: if none is set, the default, rounded up to whole batches of every attack.

    Example:
        >>> from empir_plugin.attacks import fgsm
        >>> with_shard_size(Settings(), [AttackSpec("FGSM", fgsm(), batch_size=40)]).shard_size
        280
    """
    if settings.shard_size is not None:
        return settings
    batch = math.lcm(*(spec.batch_size for spec in specs if spec.batch_size is not None))
    return replace(settings, shard_size=math.ceil(settings.images_per_shard / batch) * batch)


def check_shard_size(spec: AttackSpec, size: int) -> None:
    """Refuse a shard size that would split a batch which an attack must be given as a whole.

    Raises:
        InputError: If the size is not a multiple of the attack's own batch size.
    """
    if spec.batch_size is not None and size % spec.batch_size:
        raise InputError(
            f"shard_size must be a multiple of {spec.batch_size}, got {size}: "
            f"{spec.name} has to be given that many images at once"
        )


@dataclass(frozen=True, eq=False)
class ShardedRun:
    """All attacks on all shards: each process takes its share, and finished shards come from the cache.

    Args:
        evaluator: Attacks and judges one shard.
        cache: Finished shards; None to compute everything.
        processes: Those that share the work.
    """

    evaluator: Evaluator
    cache: Cache | None
    processes: Round

    @property
    def shards(self) -> list[Shard]:
        """All shards, in order."""
        return cut(len(self.evaluator.data), self.evaluator.settings.images_per_shard)

    def run(self, specs: Sequence[AttackSpec]) -> dict[str, list[Outcome]]:
        """Compute this process's share and gather it with those of the others.

        With ``cascade``, an attack is given only the images that are still robust after the attacks before it.

        Returns:
            Outcomes of all shards in order, for :data:`CLEAN` and for each attack by name.

        Raises:
            EvaluationError: If a shard fails, here or in another process.
        """
        own = self.processes.team.own(self.shards)
        clean = [self._clean(shard) for shard in own]
        columns = {CLEAN: clean}
        correct = [self._correct(shard, outcome) for shard, outcome in zip(own, clean, strict=True)]
        robust = list(correct)
        for spec in specs:
            key = {} if self.cache is None else attack_key(self.cache.common, spec, self.evaluator.threat)
            cascades = _can_cascade(spec, self.evaluator.threat)
            given = robust if self.evaluator.settings.cascade and cascades else correct
            self.processes.report(spec.name, 0)
            column = list(map(partial(self._attack, spec, key), own, given, clean))
            if cascades:
                kept = [self._correct(shard, outcome) for shard, outcome in zip(own, column, strict=True)]
                robust = [before & after for before, after in zip(robust, kept, strict=True)]
            columns[spec.name] = column
        return self._gather(own, columns)

    def _clean(self, shard: Shard) -> Outcome:
        self.processes.stop_if_failed()
        key = {} if self.cache is None else clean_key(self.cache.common, shard, self.evaluator.data)
        outcome = None if self.cache is None else self.cache.load(key)
        if outcome is None:
            outcome = self.evaluator.clean(shard)
            if self.cache is not None:
                self.cache.save(key, outcome)
        self.processes.report(CLEAN, len(shard))
        return outcome

    def _attack(self, spec: AttackSpec, spec_key: Key, shard: Shard, given: Tensor, clean: Outcome) -> Outcome:
        """The outcome of a shard under an attack: from the cache if it is finished there, else computed and stored."""
        self.processes.stop_if_failed()
        attacked = torch.ones_like(given) if spec.attack_all else given
        tick = partial(self.processes.report, spec.name)
        key: Key = {}
        if self.cache is not None:
            key = shard_key(spec_key, shard, self.evaluator.data, attacked)
            finished = self.cache.load(key, with_images=self.cache.keep_images)
            if finished is not None:
                tick(len(shard), len(shard), "")
                return finished
        outcome, broken = self.evaluator.attack(spec, shard, attacked, torch.tensor(clean.decisions), tick)
        if self.cache is None:
            return outcome
        return self.cache.save(key, outcome, broken if self.cache.keep_images else None)

    def _gather(self, own: Sequence[Shard], columns: dict[str, list[Outcome]]) -> dict[str, list[Outcome]]:
        numbers = [shard.number for shard in own]
        tables = {
            name: {number: outcome.to_table() for number, outcome in zip(numbers, column, strict=True)}
            for name, column in columns.items()
        }
        found: dict[str, dict[int, Outcome]] = {name: {} for name in columns}
        for text in self.processes.gather(json.dumps(tables)):
            for name, column in json.loads(text).items():
                found[name].update({int(number): Outcome.from_table(table) for number, table in column.items()})
        return {name: [column[shard.number] for shard in self.shards] for name, column in found.items()}

    def _correct(self, shard: Shard, outcome: Outcome) -> Tensor:
        labels = self.evaluator.data.labels[shard.start : shard.stop]
        return torch.tensor(outcome.decisions) == labels


def _can_cascade(spec: AttackSpec, threat: Threat) -> bool:
    return spec.counts_under(threat) and not spec.attack_all and spec.labels is Labels.TRUE
