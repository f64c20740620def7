"""Finished shards on disk: whatever kills an evaluation, it goes on with the next one.

A store is a folder. In it, every pair of model and data set has a folder of its own, named by a digest of both, however
many of the images are used. In that every finished shard is one file, ``00003-4f1c09aa57d2e8b6.json``: the number of
the shard and a digest of its whole key. The file holds ``{"sha256": ..., "key": {...}, "outcome": {...}}``, where the
checksum is that of the JSON text ``[key, outcome]`` with sorted keys and without spaces. A result is used only if
checksum and key are those of what is to be computed. Where adversarial images are kept, they lie in a file named by the
first digits of its own SHA-256, which the outcome names, ``....safetensors``, with ``rows`` ``(n,)`` and ``images``
``(n, C, H, W)`` of those that fell. Anything in a store may be deleted while nobody works on it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from empir_plugin._files.atomic import PARTIAL, write_atomically
from empir_plugin._files.lock import locked
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.outcome import Outcome

Key = Mapping[str, "str | int"]
"""Everything a shard's outcome depends on, by name; its entry ``shard`` is the number of the shard."""

_SPARE = 1_000_000
"""Bytes an evaluation's verdicts take at most, generously."""


@dataclass(frozen=True)
class Fallen:
    """Adversarial images of a shard that the model does not classify correctly.

    Args:
        rows: Their places in the shard ``(n,)``.
        images: ``(n, C, H, W)``, float32.
    """

    rows: Tensor
    images: Tensor


@dataclass(frozen=True)
class Store:
    """The finished shards of one model on one data set.

    Args:
        folder: Where they lie.

    Example:
        >>> import tempfile
        >>> with opened(Path(tempfile.mkdtemp()), "a model and its data") as store:
        ...     kept = store.save({"shard": 0, "seed": 1}, Outcome((3,), 0.5, 1))
        ...     store.load({"shard": 0, "seed": 1}), store.load({"shard": 0, "seed": 2})
        (Outcome(decisions=(3,), seconds=0.5, threads=1, flags=(), parts=(), images_sha256=''), None)
    """

    folder: Path

    def load(self, key: Key, *, images: bool = False) -> Outcome | None:
        """The outcome stored under a key, or None if there is none or it is damaged, which is warned of.

        Args:
            key: What it must belong to.
            images: Whether it is of use only with its images.
        """
        path = self._path(key)
        try:
            outcome = _outcome(json.loads(path.read_bytes()), key)
            if images and outcome.images_sha256:
                self.fallen(outcome)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, EvaluationError) as error:
            warnings.warn(f"{path} is damaged ({error}): this shard is computed again", stacklevel=2)
            return None
        return None if images and not outcome.images_sha256 else outcome

    def save(self, key: Key, outcome: Outcome, fallen: Fallen | None = None) -> Outcome:
        """Store an outcome, and the images that fell if they are to be kept.

        Returns:
            The outcome as stored, with the checksum of the images.

        Raises:
            EvaluationError: If it cannot be written.
        """
        try:
            if fallen is not None:
                content = safetensors.torch.save(
                    {"rows": fallen.rows.cpu(), "images": fallen.images.cpu().contiguous()}
                )
                outcome = replace(outcome, images_sha256=hashlib.sha256(content).hexdigest())
                write_atomically(self._images_path(outcome), content)
            body = {"key": dict(key), "outcome": outcome.to_table()}
            text = json.dumps({"sha256": _checksum(body), **body}, indent=1, allow_nan=False)
            write_atomically(self._path(key), text.encode())
        except OSError as error:
            _refuse(self.folder, error, "free some space and run again, finished shards are kept")
        return outcome

    def fallen(self, outcome: Outcome) -> Fallen:
        """The images stored with an outcome.

        Raises:
            EvaluationError: If they are not there, or not those that were stored.
        """
        path = self._images_path(outcome)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != outcome.images_sha256:
                raise EvaluationError(f"{path} is not the file that was stored: delete it and run again")
            tensors = safetensors.torch.load(content)
            return Fallen(tensors["rows"], tensors["images"])
        except (OSError, KeyError, SafetensorError) as error:
            raise EvaluationError(f"{path} cannot be read ({error}): run again") from error

    def _path(self, key: Key) -> Path:
        return self.folder / f"{key['shard']:05}-{_digest(dict(key))[:16]}.json"

    def _images_path(self, outcome: Outcome) -> Path:
        return self.folder / f"{outcome.images_sha256[:32]}.safetensors"


@contextmanager
def opened(root: Path, subject: str, *, leader: bool = True, needed: int = 0) -> Iterator[Store]:
    """The store of one model on one data set, with the lock on it held.

    Args:
        root: Folder of the store; made if it is not there.
        subject: Text that names model and data.
        leader: Whether this process holds the lock; the other processes of a team share it.
        needed: Bytes that must be free, besides a little for the verdicts.

    Raises:
        EvaluationError: If the folder cannot be written, has too little space, or another process is using it.
    """
    folder = root / _digest(subject)[:16]
    _make(folder)
    if not leader:
        yield Store(folder)
        return
    free = shutil.disk_usage(folder).free
    if free < needed + _SPARE:
        raise EvaluationError(f"{root} needs {(needed + _SPARE) / 1e6:,.0f} MB free, got {free / 1e6:,.0f}: make space")
    with locked(folder / "lock"):
        for left_behind in folder.glob(f".*{PARTIAL}"):
            left_behind.unlink(missing_ok=True)
        yield Store(folder)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(folder, error, "choose another store")


def _refuse(folder: Path, error: OSError, cure: str) -> NoReturn:
    raise EvaluationError(f"results cannot be stored in {folder} ({error.strerror or error}): {cure}") from error


def _outcome(table: Mapping[str, Any], key: Key) -> Outcome:
    body = {"key": table["key"], "outcome": table["outcome"]}
    if table["sha256"] != _checksum(body):
        raise ValueError("its checksum is wrong")
    if body["key"] != dict(key):
        raise ValueError("it belongs to another evaluation")
    return Outcome.from_table(body["outcome"])


def _checksum(body: Mapping[str, Any]) -> str:
    return _digest([body["key"], body["outcome"]])


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
