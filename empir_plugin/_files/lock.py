"""One process at a time, by a file that every operating system and network folder can create only once."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import EvaluationError

_GRACE = 10.0
"""Seconds after which a file that its process did not finish writing counts as left behind."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file for as long as the block runs.

    A lock whose process ended without giving it back, as after ``kill -9``, is taken over; so is one of a process of
    the same number that started at another time. Of a process on another machine nothing can be known.

    Raises:
        EvaluationError: If another process holds it, or it cannot be written; the sentence names the file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "lock")
        >>> with locked(path):
        ...     path.exists()
        True
        >>> path.exists()
        False
    """
    mine = _identity(os.getpid())
    try:
        if not _created(path, mine):
            _take_over(path, mine)
    except OSError as error:
        cure = "make the folder writable, make space, or use another store"
        raise EvaluationError(f"the lock {path} cannot be written ({error.strerror or error}): {cure}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if path.read_text(encoding="utf-8") == mine:
                path.unlink()


def _identity(pid: int) -> str:
    return json.dumps({"pid": pid, "host": socket.gethostname(), "started": _started(pid)})


def _started(pid: int) -> str:
    """When a process started, where the system tells: numbers of processes are given out again."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _created(path: Path, content: str) -> bool:
    try:
        handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return False
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(content)
    except OSError:
        path.unlink(missing_ok=True)
        raise
    return True


def _take_over(path: Path, mine: str) -> None:
    # A second lock file, held for a moment, keeps two processes from both taking over what a third left behind.
    guard = path.with_name(f"{path.name}.taking-over")
    if _age(guard) > _GRACE:
        guard.unlink(missing_ok=True)
    if not _created(guard, mine):
        raise EvaluationError(f"another process is just taking over {path}: run again, or use another store")
    try:
        if not _created(path, mine):
            _refuse_if_held(path)
            write_atomically(path, mine.encode())
    finally:
        guard.unlink(missing_ok=True)


def _refuse_if_held(path: Path) -> None:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        pid, host, started = int(holder["pid"]), str(holder["host"]), str(holder["started"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        if _age(path) > _GRACE:
            return
        raise EvaluationError(f"another process is just creating {path}: run again, or use another store") from error
    if host != socket.gethostname():
        cure = f"wait for it, use another store, or delete {path} if it has ended"
        raise EvaluationError(f"process {pid} on {host} is using this store: {cure}")
    if _alive(pid) and started == _started(pid):
        cure = f"wait for it, or use another store ({path})"
        raise EvaluationError(f"process {pid} is evaluating this model on this data in this store: {cure}")


def _alive(pid: int) -> bool:
    if os.name == "nt":
        return True  # There, asking with os.kill would end the process.
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _age(path: Path) -> float:
    """Seconds since a file was written; 0 if there is none."""
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0
