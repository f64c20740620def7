"""The training loop: one network or ensemble, one schedule, one objective, killed and resumed at will."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.weight_quantizers import clip_latent_
from empir_plugin.training.batch import Lesson
from empir_plugin.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from empir_plugin.training.objectives import Objective, clean
from empir_plugin.training.schedules import Compute, Schedule, settings_of


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror about half of the images ``(N, C, H, W)``.

    Example:
        >>> random_flip(torch.rand(2, 3, 4, 4), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 4, 4])
    """
    mirrored = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Move every image ``(N, C, H, W)`` by up to ``pixels`` in each direction; zeros come in.

    Example:
        >>> random_shift(torch.rand(2, 3, 4, 4), 1, torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 4, 4])
    """
    n, _, height, width = images.shape
    padded = F.pad(images, (pixels,) * 4)
    top, left = torch.randint(0, 2 * pixels + 1, (2, n, 1, 1), generator=generator).to(images.device)
    rows = top + torch.arange(height, device=images.device).view(1, -1, 1)  # (N, H, 1)
    columns = left + torch.arange(width, device=images.device).view(1, 1, -1)  # (N, 1, W)
    index = torch.arange(n, device=images.device).view(-1, 1, 1)
    return padded[index, :, rows, columns].permute(0, 3, 1, 2)


def parts_of(model: nn.Module) -> list[nn.Module]:
    """The members of an ensemble, or the one network itself."""
    return list(model.members) if isinstance(model, Ensemble) else [model]


class WeightAverage:
    """A copy of a network whose weights follow those in training at a distance.

    An ensemble's members have a decay each. The average of a quantized network's latent weights rounds to levels that
    were never trained together, so a low-precision member may do better without.

    Args:
        model: The network in training, or an ensemble.
        decays: For it, or for every member: the share of the average that stays at every step; with 0 the copy equals
            the network.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(model, [0.75])
        >>> with torch.no_grad():
        ...     model.weight += 1
        >>> average.update()
        >>> (model.weight - average.model.weight).item()
        0.75
    """

    def __init__(self, model: nn.Module, decays: Sequence[float]) -> None:
        self.model = copy.deepcopy(model).requires_grad_(False)
        self._parts = list(zip(parts_of(self.model), parts_of(model), decays, strict=True))

    def update(self) -> None:
        """Follow one step of training; buffers, such as running statistics, follow like weights."""
        for average, model, decay in self._parts:
            _follow(average, model, decay)


@torch.no_grad()
def _follow(average: nn.Module, model: nn.Module, decay: float) -> None:
    targets = [*average.parameters(), *average.buffers()]
    sources = [*model.parameters(), *model.buffers()]
    for target, source in zip(targets, sources, strict=True):
        if decay and target.is_floating_point():
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)


@contextmanager
def computing(model: nn.Module, compute: Compute) -> Iterator[None]:
    """Inside, a network, or every member of an ensemble, computes in this arithmetic and still returns float32.

    Weights, decisions and losses stay in float32; with bfloat16, inputs and weights of convolutions and linear layers
    are rounded to 8 bits of mantissa (``torch.autocast``). A processor with instructions for that is up to twice as
    fast, another one slower.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with computing(model, "bfloat16"):
        ...     print(model(torch.ones(1, 1)).dtype)
        torch.float32
    """
    parts = parts_of(model) if compute == "bfloat16" else []
    for part in parts:
        part.forward = _in_bfloat16(part.forward)
    try:
        yield
    finally:
        for part in parts:
            del part.forward  # What shadowed the class's own.


def _in_bfloat16(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = forward(x)
        return logits.float()

    return run


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
            :class:`~empir_plugin.training.loop.WeightAverage`.
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
