r"""The cache of finished shards: an evaluation that was killed resumes with the next one.

A store is a folder. Every pair of model and data set has a subfolder there, named by a digest of both, however many of
the images are used. Every finished shard is one file in it, ``00003-4f1c09aa57d2e8b6.json``: the number of the shard
and a digest of its whole key. The file holds ``{"sha256": ..., "key": {...}, "outcome": {...}}``, where the checksum is
that of the JSON text ``[key, outcome]`` with sorted keys and without spaces. A result is used only if checksum and key
are those of what is to be computed. Adversarial images, if they are kept, are in a file named by the first digits of
its own SHA-256, which the outcome names, ``....safetensors``, with ``rows`` ``(n,)`` and ``images`` ``(n, C, H, W)`` of
the broken images. Anything in a store may be deleted while no evaluation uses it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn

import safetensors.torch
from safetensors import SafetensorError

from empir_plugin._files.atomic import PARTIAL, locked, write_atomically
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.outcome import BrokenImages, Outcome

Key = Mapping[str, "str | int"]
"""Everything a shard's outcome depends on, by name; its entry ``shard`` is the number of the shard."""

_RESERVE = 1_000_000
"""Bytes an evaluation's verdicts take at most, generously."""


@dataclass(frozen=True)
class Cache:
    """The finished shards of one model on one data set.

    Args:
        folder: Where their files are.
        common: The part of the key that all shards of this evaluation share.
        keep_images: Whether broken images are stored, too.

    Example:
        >>> import tempfile
        >>> with open_cache(Path(tempfile.mkdtemp()), "a model and its data") as cache:
        ...     stored = cache.save({"shard": 0, "seed": 1}, Outcome((3,), 0.5, 1))
        ...     stored == cache.load({"shard": 0, "seed": 1}), cache.load({"shard": 0, "seed": 2})
        (True, None)
    """

    folder: Path
    common: Key = field(default_factory=dict)
    keep_images: bool = False

    def load(self, key: Key, *, with_images: bool = False) -> Outcome | None:
        """The outcome stored under a key; None if there is none, or, with a warning, if it is damaged.

        Args:
            key: What it must belong to.
            with_images: Whether it is of use only together with its images.
        """
        path = self._path(key)
        try:
            outcome = _outcome(json.loads(path.read_bytes()), key)
            if with_images and outcome.images_sha256:
                self.broken_images(outcome)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError, EvaluationError) as error:
            warnings.warn(f"{path} is damaged ({error}): this shard is computed again", stacklevel=2)
            return None
        return None if with_images and not outcome.images_sha256 else outcome

    def save(self, key: Key, outcome: Outcome, broken: BrokenImages | None = None) -> Outcome:
        """Store an outcome, and the broken images if they are to be kept.

        Returns:
            The outcome as stored, with the checksum of the images.

        Raises:
            EvaluationError: If it cannot be written.
        """
        try:
            if broken is not None:
                tensors = {"rows": broken.rows.cpu(), "images": broken.images.cpu().contiguous()}
                content = safetensors.torch.save(tensors)
                outcome = replace(outcome, images_sha256=hashlib.sha256(content).hexdigest())
                write_atomically(self._images_path(outcome), content)
            body = {"key": dict(key), "outcome": outcome.to_table()}
            text = json.dumps({"sha256": _checksum(body), **body}, indent=1, allow_nan=False)
            write_atomically(self._path(key), text.encode())
        except OSError as error:
            _refuse(self.folder, error, "free some space and run again, finished shards are kept")
        return outcome

    def broken_images(self, outcome: Outcome) -> BrokenImages:
        """The images stored with an outcome.

        Raises:
            EvaluationError: If they are missing, or are not those that were stored.
        """
        path = self._images_path(outcome)
        try:
            content = path.read_bytes()
            if hashlib.sha256(content).hexdigest() != outcome.images_sha256:
                raise EvaluationError(f"{path} is not the file that was stored: delete it and run again")
            tensors = safetensors.torch.load(content)
            return BrokenImages(tensors["rows"], tensors["images"])
        except (OSError, KeyError, SafetensorError) as error:
            raise EvaluationError(f"{path} cannot be read ({error}): run again") from error

    def _path(self, key: Key) -> Path:
        return self.folder / f"{key['shard']:05}-{_digest(dict(key))[:16]}.json"

    def _images_path(self, outcome: Outcome) -> Path:
        return self.folder / f"{outcome.images_sha256[:32]}.safetensors"


@contextmanager
def open_cache(root: Path, subject: str, *, leader: bool = True, needed: int = 0) -> Iterator[Cache]:
    """Open the cache of one model on one data set, and hold its lock.

    Args:
        root: Folder of the store; created if it does not exist.
        subject: Text that names model and data.
        leader: Whether this process holds the lock; the other processes of a team share it.
        needed: Bytes that must be free, besides a little for the verdicts.

    Raises:
        EvaluationError: If the folder cannot be written, has too little space, or another process is using it.
    """
    folder = root / _digest(subject)[:16]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        _refuse(folder, error, "choose another store")
    if not leader:
        yield Cache(folder)
        return
    free = shutil.disk_usage(folder).free
    if free < needed + _RESERVE:
        megabytes = f"{(needed + _RESERVE) / 1e6:,.0f} MB free, got {free / 1e6:,.0f}"
        raise EvaluationError(f"{root} needs {megabytes}: free some space")
    with locked(folder / "lock", "another evaluation of this model on this data"):
        for leftover in folder.glob(f".*{PARTIAL}"):
            leftover.unlink(missing_ok=True)
        yield Cache(folder)


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
