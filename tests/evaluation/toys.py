"""Toy networks, images and attacks for tests of the evaluation, in a module of their own: a store wants source files.

As a script (``python toys.py STORE RECORD``) it evaluates, in the team of torchrun if there is one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.attacks import Attack, Threat, pgd, uniform_noise
from empir_plugin.data.image_set import ImageSet
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.distributed import torchrun_team
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.record import Record
from empir_plugin.evaluation.run import evaluate

THREAT = Threat.parse("Linf:8/255")
NAMES = ("left", "right", "neither")


class Compare(nn.Module):
    """Classes 0 and 1: which of two pixels is the brighter. Linf distance to a change: half their difference."""

    def forward(self, x: Tensor) -> Tensor:
        left, right = x.flatten(1).unbind(1)
        return torch.stack([left - right, right - left, torch.full_like(left, -5)], 1)


def pairs(differences: list[int], labels: list[int]) -> ImageSet:
    """Images whose left pixel is twice a difference, in steps of 1/255, above the right one."""
    left = torch.tensor([128 + d for d in differences], dtype=torch.uint8)
    right = torch.tensor([128 - d for d in differences], dtype=torch.uint8)
    images = torch.stack([left, right], 1).view(-1, 1, 1, 2)
    return ImageSet("toy", "test", images, torch.tensor(labels), NAMES)


def noise_images(n: int = 40) -> ImageSet:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (n, 1, 6, 6), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        labels = network()(images.float() / 255).argmax(1)
    labels[::7] = (labels[::7] + 1) % 3
    return ImageSet("toy", "test", images, labels, NAMES)


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()


@dataclass(frozen=True)
class Logged:
    """An attack that writes the first image's number into a file at each call, and stalls at a call of one's choice."""

    attack: Attack

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        if log := os.environ.get("TOY_LOG"):
            with Path(log).open("a") as file:
                file.write(f"{0 if indices is None else int(indices[0])}\n")
            if len(Path(log).read_text().split()) >= int(os.environ.get("TOY_STALL", "1000000")):
                time.sleep(600)
        return self.attack(model, x, y, threat, seed=seed, indices=indices)


@dataclass(frozen=True)
class Does:
    """An attack that is any function of model, images and labels."""

    what: Callable[..., object]

    def __call__(self, model: Any, x: Tensor, y: Tensor, threat: Threat, **rest: object) -> Any:
        return self.what(model, x, y)


def verdicts(record: Record) -> tuple[object, ...]:
    columns = [(attack.name, attack.robust, attack.accuracy, attack.flags, attack.parts) for attack in record.attacks]
    return record.clean, record.worst_case, columns


PLAN = (
    AttackSpec("noise", Logged(uniform_noise(3))),
    AttackSpec("PGD", Logged(pgd(3))),
)
SETTINGS = Settings(seed=3, batch_size=4, shard_size=8)


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torchrun_team(threads=1) as team:
        record = evaluate(
            network(), noise_images(), THREAT, PLAN, settings=SETTINGS, store=Path(sys.argv[1]), team=team
        )
        if team.is_leader:
            record.write(Path(sys.argv[2]))
