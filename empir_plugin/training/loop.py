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
    model = model.to(device, memory_format=torch.channels_last).train()
    average = copy.deepcopy(model).requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    progress = Progress(0, _identity(model, recipe, data))
    if resume and checkpoint.is_file():
        progress = load_checkpoint(checkpoint, progress.identity, model, average, optimizer)
    history = list(progress.history)
    for epoch in range(progress.epoch, recipe.epochs):
        history.append(_epoch(model, average, optimizer, recipe, data, epoch, device, on_step))
        save_checkpoint(
            checkpoint, Progress(epoch + 1, progress.identity, tuple(history)), model, average, optimizer
        )
    return average.eval(), tuple(dict(line) for line in history)


def _identity(model: nn.Module, recipe: MemberRecipe, data: ImageSet) -> str:
    facts = {"recipe": asdict(recipe), "model": type(model).__name__, "data": data.fingerprint}
    return json.dumps(facts, sort_keys=True)


def _epoch(
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    recipe: MemberRecipe,
    data: ImageSet,
    epoch: int,
    device: torch.device,
    on_step: Callable[[Step], None] | None,
) -> dict[str, float]:
    begun = time.perf_counter()
    per_epoch = len(data.labels) // recipe.batch_size
    loss_sum = correct = 0.0
    for i, (x, y) in enumerate(_batches(data, recipe, epoch, device)):
        step = epoch * per_epoch + i
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(recipe, step, recipe.epochs * per_epoch)
        logits = model(x)
        loss = F.cross_entropy(logits, y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _update_average(average, model, recipe.ema)
        loss_sum += loss.item()
        correct += (logits.argmax(1) == y).float().mean().item()
        if not math.isfinite(loss_sum):
            raise EvaluationError(f"the loss of {recipe.name} is {loss.item()} in step {step}: lower learning_rate")
        if on_step is not None:
            total = recipe.epochs * per_epoch
            on_step(Step(recipe.name, step + 1, total, loss_sum / (i + 1), correct / (i + 1)))
    return {"loss": loss_sum / per_epoch, "accuracy": correct / per_epoch, "seconds": time.perf_counter() - begun}


def _batches(
    data: ImageSet, recipe: MemberRecipe, epoch: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
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
