"""Run records: every verdict, and everything needed to make the same run again."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from dataclasses import asdict, dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from torch import Tensor

from empir_plugin.errors import EvaluationError

SCHEMA = 1
_PACKAGES = ("empir-plugin", "torch", "torchvision", "timm", "robustbench", "pyautoattack", "autoattack", "numpy")


@dataclass(frozen=True)
class AttackRecord:
    """What one attack left.

    Args:
        name: Of the attack.
        settings: All of its settings, as text.
        robust: One character per image, in order: 1 if it was classified correctly without and with the attack.
        accuracy: Percent of all images that is.
        seconds: Time the attack took, the check of its results included.
        flags: Warnings of AutoAttack about the model or the evaluation.
    """

    name: str
    settings: str
    robust: str
    accuracy: float
    seconds: float
    flags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Record:
    """One evaluation: a model on images under a threat.

    Args:
        model: Name, SHA-256 of structure and weights, and whether weights were loaded.
        data: Name, split, source, number of images, SHA-256, and whether it is the full official set.
        threat: As text, such as ``"Linf:8/255"``.
        clean: One character per image, in order: 1 if the model classifies it correctly.
        clean_accuracy: Percent of the images it does.
        attacks: In the order they ran.
        worst_case: One character per image: 1 if it withstood every attack.
        worst_case_accuracy: Percent of the images that did.
        run: Seed, batch size, device, threads, time of day, versions, and SHA-256 of this package's code.
        schema: Version of this format.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    threat: str
    clean: str
    clean_accuracy: float
    attacks: tuple[AttackRecord, ...]
    worst_case: str
    worst_case_accuracy: float
    run: dict[str, Any]
    schema: int = field(default=SCHEMA, kw_only=True)

    def to_json(self) -> str:
        """The record as JSON text."""
        return json.dumps(asdict(self), indent=2, allow_nan=False) + "\n"

    def write(self, path: Path) -> None:
        """Write the record; a kill leaves no half of one.

        Raises:
            EvaluationError: If it cannot be written.
        """
        partial = path.with_name(f".{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.write_text(self.to_json(), encoding="utf-8")
            os.replace(partial, path)
        except OSError as error:
            raise EvaluationError(f"the record cannot be written to {path} ({error}): choose another --record") from error

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read a record back.

        Raises:
            EvaluationError: If the file is missing, no record, or of another version of the format.
        """
        try:
            table = json.loads(path.read_text(encoding="utf-8"))
            if table["schema"] != SCHEMA:
                raise EvaluationError(f"{path} has record format {table['schema']}, this release reads {SCHEMA}")
            attacks = tuple(AttackRecord(**{**row, "flags": tuple(row["flags"])}) for row in table.pop("attacks"))
            return cls(**table, attacks=attacks)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{path} is no run record ({error})") from error


def bits(verdicts: Tensor) -> str:
    """Verdicts ``(N,)`` as one character per image.

    Example:
        >>> import torch
        >>> bits(torch.tensor([True, False, True]))
        '101'
    """
    return "".join("1" if verdict else "0" for verdict in verdicts.tolist())


def percent(verdicts: Tensor) -> float:
    """Share of verdicts ``(N,)`` that are true, in percent to two decimals."""
    return round(100 * verdicts.double().mean().item(), 2)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages a result depends on; those not installed are left out."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


@cache
def code_sha256() -> str:
    """SHA-256 over the sources of this package: which code made a result, also between releases."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py"), key=lambda path: path.relative_to(root).as_posix()):
        digest.update(f"{path.relative_to(root).as_posix()}|".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
