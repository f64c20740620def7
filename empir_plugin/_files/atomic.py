"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from empir_plugin.errors import InputError

PARTIAL = ".partial"
"""Ending of a file that is still being written; left behind only by a process that was killed."""


def check_output_file(name: str, path: Path) -> None:
    """Refuse a path no file can be written to, before anything is computed for it.

    Args:
        name: Of the option or argument that names it.
        path: Where the file is to be; its folder need not exist.

    Raises:
        InputError: If it is a folder, or its own folder is no folder or read-only.

    Example:
        >>> check_output_file("--record", Path("runs", "mine.json"))
    """
    if path.is_dir():
        raise InputError(f"{name} must be a file, got the folder {path}: name a file in it")
    check_output_folder(name, path.parent)


def check_output_folder(name: str, folder: Path) -> None:
    """Refuse a folder nothing can be written to; it need not exist.

    Args:
        name: Of the option or argument that names it.
        folder: Where files are to be.

    Raises:
        InputError: If it, or the nearest parent there is, is no folder or read-only.
    """
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        raise InputError(f"{name} cannot be written, {nearest} is a file and no folder: choose another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{name} cannot be written, {nearest} is read-only: choose another path")


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a kill or a power cut leaves the old content or the new, and never a part.

    Raises:
        OSError: If it cannot be written; what was at that path is still there.

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
    """A path to write to, which takes the place of ``path`` when the block ends well and is removed if it does not.

    Raises:
        OSError: If the content cannot be brought to the disk or put in place.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        yield partial
        _to_disk(partial, os.O_RDWR)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # Windows opens no folders.
        _to_disk(path.parent, os.O_RDONLY)


def _to_disk(path: Path, mode: int) -> None:
    handle = os.open(path, mode)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
