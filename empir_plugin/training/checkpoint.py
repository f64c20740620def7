"""Checkpoints of a training run: safetensors, written atomically, readable without running code from the file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import WeightsError

REPORT = JsonKind("a training report", WeightsError)
"""What a finished training says of itself, beside its weights."""


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Args:
        epoch: Finished epochs.
        identity: What was trained and how, as JSON text; a run resumes only its own checkpoint.
        history: One mapping per finished epoch: loss, accuracy on the training batches, seconds.
    """

    epoch: int
    identity: str
    history: tuple[Mapping[str, float], ...] = ()


def save_checkpoint(
    path: Path, progress: Progress, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; a kill at any moment leaves the old one or the new one, never half of one."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    tensors |= _optimizer_tensors(optimizer)
    metadata = {"epoch": str(progress.epoch), "identity": progress.identity, "history": json.dumps(progress.history)}
    partial = path.with_suffix(".partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def load_checkpoint(
    path: Path, identity: str, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> Progress:
    """Read a checkpoint back into a model, its weight average and its optimizer.

    Raises:
        WeightsError: If the file is damaged, or belongs to another run.
    """
    tensors, metadata = _read(path)
    if not _is_same_run(metadata.get("identity"), identity):
        raise WeightsError(f"{path} belongs to another recipe, data set or seed: choose another --out, or delete it")
    model.load_state_dict(_part(tensors, "model."))
    average.load_state_dict(_part(tensors, "average."))
    _restore_optimizer(optimizer, _part(tensors, "optimizer."))
    return Progress(int(metadata["epoch"]), identity, tuple(json.loads(metadata["history"])))


def identity_of(path: Path) -> str:
    """What a checkpoint says that was trained, and how; empty if it says nothing.

    Raises:
        WeightsError: If the file is damaged.
    """
    return _read(path)[1].get("identity", "")


def _is_same_run(found: str | None, identity: str) -> bool:
    """Whether a checkpoint is of a run; the first checkpoints did not name the architecture, and still serve."""
    facts = json.loads(identity)
    facts.pop("architecture", None)
    return found in (identity, json.dumps(facts, sort_keys=True))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except SafetensorError as error:
        raise WeightsError(f"{path} is damaged ({error}): delete it to start again") from error


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def _restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**whole, "state": state})
