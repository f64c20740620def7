"""Files that are written as a whole or not at all, and locks that one process holds at a time."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from empir_plugin.errors import EvaluationError, InputError

PARTIAL = ".partial"
"""Suffix of a file that is still being written; only a process that was killed leaves one behind."""


def check_output_file(name: str, path: Path) -> None:
    """Check that a file can be written to a path, before anything is computed for it.

    Args:
        name: Name of the option or argument, for the message.
        path: The file; its folder need not exist.

    Raises:
        InputError: If the path is a folder, or its parent is a file or read-only.

    Example:
        >>> check_output_file("--out", Path("runs", "mine.json"))
    """
    if path.is_dir():
        raise InputError(f"{name} must be a file, got the folder {path}: name a file in it")
    check_output_folder(name, path.parent)


def check_output_folder(name: str, folder: Path) -> None:
    """Check that files can be written to a folder, which need not exist.

    Args:
        name: Name of the option or argument, for the message.
        folder: The folder.

    Raises:
        InputError: If it, or its nearest existing parent, is a file or read-only.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{name} cannot be written, {nearest} is a file: choose another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{name} cannot be written, {nearest} is read-only: choose another path")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a power cut leaves either the old content or the new, never a part of it.

    Raises:
        OSError: If it cannot be written; the old content is still there.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "verdicts.json")
        >>> write_atomically(path, b"{}")
        >>> path.read_bytes(), len(list(path.parent.iterdir()))
        (b'{}', 1)
    """
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(content)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it replaces ``path`` when the block succeeds and is removed when it fails.

    There is an empty file already. The finished one has the permissions that the umask gives to a new file, whatever
    the writer set.

    Raises:
        OSError: If the file cannot be created, flushed to disk or moved into place.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    mode = _create(partial)
    try:
        yield partial
        os.chmod(partial, mode)  # safetensors writes a file that only its owner may read
        _to_disk(partial, os.O_RDWR)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Windows cannot open folders.
        _to_disk(path.parent, os.O_RDONLY)


def _create(path: Path) -> int:
    """Create an empty file and return its permissions; a link or a file in its place is removed, not followed."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _to_disk(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(path: Path, holder: str = "another process") -> Iterator[None]:
    """Hold a lock for as long as the block runs: `filelock <https://py-filelock.readthedocs.io>`_ without waiting.

    The operating system gives the lock back when the process ends, also after ``kill -9``; the file may stay behind.

    Args:
        path: The lock file; created if it does not exist.
        holder: Who may hold it already, for the message.

    Raises:
        EvaluationError: If another process holds it, or it cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "lock")
        >>> with locked(path):
        ...     path.exists()
        True
    """
    lock = FileLock(path, timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise EvaluationError(f"{holder} holds the lock {path}: wait for it, or use another folder") from error
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        cure = "make the folder writable, free some space, or use another folder"
        raise EvaluationError(f"the lock {path} cannot be written ({reason}): {cure}") from error
    try:
        yield
    finally:
        lock.release()
