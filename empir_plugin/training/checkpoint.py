"""Checkpoints of a training run, as safetensors files: written atomically, read without executing code from them.

A checkpoint holds a SHA-256 of its tensors and of what it says of its run, so a damaged one is noticed. The last one is
kept beside it, ``<run>.checkpoint.previous.safetensors``, and the run resumes from that instead.
"""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from empir_plugin._files.atomic import replacing
from empir_plugin._files.tensor_files import checksum, parse_json, read_metadata, read_tensors, write_tensors
from empir_plugin.errors import WeightsError

STEMS = (".checkpoint", ".checkpoint.previous")
"""What the stems of a run's two checkpoints have behind the run's name."""

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")
_SHA256 = "sha256"
_FACTS = frozenset({"epoch", "identity", "history"})


class _DamagedError(WeightsError):
    """A checkpoint is missing, or not what was written."""

    def __init__(self, path: Path, reason: object) -> None:
        self.what = f"{path} is missing" if isinstance(reason, FileNotFoundError) else f"{path} is damaged ({reason})"
        super().__init__(f"{self.what}: delete it to start again")


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


def make_folder(folder: Path) -> None:
    """Create the output folder of a run, if it is missing.

    Raises:
        WeightsError: If it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WeightsError(f"{folder} cannot be created ({error.strerror or error}): choose another --out") from error


def checkpoint_file(folder: Path, run: str) -> Path:
    """The checkpoint of a run.

    Example:
        >>> checkpoint_file(Path("runs"), "cifarconv-fp").as_posix()
        'runs/cifarconv-fp.checkpoint.safetensors'
    """
    return folder / f"{run}{STEMS[0]}.safetensors"


def previous_file(checkpoint: Path) -> Path:
    """The checkpoint of the epoch before, which is kept beside a checkpoint."""
    return checkpoint.with_suffix(f".previous{checkpoint.suffix}")


def has_checkpoint(checkpoint: Path) -> bool:
    """Whether there is a checkpoint, or the one before it."""
    return checkpoint.is_file() or previous_file(checkpoint).is_file()


def save_checkpoint(
    path: Path,
    state: TrainingState,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    keep: bool,
) -> None:
    """Write a checkpoint; if interrupted, the one before it or the new one is there, never a partial one only.

    Args:
        path: Of :func:`checkpoint_file`.
        state: Epoch, identity and history.
        model: The network in training.
        average: Its weight average.
        optimizer: Its optimizer.
        keep: Whether the file there is a good one of the same run, to be kept as :func:`previous_file`; one of another
            run is replaced together with its previous one.

    Raises:
        WeightsError: If it cannot be written, such as to a full disk; the one there is then left, at its place or at
            that of the previous one.
    """
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.state_dict().items()}
    tensors |= _optimizer_tensors(optimizer)
    tensors = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    facts = {"epoch": str(state.epoch), "identity": state.identity, "history": json.dumps(state.history)}
    try:
        with replacing(path) as partial:
            write_tensors(partial, tensors, {**facts, _SHA256: checksum(tensors, facts)})
            if not keep:
                previous_file(path).unlink(missing_ok=True)
            elif path.exists():
                os.replace(path, previous_file(path))
    except OSError as error:
        reason = error.strerror or error
        raise WeightsError(
            f"the checkpoint {path} cannot be written ({reason}): free some space and run again, finished epochs are "
            "not repeated"
        ) from error


def load_checkpoint(
    path: Path, identity: str, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    """Restore a model, its weight average and its optimizer from a checkpoint, or from the one before it.

    If the checkpoint is damaged or missing, it is replaced by the one before it, and a warning is logged.

    Raises:
        WeightsError: If the file is damaged and there is none before it, or it belongs to another run.
    """
    return _of_a_good_one(path, lambda each: _restore(each, identity, model, average, optimizer))


def facts_of(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says of its run; empty if it says nothing.

    Raises:
        WeightsError: If the file is damaged and there is none before it.
    """
    return _of_a_good_one(path, lambda each: _facts(each, _read_file(each, read_metadata).get("identity", "{}")))


def _of_a_good_one(path: Path, read: Callable[[Path], _T]) -> _T:
    """What is read from a checkpoint, or from the one before it, which then takes its place."""
    previous = previous_file(path)
    try:
        return read(path)
    except _DamagedError as error:
        if not previous.is_file():
            raise
        try:
            found = read(previous)
        except _DamagedError as second:
            raise WeightsError(f"{error.what}, and {second.what}: delete both to start again") from second
        os.replace(previous, path)
        _LOG.warning("%s: the run goes on from the checkpoint before it", error.what)
        return found


def _restore(
    path: Path, identity: str, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    tensors, metadata = _read(path)
    if not _is_same_run(metadata["identity"], identity):
        raise WeightsError(f"{path} belongs to another recipe, data set or seed: choose another --out, or delete it")
    state = _progress(path, metadata, identity)
    parts = {"model.": model, "average.": average}
    for prefix, part in parts.items():
        _check_alike(path, part.state_dict(), _part(tensors, prefix))
    saved = _optimizer_state(path, optimizer, _part(tensors, "optimizer."))
    for prefix, part in parts.items():
        part.load_state_dict(_part(tensors, prefix))
    optimizer.load_state_dict({**optimizer.state_dict(), "state": saved})
    return state


def _is_same_run(recorded: str, identity: str) -> bool:
    """Whether a checkpoint belongs to a run; the first checkpoints did not record the architecture and are accepted."""
    facts = json.loads(identity)
    facts.pop("architecture", None)
    return recorded in (identity, json.dumps(facts, sort_keys=True))


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    tensors, metadata = _read_file(path, read_tensors)
    # The first checkpoints had no checksum. In one of today, no single change makes it look like one of those.
    if metadata.keys() != _FACTS:
        written = metadata.pop(_SHA256, "")
        if written != checksum(tensors, metadata) or metadata.keys() != _FACTS:
            raise _DamagedError(path, "its checksum is wrong")
    return tensors, metadata


def _read_file(path: Path, read: Callable[[Path], _T]) -> _T:
    try:
        return read(path)
    except (FileNotFoundError, ValueError) as error:
        raise _DamagedError(path, error) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}): make it readable") from error


def _facts(path: Path, identity: str) -> Mapping[str, Any]:
    try:
        facts = parse_json(identity)
    except ValueError as error:
        raise _DamagedError(path, f"the identity of its run is not JSON: {error}") from error
    if not isinstance(facts, dict):
        raise _DamagedError(path, "the identity of its run is no table")
    return facts


def _progress(path: Path, metadata: Mapping[str, str], identity: str) -> TrainingState:
    """Finished epochs and history of a run."""
    text = metadata["epoch"]
    try:
        history = parse_json(metadata["history"])
    except ValueError as error:
        raise _DamagedError(path, f"its history is not JSON: {error}") from error
    if not (text.isdecimal() and text.isascii() and len(text) < 10 and int(text)):
        raise _DamagedError(path, f"its epoch must be a whole number from 1, got {text[:20]!r}")
    if not isinstance(history, list) or len(history) != int(text) or not all(map(_is_line, history)):
        raise _DamagedError(path, f"its history must have a line of numbers for each of {text} epochs")
    return TrainingState(int(text), identity, tuple(history))


def _is_line(line: object) -> bool:
    return isinstance(line, dict) and all(type(each) in (int, float) and math.isfinite(each) for each in line.values())


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}


def _check_alike(path: Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    forms = [{key: (value.dtype, value.shape) for key, value in each.items()} for each in (own, found)]
    if forms[0] != forms[1]:
        differing = min(key for key, _ in forms[0].items() ^ forms[1].items())
        raise _DamagedError(path, f"its tensor {differing!r} is not the network's")


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value for index, values in state.items() for key, value in values.items()}


def _optimizer_state(
    path: Path, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """The state of each parameter by its number: a count of steps, and averages of the parameter's shape."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        is_known = index.isdecimal() and index.isascii() and int(index) < len(weights)
        if not is_known or value.shape not in ((), weights[int(index)].shape):
            raise _DamagedError(path, f"its tensor {'optimizer.' + name!r} is not the optimizer's")
        state.setdefault(int(index), {})[key] = value.clone()  # the tensors of a file may be its pages in memory
    keys = {frozenset(values) for values in state.values()}
    if len(keys) > 1:
        raise _DamagedError(path, "it lacks a part of the optimizer's state")
    return state
