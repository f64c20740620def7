"""Cache keys: everything the outcome of a shard depends on.

A cached outcome is used again only if none of this changed: the network's text, weights, settings and source files; the
images and labels of the shard, and the name of their data set; the attack's settings and source files, its labels and
its threat; which images it is given, and how many at once; the seed; number and size of the shard; the kind of device;
the arithmetic of backward passes; the releases of torch, torchvision and pyautoattack; and the
statements (not comments, docstrings or layout) of this package's attacks, models, AutoAttack adapter and judge.

The number of threads and the processor are left out, so that an evaluation can be finished with other ones, though they
may round differently; records name the threads. So is what a network does outside of its modules' source files. And so
are the images of other shards: results on the first 1,000 images are used again on all of them.
"""

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

from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet, fingerprint
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.cache.store import Key
from empir_plugin.evaluation.evaluator import Evaluator
from empir_plugin.evaluation.identity import describe, model_fingerprint, settings_fingerprint, versions
from empir_plugin.evaluation.outcome import Shard
from empir_plugin.evaluation.record import bits

_DECIDING = ("judge", "evaluator", "prepare")
_CODE = ("attacks", "models", "data", "_compat", *(f"evaluation/{name}.py" for name in _DECIDING))


def subject_key(model: nn.Module, data: ImageSet) -> str:
    """Text that names a model and a data set, however many of its images are used.

    Raises:
        InputError: If the network's code has no source file, or one of its settings cannot be described.
    """
    try:
        settings = settings_fingerprint(model)
    except InputError as error:
        raise InputError(
            f"results of this network cannot be stored, another network could have the same key ({error}), "
            "or evaluate without a store"
        ) from error
    parts = model_fingerprint(model), settings, foreign_code_sha256(model)
    return "|".join((*parts, data.name, data.split, str(data.num_classes)))


def common_key(subject: str, evaluator: Evaluator) -> Key:
    """The part of the key that all shards of an evaluation share.

    Args:
        subject: Text that names model and data: see :func:`subject_key`.
        evaluator: Model, data and settings.
    """
    releases, settings = versions(), evaluator.settings
    return {
        "subject": subject,
        "seed": settings.seed,
        "shard_size": settings.images_per_shard,
        "batch_size": settings.batch_size,
        "device": settings.device.type,
        "backward": evaluator.backend.backward,
        "torch": releases["torch"],
        "torchvision": releases["torchvision"],
        "pyautoattack": releases.get("pyautoattack", ""),
        "code": sources_sha256(*_CODE),
    }


def clean_key(common: Key, shard: Shard, data: ImageSet) -> Key:
    """The key of the decisions on a shard's clean images."""
    return {**common, "attack": "", "shard": shard.number, "images": _content(shard, data)}


def attack_key(common: Key, spec: AttackSpec, threat: Threat) -> Key:
    """The part of the key that all shards under one attack share.

    Args:
        common: What all shards share.
        spec: The attack.
        threat: Of the evaluation; replaced by the attack's own threat if it has one.

    Raises:
        InputError: If the attack holds something that cannot be described, or has no source file.
    """
    budget = spec.threat or threat
    return {
        **common,
        "attack": describe(spec.attack),
        "attack_code": foreign_code_sha256(spec.attack),
        "labels": spec.labels.name,
        "threat": f"{budget.norm}:{budget.eps!r}",
        "together": spec.batch_size or 0,
    }


def shard_key(attack: Key, shard: Shard, data: ImageSet, attacked: Tensor) -> Key:
    """The key of one shard under an attack that is given the images where ``attacked`` ``(n,)`` is true."""
    return {**attack, "shard": shard.number, "images": _content(shard, data), "attacked": bits(attacked)}


def _content(shard: Shard, data: ImageSet) -> str:
    return fingerprint(data.images[shard.start : shard.stop], data.labels[shard.start : shard.stop])


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
