"""A shard: the images an attack is given, and judged on, as one piece of work.

Shards have a fixed size, whatever number of processes works on them. What comes of a shard depends on nothing outside
of it: not on other shards, not on the process, not on what ran before.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.attacks.autoattack import AutoAttackSuite
from empir_plugin.attacks.randomness import Draw
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, check_images
from empir_plugin.errors import EmpirError, EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import Labels, Planned
from empir_plugin.evaluation.cache.store import Fallen
from empir_plugin.evaluation.identity import state_fingerprint
from empir_plugin.evaluation.judge import check_attack_result, decisions
from empir_plugin.evaluation.outcome import NOT_ATTACKED, Outcome
from empir_plugin.evaluation.queries import Attacked, Queries, confirmed, never_differentiates, run_suite
from empir_plugin.evaluation.queries import square_flags as square_flags

Tick = Callable[[int], None]
"""Told of images that are done."""


@dataclass(frozen=True)
class Shard:
    """Images ``start`` to ``stop - 1`` of a data set.

    Args:
        number: From 0.
        start: First image.
        stop: First image that no longer belongs to it.
    """

    number: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    def __str__(self) -> str:
        return f"shard {self.number} (images {self.start} to {self.stop - 1})"


def shards(n: int, size: int) -> list[Shard]:
    """Cut ``n`` images into shards; the last may be smaller.

    Example:
        >>> [str(shard) for shard in shards(5, 3)]
        ['shard 0 (images 0 to 2)', 'shard 1 (images 3 to 4)']
    """
    return [Shard(number, start, min(start + size, n)) for number, start in enumerate(range(0, n, size))]


@dataclass(frozen=True, eq=False)
class Bench:
    """Where attacks are carried out and judged.

    Args:
        model: A private copy, ready for evaluation.
        data: Images and true labels.
        threat: The budget of attacks that bring none of their own.
        seed: Of everything random.
        batch_size: Images per forward pass, for attacks that do not say.
        device: Where the model is.
        queries: What answers those that ask for no gradient.
    """

    model: nn.Module
    data: ImageSet
    threat: Threat
    seed: int
    batch_size: int
    device: torch.device
    queries: Queries = field(default_factory=Queries)

    def clean(self, shard: Shard) -> Outcome:
        """Show the model the clean images.

        Raises:
            EvaluationError: If it does not return logits with a column for each class.
        """
        begun = time.perf_counter()
        with _located("the clean images", shard), self._own_randomness(shard):
            x, y = self._images(shard)
            check_images(x, y, self.data.num_classes)
            decided = self._clean_decisions(x, y)
        return self._outcome(decided, begun)

    def attacked(
        self, planned: Planned, shard: Shard, wanted: Tensor, own: Tensor, tick: Tick
    ) -> tuple[Outcome, Fallen]:
        """Attack some images of a shard and judge what comes back.

        Args:
            planned: The attack.
            shard: The images.
            wanted: Which of them ``(n,)`` to attack.
            own: The model's decisions ``(n,)`` on the clean images.
            tick: Told of images that are done.

        Returns:
            The outcome, and the images that fell.

        Raises:
            EvaluationError: If the attack fails, breaks a rule, or changes the model.
        """
        begun = time.perf_counter()
        with _located(planned.name, shard), self._own_randomness(shard), self._model_unchanged():
            x, y = self._images(shard)
            rows = wanted.to(self.device).nonzero().squeeze(1)
            labels = own.to(self.device) if planned.labels is Labels.OWN else y
            made, told = self._made(planned, shard, (x, labels, rows), tick)
            decided = torch.full_like(y, NOT_ATTACKED)
            decided[rows] = self._decisions(self.model, made)
            fell = decided[rows] != y[rows]
        return self._outcome(decided, begun, **told), Fallen(rows[fell].cpu(), made[fell].cpu())

    def _outcome(self, decided: Tensor, begun: float, **told: Any) -> Outcome:
        verdicts = tuple(decided.tolist())
        return Outcome(verdicts, round(time.perf_counter() - begun, 3), torch.get_num_threads(), **told)

    def _images(self, shard: Shard) -> tuple[Tensor, Tensor]:
        x, y = self.data.batch(shard.start, shard.stop)
        return x.to(self.device, memory_format=torch.channels_last), y.to(self.device)

    def _clean_decisions(self, x: Tensor, y: Tensor) -> Tensor:
        copy = self.queries.copy
        decided = self._decisions(self.model if copy is None else copy, x, clean=True)
        wrong = decided != y
        if copy is not None:  # What counts against the model is for the model to say.
            decided[wrong] = self._decisions(self.model, x[wrong])
        return decided

    def _decisions(self, model: nn.Module, x: Tensor, *, clean: bool = False) -> Tensor:
        if not len(x):
            return torch.empty(0, dtype=torch.int64, device=x.device)
        return decisions(
            model, x, num_classes=self.data.num_classes, batch_size=self.batch_size, refuse_probabilities=clean
        )

    def _made(
        self, planned: Planned, shard: Shard, images: tuple[Tensor, Tensor, Tensor], tick: Tick
    ) -> tuple[Tensor, dict[str, Any]]:
        """What the attack makes of the rows to attack, checked, and what it has to say."""
        x, labels, rows = images
        if not len(rows):  # Without this guard, split would give an attack one empty batch.
            tick(len(x))
            return x[rows], {}
        if isinstance(planned.attack, AutoAttackSuite):
            found = self._made_by_suite(planned, planned.attack, images)
            tick(len(x))
            return found
        made, done = x[rows], 0
        for places in torch.arange(len(rows), device=rows.device).split(planned.batch_size or self.batch_size):
            batch = rows[places]
            made[places] = self._carried_out(planned, shard, x, labels, batch)
            reached = int(batch[-1]) + 1
            tick(reached - done)
            done = reached
        tick(len(x) - done)
        return made, {}

    def _carried_out(self, planned: Planned, shard: Shard, x: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        threat, copy = planned.threat or self.threat, self.queries.copy

        def run(on: nn.Module, chosen: Tensor) -> Tensor:
            # The attack gets copies: whatever it does to them, the judge has the originals.
            indices = chosen + shard.start
            adversarial = planned.attack(on, x[chosen], labels[chosen], threat, seed=self.seed, indices=indices)
            return check_attack_result(x[chosen], adversarial, threat)

        if copy is None or not never_differentiates(planned.attack):
            return run(self.model, rows)
        return confirmed(run, self.model, copy, rows, labels[rows], batch_size=self.batch_size)

    def _made_by_suite(
        self, planned: Planned, suite: AutoAttackSuite, images: tuple[Tensor, Tensor, Tensor]
    ) -> tuple[Tensor, dict[str, Any]]:
        x, labels, rows = images
        threat = planned.threat or self.threat
        attacked = Attacked(self.model, self.queries.copy, x[rows], labels[rows], threat, self.seed)
        result = run_suite(suite, attacked)
        own = square_flags(result.accuracy)
        told = {
            "flags": tuple(flag for flag in result.flags if flag not in own),
            "parts": tuple((part, _bits(robust, rows, len(x))) for part, robust in result.robust.items()),
        }
        return check_attack_result(x[rows], result.images, threat), told

    @contextmanager
    def _own_randomness(self, shard: Shard) -> Iterator[None]:
        """Torch's random numbers set by seed and shard, for models and foreign attacks that use them."""
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []):
            key = Draw(self.seed, torch.tensor([shard.number])).uniform(torch.empty(1, 1, dtype=torch.float64))
            torch.manual_seed(int(key.item() * 2**24))
            yield

    @contextmanager
    def _model_unchanged(self) -> Iterator[None]:
        models = [model for model in (self.model, self.queries.copy) if model is not None]
        before = [state_fingerprint(model) for model in models]
        yield
        if [state_fingerprint(model) for model in models] != before:
            raise EvaluationError("the attack changed the model's weights, buffers or mode: its result is void")


def _bits(verdicts: Tensor, rows: Tensor, n: int) -> str:
    held = set(rows[verdicts].tolist())
    return "".join("1" if row in held else "0" for row in range(n))


@contextmanager
def _located(what: str, shard: Shard) -> Iterator[None]:
    """Say of any error which attack and which images it came from."""
    try:
        yield
    except EmpirError as error:
        raise EvaluationError(f"{what}, {shard}: {error}") from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [""])[0]
        raise EvaluationError(f"{what} failed on {shard} with {type(error).__name__}: {first}") from error


def check_shard_size(planned: Planned, size: int) -> None:
    """Refuse a shard size that would tear apart images an attack must be given together.

    Raises:
        InputError: If its batches do not fit into a shard.
    """
    if planned.batch_size is not None and size % planned.batch_size:
        raise InputError(
            f"shard_size must be a multiple of {planned.batch_size}, got {size}: "
            f"{planned.name} has to be given that many images at once"
        )
