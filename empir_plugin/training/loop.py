"""The training loop: trains one network or one ensemble by one schedule and one objective, resumable at any time.

Each batch of images is shifted and flipped (``_batches``). Then one step (``_step``) sets the learning rate, calls the
objective, which attacks the images if it is adversarial and computes the loss, and backpropagates it; the optimizer
updates the weights, latent weights are clipped, and the moving average follows.
"""

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
from empir_plugin.training.batch import TrainingBatch
from empir_plugin.training.checkpoint import TrainingState, has_checkpoint, load_checkpoint, save_checkpoint
from empir_plugin.training.objectives import Objective, clean
from empir_plugin.training.schedules import Compute, Schedule, settings_of


@dataclass(frozen=True)
class Step:
    """Progress of a run after one step.

    Args:
        member: Name of the network or the ensemble.
        step: Steps completed, over all epochs.
        steps: Total number of steps, over all epochs.
        loss: Mean loss of the epoch so far.
        accuracy: Share of the epoch's training images classified correctly so far; the images are augmented and, in
            adversarial training, attacked.
    """

    member: str
    step: int
    steps: int
    loss: float
    accuracy: float


@dataclass(frozen=True)
class Task:
    """The task of one training run.

    Args:
        schedule: Epochs, batches, optimizer and augmentation.
        objective: The objective whose loss is minimized.
        decays: Decay of the weight average of the network, or of each member: see :class:`WeightAverage`.
        facts: What else distinguishes this run from others with the same schedule, for the checkpoint's identity.
    """

    schedule: Schedule
    objective: Objective = clean
    decays: tuple[float, ...] = (0.0,)
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """Result of a training run.

    Args:
        last: The network passed in, with the weights of the last step.
        average: A copy with averaged weights.
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
) -> TrainedNetwork:
    """Train a network or an ensemble.

    All randomness after the initial weights is derived from (seed, epoch) or (seed, step). On a CPU with a fixed number
    of threads, an interrupted and resumed run therefore ends with bitwise the same weights as an uninterrupted one.

    Args:
        model: The network or ensemble, trained in place.
        task: Schedule, objective and weight average.
        data: Training images in uint8; each batch is scaled to [0, 1].
        checkpoint: Checkpoint file, written after every epoch; the one of the epoch before is kept beside it.
        device: Device to train on; the CPU by default.
        resume: Whether to resume from ``checkpoint`` if it exists; otherwise it is overwritten.
        on_step: Called after every step.

    Raises:
        WeightsError: If the checkpoint is damaged and there is none before it, belongs to another run, or cannot be
            written.
        EvaluationError: If a loss or a weight is no longer finite; the checkpoint of the previous epoch is kept.
    """
    device = device or torch.device("cpu")
    model = model.to(device).to(memory_format=torch.channels_last).train()
    average = WeightAverage(model, task.decays)
    settings = task.schedule
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    run = _TrainingRun(model, average, optimizer, task, data, device, on_step)
    state = TrainingState(0, _identity(model, task, data))
    if resume and has_checkpoint(checkpoint):
        state = load_checkpoint(checkpoint, state.identity, model, average.model, optimizer)
    with compute_in(model, settings.compute):
        while state.epoch < settings.epochs:
            earlier, history = state, (*state.history, run.train_epoch(state.epoch))
            state = TrainingState(earlier.epoch + 1, earlier.identity, history)
            save_checkpoint(checkpoint, state, model, average.model, optimizer, keep=bool(earlier.epoch))
    return TrainedNetwork(model.eval(), average.model.eval(), tuple(dict(line) for line in state.history))


def _identity(model: nn.Module, task: Task, data: ImageSet) -> str:
    recipe = settings_of(task.schedule)
    recipe.pop("in_ensemble", None)  # The later use of a network does not affect its training.
    facts = {"recipe": recipe, "model": type(model).__name__, "data": data.fingerprint, **task.facts}
    return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True, eq=False)
class _TrainingRun:
    """A network in training, with its optimizer, data and weight average."""

    model: nn.Module
    average: WeightAverage
    optimizer: torch.optim.Optimizer
    task: Task
    data: ImageSet
    device: torch.device
    on_step: Callable[[Step], None] | None

    def train_epoch(self, number: int) -> dict[str, float]:
        """Train for one epoch; returns its line of the history."""
        started = time.perf_counter()
        schedule = self.task.schedule
        per_epoch = len(self.data.labels) // schedule.batch_size
        total, loss, accuracy = per_epoch * schedule.epochs, 0.0, 0.0
        for i, (x, y) in enumerate(_batches(self.data, schedule, number, self.device)):
            step = number * per_epoch + i
            batch = TrainingBatch(x, y, schedule.criterion, schedule.seed * 1_000_003 + step, (step + 1) / total)
            try:
                batch_loss, batch_accuracy = self._step(batch, _learning_rate(schedule, step, total))
            except EvaluationError as error:
                raise self._error(number, step, error) from error
            loss, accuracy = loss + batch_loss, accuracy + batch_accuracy
            if self.on_step is not None:
                self.on_step(Step(schedule.name, step + 1, total, loss / (i + 1), accuracy / (i + 1)))
        if not all(torch.isfinite(weight).all() for weight in self.model.parameters()):
            raise self._error(number, (number + 1) * per_epoch - 1, "a weight is not finite")
        return {"loss": loss / per_epoch, "accuracy": accuracy / per_epoch, "seconds": time.perf_counter() - started}

    def _step(self, batch: TrainingBatch, learning_rate: float) -> tuple[float, float]:
        """Forward pass, backward pass and update on one batch; returns its loss and accuracy."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        output = self.task.objective(self.model, batch)  # Attacks the images first if the objective is adversarial.
        loss = output.loss.item()
        if not math.isfinite(loss):
            raise EvaluationError(f"the loss is {loss}")
        self.optimizer.zero_grad(set_to_none=True)
        output.loss.backward()
        self.optimizer.step()
        clip_latent_(self.model)  # Latent weights of binary layers stay in [-1, 1].
        self.average.update()
        return loss, (output.logits.argmax(1) == batch.y).float().mean().item()

    def _error(self, epoch: int, step: int, reason: object) -> EvaluationError:
        kept = f"the checkpoint of epoch {epoch} is kept" if epoch else "before the first checkpoint"
        name = self.task.schedule.name
        return EvaluationError(f"training of {name} stopped in step {step}, {kept}: {reason}; lower learning_rate")


def _learning_rate(schedule: Schedule, step: int, steps: int) -> float:
    warmup = schedule.warmup * steps
    if step < warmup:
        return schedule.learning_rate * (step + 1) / warmup
    return schedule.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


def _batches(data: ImageSet, schedule: Schedule, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Shuffled and augmented images ``(N, C, H, W)`` in [0, 1] with their labels ``(N,)``, for one epoch."""
    generator = torch.Generator().manual_seed(schedule.seed * 1_000_003 + epoch)
    order = torch.randperm(len(data.labels), generator=generator)
    for index in order.split(schedule.batch_size):
        if len(index) < schedule.batch_size:
            return
        x = data.images[index].to(device, torch.float32) / 255
        if schedule.shift:
            x = random_shift(x, schedule.shift, generator)
        if schedule.flip:
            x = random_flip(x, generator)
        yield x.contiguous(memory_format=torch.channels_last), data.labels[index].to(device)


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each image of ``(N, C, H, W)`` horizontally with probability 1/2.

    Example:
        >>> random_flip(torch.rand(2, 3, 4, 4), torch.Generator().manual_seed(0)).shape
        torch.Size([2, 3, 4, 4])
    """
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Shift each image of ``(N, C, H, W)`` by up to ``pixels`` in each direction, padding with zeros.

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
    """The members of an ensemble, or a list of the single network."""
    return list(model.members) if isinstance(model, Ensemble) else [model]


class WeightAverage:
    """Exponential moving average of the weights of a network in training.

    Each member of an ensemble has its own decay. The averaged latent weights of a quantized network round to levels
    that were never trained together, so a low-precision member may do better without an average.

    Args:
        model: The network or ensemble in training.
        decays: Decay of the network or of each member: the share of the average that is kept at every step. With 0
            the copy equals the network.

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
        """Update the average after a training step; buffers such as running statistics are averaged like weights."""
        for average, model, decay in self._parts:
            _average_(average, model, decay)


@torch.no_grad()
def _average_(average: nn.Module, model: nn.Module, decay: float) -> None:
    targets = [*average.parameters(), *average.buffers()]
    sources = [*model.parameters(), *model.buffers()]
    for target, source in zip(targets, sources, strict=True):
        if decay and target.is_floating_point():
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)


@contextmanager
def compute_in(model: nn.Module, compute: Compute) -> Iterator[None]:
    """Context in which a network, or each member of an ensemble, computes in an arithmetic and returns float32.

    Weights, decisions and losses stay in float32. With bfloat16, inputs and weights of convolutions and linear layers
    are rounded to 8 bits of mantissa (``torch.autocast``). Processors with bfloat16 instructions are up to twice as
    fast, others are slower.

    Example:
        >>> model = nn.Linear(1, 1)
        >>> with compute_in(model, "bfloat16"):
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
            del part.forward  # Uncover the method of the class.


def _in_bfloat16(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def forward_in_bfloat16(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16):
            logits = forward(x)
        return logits.float()

    return forward_in_bfloat16
