"""The training loop: one network, one recipe, killed and resumed at will."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.training.augment import random_flip, random_shift
from empir_plugin.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from empir_plugin.training.recipe import MemberRecipe


@dataclass(frozen=True)
class Step:
    """Where a run stands after one step.

    Args:
        member: Name of the network.
        step: Steps done, of all epochs.
        steps: Steps there are, of all epochs.
        loss: Mean cross-entropy of the epoch so far.
        accuracy: Share of the epoch's augmented training images classified correctly so far.
    """

    member: str
    step: int
    steps: int
    loss: float
    accuracy: float


def train_member(
    model: nn.Module,
    recipe: MemberRecipe,
    data: ImageSet,
    checkpoint: Path,
    *,
    device: torch.device | None = None,
    resume: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[nn.Module, tuple[dict[str, float], ...]]:
    """Train a network by its recipe and return the result with one line of history per epoch.

    All randomness after the initial weights is drawn afresh for each epoch from (seed, epoch): on a CPU with a given
    number of threads, a run killed and resumed ends in the same bits as one that was not.

    Args:
        model: The freshly initialised network; it is trained in place.
        recipe: How.
        data: Training images; they stay in uint8 and are scaled batch by batch.
        checkpoint: Written after every epoch.
        device: Where to compute; the CPU by default.
        resume: Go on from ``checkpoint`` if it is there; otherwise start again and overwrite it.
        on_step: Told after every step.

    Raises:
        WeightsError: If the checkpoint is damaged or belongs to another run.
        EvaluationError: If the loss is no longer finite.
    """
    device = device or torch.device("cpu")
    model = model.to(device).to(memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    run = _Run(model, average, optimizer, recipe, data, device, on_step)
    progress = Progress(0, _identity(model, recipe, data))
    if resume and checkpoint.is_file():
        progress = load_checkpoint(checkpoint, progress.identity, model, average, optimizer)
    while progress.epoch < recipe.epochs:
        history = (*progress.history, run.epoch(progress.epoch))
        progress = Progress(progress.epoch + 1, progress.identity, history)
        save_checkpoint(checkpoint, progress, model, average, optimizer)
    return average.eval(), tuple(dict(line) for line in progress.history)


def _identity(model: nn.Module, recipe: MemberRecipe, data: ImageSet) -> str:
    facts = {"recipe": asdict(recipe), "model": type(model).__name__, "data": data.fingerprint}
    return json.dumps(facts, sort_keys=True)


@dataclass(frozen=True, eq=False)
class _Run:
    """One network in training, with all that belongs to it."""

    model: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    recipe: MemberRecipe
    data: ImageSet
    device: torch.device
    on_step: Callable[[Step], None] | None

    def epoch(self, number: int) -> dict[str, float]:
        """Train for one epoch and return its line of history."""
        begun = time.perf_counter()
        per_epoch = len(self.data.labels) // self.recipe.batch_size
        total, loss, accuracy = per_epoch * self.recipe.epochs, 0.0, 0.0
        for i, (x, y) in enumerate(_batches(self.data, self.recipe, number, self.device)):
            step = number * per_epoch + i
            batch_loss, batch_accuracy = self._step(x, y, _learning_rate(self.recipe, step, total))
            if not math.isfinite(batch_loss):
                raise EvaluationError(
                    f"the loss of {self.recipe.name} is {batch_loss} in step {step}: lower learning_rate"
                )
            loss, accuracy = loss + batch_loss, accuracy + batch_accuracy
            if self.on_step is not None:
                self.on_step(Step(self.recipe.name, step + 1, total, loss / (i + 1), accuracy / (i + 1)))
        return {"loss": loss / per_epoch, "accuracy": accuracy / per_epoch, "seconds": time.perf_counter() - begun}

    def _step(self, x: Tensor, y: Tensor, learning_rate: float) -> tuple[float, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        logits = self.model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        _update_average(self.average, self.model, self.recipe.ema)
        return loss.item(), (logits.argmax(1) == y).float().mean().item()


def _batches(data: ImageSet, recipe: MemberRecipe, epoch: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
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


def _learning_rate(recipe: MemberRecipe, step: int, steps: int) -> float:
    warmup = recipe.warmup * steps
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))


@torch.no_grad()
def _update_average(average: nn.Module, model: nn.Module, decay: float) -> None:
    targets = [*average.parameters(), *average.buffers()]
    sources = [*model.parameters(), *model.buffers()]
    for target, source in zip(targets, sources, strict=True):
        if decay and target.is_floating_point():
            target.lerp_(source, 1 - decay)
        else:
            target.copy_(source)
