"""The training loop: one network or ensemble, one schedule, one objective, killed and resumed at will."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.models.binary import clip_latent_
from empir_plugin.training.augment import random_flip, random_shift
from empir_plugin.training.averages import WeightAverage
from empir_plugin.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from empir_plugin.training.compute import computing
from empir_plugin.training.lesson import Lesson
from empir_plugin.training.objectives import Objective, clean
from empir_plugin.training.schedules import Schedule, settings_of


@dataclass(frozen=True)
class Step:
    """Where a run stands after one step.

    Args:
        member: Name of the network, or of the ensemble.
        step: Steps done, of all epochs.
        steps: Steps there are, of all epochs.
        loss: Mean loss of the epoch so far.
        accuracy: Share of the epoch's images classified correctly so far, augmented and, in adversarial training,
            attacked as they are.
    """

    member: str
    step: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Task:
    """What is to be done in one run.

    Args:
        schedule: How to go through the images.
        objective: What to lower.
        decays: Of the average of the network's weights, or of every member's: see
            :class:`~empir_plugin.training.averages.WeightAverage`.
        facts: Whatever else makes this run another than a run of the same schedule.
    """

    schedule: Schedule
    objective: Objective = clean
    decays: tuple[float, ...] = (0.0,)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Trained:
    """What a run gave.

    Args:
        last: The network with the weights of the last step: the one that was handed in.
        average: The network with averaged weights.
        history: One mapping per epoch: loss, accuracy on the training batches, seconds.
    """

    last: nn.Module
    average: nn.Module
    history: tuple[dict[str, float], ...]


def fit(
    model: nn.Module,
    task: Task,
    data: ImageSet,
    checkpoint: Path,
    *,
    device: torch.device | None = None,
    resume: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> Trained:
    """Train a network or an ensemble.

    All randomness after the initial weights is drawn afresh for each epoch from (seed, epoch), or each step from
    (seed, step): on a CPU with a given number of threads, a run killed and resumed ends in the same bits as one that
    was not.

    Args:
        model: It is trained in place.
        task: How.
        data: Training images; they stay in uint8 and are scaled batch by batch.
        checkpoint: Written after every epoch.
        device: Where to compute; the CPU by default.
        resume: Go on from ``checkpoint`` if it is there; otherwise start again and overwrite it.
        on_step: Told after every step.

    Raises:
        WeightsError: If the checkpoint is damaged or belongs to another run.
        EvaluationError: If a loss or a weight is no longer finite; the checkpoint of the epoch before stays.
    """
    device = device or torch.device("cpu")
    model = model.to(device).to(memory_format=torch.channels_last).train()
    average = WeightAverage(model, task.decays)
    settings = task.schedule
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    run = _Run(model, average, optimizer, task, data, device, on_step)
    progress = Progress(0, _identity(model, task, data))
    if resume and checkpoint.is_file():
        progress = load_checkpoint(checkpoint, progress.identity, model, average.model, optimizer)
    with computing(model, settings.compute):
        while progress.epoch < settings.epochs:
            history = (*progress.history, run.epoch(progress.epoch))
            progress = Progress(progress.epoch + 1, progress.identity, history)
            save_checkpoint(checkpoint, progress, model, average.model, optimizer)
    return Trained(model.eval(), average.model.eval(), tuple(dict(line) for line in progress.history))


def _identity(model: nn.Module, task: Task, data: ImageSet) -> str:
    recipe = settings_of(task.schedule)
    recipe.pop("in_ensemble", None)  # What becomes of a network afterwards changes nothing of its training.
    facts = {"recipe": recipe, "model": type(model).__name__, "data": data.fingerprint, **task.facts}
    return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True, eq=False)
class _Run:
    """One network in training, with all that belongs to it."""

    model: nn.Module
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    task: Task
    data: ImageSet
    device: torch.device
    on_step: Callable[[Step], None] | None

    def epoch(self, number: int) -> dict[str, float]:
        """Train for one epoch and return its line of history."""
        begun = time.perf_counter()
        schedule = self.task.schedule
        per_epoch = len(self.data.labels) // schedule.batch_size
        total, loss, accuracy = per_epoch * schedule.epochs, 0.0, 0.0
        for i, (x, y) in enumerate(_batches(self.data, schedule, number, self.device)):
            step = number * per_epoch + i
            lesson = Lesson(x, y, schedule.criterion, schedule.seed * 1_000_003 + step, (step + 1) / total)
            try:
                batch_loss, batch_accuracy = self._step(lesson, _learning_rate(schedule, step, total))
            except EvaluationError as error:
                raise self._stopped(number, step, error) from error
            loss, accuracy = loss + batch_loss, accuracy + batch_accuracy
            if self.on_step is not None:
                self.on_step(Step(schedule.name, step + 1, total, loss / (i + 1), accuracy / (i + 1)))
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters()):
            raise self._stopped(number, (number + 1) * per_epoch - 1, "a weight is not finite")
        return {"loss": loss / per_epoch, "accuracy": accuracy / per_epoch, "seconds": time.perf_counter() - begun}

    def _stopped(self, epoch: int, step: int, reason: object) -> EvaluationError:
        kept = f"its checkpoint of epoch {epoch} is kept" if epoch else "it had finished no epoch"
        name = self.task.schedule.name
        return EvaluationError(f"training of {name} stopped in step {step}, {kept}: {reason}; lower learning_rate")

    def _step(self, lesson: Lesson, learning_rate: float) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        fit = self.task.objective(self.model, lesson)
        loss = fit.loss.item()
        if not math.isfinite(loss):
            raise EvaluationError(f"the loss is {loss}")
        self.optimizer.zero_grad(set_to_none=True)
        fit.loss.backward()
        self.optimizer.step()
        clip_latent_(self.model)
        self.average.update()
        return loss, (fit.logits.argmax(1) == lesson.y).float().mean().item()


def _batches(data: ImageSet, recipe: Schedule, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + epoch)
    order = torch.randperm(len(data.labels), generator=generator)
    for index in order.split(recipe.batch_size):
        if len(index) < recipe.batch_size:
            return
        x = data.images[index].to(device, torch.float32) / 255
        if recipe.shift:
            x = random_shift(x, recipe.shift, generator)
        if recipe.flip:
            x = random_flip(x, generator)
        yield x.contiguous(memory_format=torch.channels_last), data.labels[index].to(device)


def _learning_rate(recipe: Schedule, step: int, steps: int) -> float:
    warmup = recipe.warmup * steps
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
