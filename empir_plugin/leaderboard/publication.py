"""Publications: several files of a tree that appear together, whatever kills the process in between.

All files are first written beside their targets, under hidden names. Then one file, the journal, lists the targets:
from the moment it is there, the publication counts. Last, each file is moved into place and the journal is removed.
After a kill, :func:`settle` ends what the journal lists, or removes what no journal lists; everything that reads a tree
calls it first. One process at a time publishes: it holds the lock of the tree.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from empir_plugin._files.atomic import PARTIAL, locked, write_atomically
from empir_plugin._files.strict_json import JsonKind
from empir_plugin.errors import EvaluationError, InputError

STAGED = ".staged"
"""Suffix of a file that waits for its publication."""
JOURNAL = ".publication"
LOCK = ".lock"

_KIND = JsonKind("a journal of a publication", InputError, cure="restore the tree from its last good state")
_WRITER = re.compile(rf"\.(\d+){re.escape(PARTIAL)}")


@contextmanager
def publishing(folder: Path) -> Iterator[None]:
    """Hold the lock of a tree, with everything that a killed process left behind settled.

    Args:
        folder: Of the tree.

    Raises:
        EvaluationError: If another process publishes there.
        OSError: If the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / LOCK, "another `empir leaderboard add`"):
        _settle(folder)
        yield


def publish_files(folder: Path, files: Mapping[Path, bytes]) -> None:
    """Publish files, all of them or none; call it inside of :func:`publishing`.

    Args:
        folder: Of the tree.
        files: The content of each file, by its path in the folder.

    Raises:
        OSError: If a file cannot be written; the tree is then as it was.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with publishing(folder):
        ...     publish_files(folder, {folder / "a" / "entry.json": b"{}", folder / "b.json": b"[]"})
        >>> sorted(path.name for path in folder.rglob("*.json"))
        ['b.json', 'entry.json']
    """
    try:
        for target, content in files.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(_staged(target), content)
        _KIND.write(folder / JOURNAL, [target.relative_to(folder).as_posix() for target in files])
    except (OSError, InputError):
        _remove(_staged(target) for target in files)
        raise
    _settle(folder)


def settle(folder: Path) -> None:
    """End a publication that a killed process had begun, and remove what it left behind.

    Raises:
        InputError: If there is one to end, and the folder cannot be written or the journal is damaged.
    """
    if not any(_leftovers(folder)):
        return
    interrupted = f"a publication in {folder} was interrupted, and cannot be ended"
    if (folder / JOURNAL).exists() and not os.access(folder, os.W_OK):
        raise InputError(f"{interrupted}, as the folder is read-only: make it writable")
    try:
        with publishing(folder):
            pass
    except EvaluationError:
        return  # The files are those of a process that is publishing right now.
    except OSError as error:
        if (folder / JOURNAL).exists():
            raise InputError(f"{interrupted} ({error.strerror or error}): free some space") from error


def sweep(folder: Path) -> None:
    """Remove the unfinished files of processes that are no more."""
    _remove(path for path in folder.rglob(f".*{PARTIAL}") if _is_abandoned(path))


def _leftovers(folder: Path) -> Iterator[Path]:
    yield from (path for path in (folder / JOURNAL,) if path.exists())
    yield from folder.rglob(f".*{STAGED}")
    yield from (path for path in folder.rglob(f".*{PARTIAL}") if _is_abandoned(path))


def _settle(folder: Path) -> None:
    journal = folder / JOURNAL
    if journal.exists():
        for target in _KIND.read(journal, lambda names: [_inside(folder, name) for name in names]):
            if _staged(target).exists():
                os.replace(_staged(target), target)
        journal.unlink()
    _remove(folder.rglob(f".*{STAGED}"))
    sweep(folder)


def _inside(folder: Path, name: str) -> Path:
    path = folder / name
    if ".." in path.parts or not path.is_relative_to(folder):
        raise InputError(f"{name} is not in the tree")
    return path


def _staged(target: Path) -> Path:
    return target.with_name(f".{target.name}{STAGED}")


def _is_abandoned(path: Path) -> bool:
    """Whether the process that wrote it has ended, as far as this machine knows."""
    writer = _WRITER.search(path.name)
    if writer is None or int(writer[1]) == os.getpid():
        return writer is None
    try:
        os.kill(int(writer[1]), 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # It belongs to another user.
        return False
    return False


def _remove(paths: Iterable[Path]) -> None:
    for path in list(paths):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
