"""Where a record comes from: releases, code, machine, time."""

from __future__ import annotations

import hashlib
import platform
from datetime import datetime, timezone
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from empir_plugin.evaluation.data import ImageSet

_PACKAGES = ("empir-plugin", "torch", "torchvision", "timm", "robustbench", "pyautoattack", "autoattack", "numpy")


def now() -> str:
    """The time of day, in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; those not installed are left out."""
    installed = {package: number for package in _PACKAGES if (number := _version(package))}
    return {"python": platform.python_version(), **installed}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def code_sha256() -> str:
    """SHA-256 over the sources of this package: which code made a result, also between releases."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(f"{path.relative_to(root).as_posix()}|".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def data_table(data: ImageSet) -> dict[str, object]:
    """What a result says of the images it is about.

    Example:
        >>> from empir_plugin.evaluation.data import load_images
        >>> data_table(load_images("mnist").first(2))["n"]
        2
    """
    return {
        "name": data.name,
        "split": data.split,
        "source": data.source,
        "n": len(data),
        "sha256": data.fingerprint,
    }
