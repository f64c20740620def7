"""Hashes of code: what a cached result depends on besides weights, images and settings."""

from __future__ import annotations

import ast
import functools
import hashlib
import inspect
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from empir_plugin.errors import EvaluationError, InputError

_DEPTH = 12
_VERSIONED = frozenset({"torch", "torchvision", "numpy", "builtins", "typing", "abc", "collections", "functools"})
"""Packages whose version is part of the cache key, or that compute nothing."""


@functools.cache
def sources_sha256(*names: str) -> str:
    """SHA-256 over the statements of source files of this package, without comments, docstrings and layout.

    Args:
        names: Files and folders inside the package, such as ``"attacks"`` or ``"evaluation/judge.py"``.

    Raises:
        EvaluationError: If a file cannot be read.

    Example:
        >>> len(sources_sha256("attacks"))
        64
    """
    root, digest = Path(__file__).parents[2], hashlib.sha256()
    paths = {
        path for name in names for path in ([root / name] if name.endswith(".py") else (root / name).rglob("*.py"))
    }
    for path in sorted(paths, key=lambda path: path.relative_to(root).as_posix()):
        digest.update(f"|{path.relative_to(root).as_posix()}|{_statements(path)}".encode())
    return digest.hexdigest()


def _statements(path: Path) -> str:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError) as error:
        raise EvaluationError(f"this package's {path.name} cannot be read ({error}): install it again") from error
    for node in ast.walk(tree):
        documented = isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))
        if documented and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return ast.dump(tree)


def foreign_code_sha256(*values: object) -> str:
    """SHA-256 over the source files of other packages that define values, their attributes, and networks' modules.

    For this package's own code see :func:`sources_sha256`; torch and other libraries count by their version.

    Raises:
        InputError: If a class or function has no source file, so another of the same name could not be distinguished.

    Example:
        >>> foreign_code_sha256(nn.ReLU()) == foreign_code_sha256(3)
        True
    """
    found: set[Any] = set()
    for value in values:
        _collect(value, found, _DEPTH)
    foreign = [kind for kind in found if _package(kind) not in (*_VERSIONED, "empir_plugin")]
    digest = hashlib.sha256()
    for content in sorted({hashlib.sha256(_source(kind).read_bytes()).digest() for kind in foreign}):
        digest.update(content)
    return digest.hexdigest()


def _package(kind: Any) -> str:
    return str(kind.__module__).partition(".")[0]


def _collect(value: object, found: set[Any], depth: int) -> None:
    """Add the classes and functions that a value is made of."""
    if isinstance(value, type):
        found.update(value.__mro__)
    elif isinstance(value, types.FunctionType):
        found.add(value)
    elif isinstance(value, types.MethodType):
        found.add(value.__func__)
        _collect(value.__self__, found, depth)
    elif depth and not (value is None or isinstance(value, (bool, int, float, str, bytes, Tensor, Enum, Path))):
        found.update(type(value).__mro__)
        for item in _inside(value):
            _collect(item, found, depth - 1)


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, (tuple, list, set, frozenset)):
        return value
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    own = [item for key, item in getattr(value, "__dict__", {}).items() if not key.startswith("_")]
    return [*value.children(), *own] if isinstance(value, nn.Module) else own


def _source(kind: Any) -> Path:
    try:
        path = Path(inspect.getsourcefile(kind) or "")
    except (TypeError, OSError):
        path = Path()
    if not path.is_file():
        raise InputError(
            f"{kind.__module__}.{kind.__qualname__} has no source file, so a stored result could belong to another one "
            "of the same name: define it in a module, or evaluate without a store"
        )
    return path
