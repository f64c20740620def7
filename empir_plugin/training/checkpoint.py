"""Checkpoints of a training run, as safetensors files: written atomically, read without executing code from them."""

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

from empir_plugin.errors import WeightsError


@dataclass(frozen=True)
class TrainingState:
    """State of a training run at the end of an epoch, besides its tensors.

    Args:
        epoch: Number of finished epochs.
        identity: What is trained and how, as JSON text; a run resumes only a checkpoint with its own identity.
        history: One mapping per finished epoch: loss, accuracy on the training batches, seconds.
    """

    epoch: int
    identity: str
    history: tuple[Mapping[str, float], ...] = ()


def save_checkpoint(
    path: Path, state: TrainingState, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> None:
    """Write a checkpoint; if interrupted, either the previous or the new file is there, never a partial one."""
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    tensors |= _optimizer_tensors(optimizer)
    metadata = {"epoch": str(state.epoch), "identity": state.identity, "history": json.dumps(state.history)}
    partial = path.with_suffix(".partial")
    save_file({key: value.detach().cpu().contiguous() for key, value in tensors.items()}, partial, metadata)
    os.replace(partial, path)


def load_checkpoint(
    path: Path, identity: str, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Restore a model, its weight average and its optimizer from a checkpoint.

    Raises:
        WeightsError: If the file is damaged or belongs to another run.
    """
    tensors, metadata = _read(path)
    if not _is_same_run(metadata.get("identity"), identity):
        raise WeightsError(f"{path} belongs to another recipe, data set or seed: choose another --out, or delete it")
    model.load_state_dict(_part(tensors, "model."))
    average.load_state_dict(_part(tensors, "average."))
    _restore_optimizer(optimizer, _part(tensors, "optimizer."))
    return TrainingState(int(metadata["epoch"]), identity, tuple(json.loads(metadata["history"])))


def identity_of(path: Path) -> str:
    """The identity of the run a checkpoint belongs to, as JSON text; empty if it has none.

    Raises:
        WeightsError: If the file is damaged.
    """
    return _read(path)[1].get("identity", "")


def _is_same_run(recorded: str | None, identity: str) -> bool:
    """Whether a checkpoint belongs to a run; the first checkpoints did not record the architecture and are accepted."""
    facts = json.loads(identity)
    facts.pop("architecture", None)
    return recorded in (identity, json.dumps(facts, sort_keys=True))


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
    defaults = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split(".")
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**defaults, "state": state})
