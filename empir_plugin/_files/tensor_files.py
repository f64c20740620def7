"""Files of tensors (safetensors): written as a whole or not at all, and read with two kinds of errors only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from empir_plugin._files.atomic import replacing
from empir_plugin._files.tables import is_nested_deeper
from empir_plugin.errors import WeightsError

_T = TypeVar("_T")

_UNREADABLE = (SafetensorError, ValueError, RuntimeError, TypeError, LookupError, OverflowError)
"""What safetensors and torch raise for a file that is none of theirs, depending on what is wrong with it."""


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors atomically.

    Args:
        path: The file.
        tensors: Contiguous tensors by name, no two of which share memory.
        metadata: Texts by name, for the header.

    Raises:
        OSError: If it cannot be written, such as to a full disk; an existing file is left unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "tensors.safetensors")
        >>> save_tensors(path, {"ones": torch.ones(2)}, {"epoch": "3"})
        >>> read_tensors(path)
        ({'ones': tensor([1., 1.])}, {'epoch': '3'})
    """
    with replacing(path) as partial:
        write_tensors(partial, tensors, metadata)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a file of tensors in place, for :func:`~empir_plugin._files.atomic.replacing`.

    Raises:
        OSError: If it cannot be written.
    """
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise OSError(str(error)) from error


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file by name, on the CPU, and its metadata.

    Raises:
        OSError: If the file is missing or cannot be read.
        ValueError: If it is truncated, damaged, or no file of tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except _UNREADABLE as error:
        raise ValueError(str(error)) from error


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a file, without reading its tensors.

    Raises:
        OSError: If the file is missing or cannot be read.
        ValueError: If it is truncated, damaged, or no file of tensors.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except _UNREADABLE as error:
        raise ValueError(str(error)) from error


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The SHA-256 of tensors, with their names, types and shapes, and of metadata; of any order.

    Example:
        >>> checksum({"a": torch.ones(2)}, {})[:8] == checksum({"a": torch.ones(2, 1)}, {})[:8]
        False
    """
    digest = hashlib.sha256(json.dumps(sorted(metadata.items())).encode())
    for key, value in sorted(tensors.items()):
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(json.dumps([key, str(value.dtype), list(value.shape)]).encode())
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def parse_json(text: str) -> object:
    """A JSON text of a file's metadata.

    Raises:
        ValueError: If it is not JSON, or nested deeper than 16 levels.
    """
    try:
        value = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error
    if is_nested_deeper(value, _DEPTH):
        raise ValueError(f"it is nested deeper than {_DEPTH} levels")
    return value


_DEPTH = 16


def require_file(path: Path) -> None:
    """Check that there is a weight file.

    Raises:
        WeightsError: If there is none.
    """
    try:
        is_file = path.is_file()
    except OSError as error:  # such as a name of several hundred characters
        raise _unreadable(path, error) from error
    if not is_file:
        raise WeightsError(f"no weight file at {path}")


def sha256(path: Path) -> str:
    """The SHA-256 of a weight file, in hexadecimal.

    Raises:
        WeightsError: If it is missing or cannot be read.
    """
    require_file(path)
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while part := file.read(_PART):
                digest.update(part)
    except OSError as error:
        raise _unreadable(path, error) from error
    return digest.hexdigest()


_PART = 1 << 22


def _unreadable(path: Path, error: OSError) -> WeightsError:
    return WeightsError(f"{path} cannot be read ({error.strerror or error}): check the path")


def read_weights(path: Path, read: Callable[[Path], _T]) -> _T:
    """What a safetensors file holds.

    Args:
        path: The file.
        read: :func:`~empir_plugin._files.tensor_files.read_tensors`, or another function of that module.

    Raises:
        WeightsError: If it is missing, truncated, or no safetensors file.
    """
    require_file(path)
    try:
        return read(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValueError as error:
        raise WeightsError(f"{path} is truncated or no safetensors file ({error}): get it again") from error
