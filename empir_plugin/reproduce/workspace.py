"""The output folder of ``empir reproduce``: its layout, its checks, and publishing its report.

::

    OUT/
      reproduction.json      marks the folder as one of ours, with its format and version
      cache/                 finished shards, checkpoints, weights: safe to delete, computed again when needed
      weights/               weights supplied by the user
      reproduction/records/  one JSON file for each evaluation, cost, confusion matrix and trained network
      reproduction/figures/  each figure as SVG and PNG
      reproduction.md        the report
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from empir_plugin._files.atomic import PARTIAL, locked, write_atomically
from empir_plugin.errors import InputError

FORMAT = 1
"""Version of the folder's layout; raised when the layout changes."""

ATTACHMENTS = "reproduction"
"""Folder beside the report with the records and figures it links."""

_MARKER = "reproduction.json"
_IN_ROOT = frozenset({_MARKER, "cache", "weights", ATTACHMENTS, "reproduction.md", "reproduction.html"})
"""What may be in the folder; earlier releases also wrote the report as HTML."""
_IN_ATTACHMENTS = frozenset({_MARKER, "records", "figures"})


@dataclass(frozen=True)
class Workspace:
    """The output folder of a reproduction.

    Args:
        root: The folder; created if it is missing.

    Example:
        >>> import tempfile
        >>> workspace = Workspace(Path(tempfile.mkdtemp(), "out"))
        >>> with workspace.lock():
        ...     sorted(path.name for path in workspace.root.iterdir())
        ['cache', 'reproduction', 'reproduction.json']
    """

    root: Path

    @property
    def store(self) -> Path:
        """Cache of finished shards."""
        return self.root / "cache" / "store"

    @property
    def training(self) -> Path:
        """Checkpoints and weights of the networks trained here, one folder for each recipe."""
        return self.root / "cache" / "training"

    @property
    def user_weights(self) -> Path:
        """Weights supplied by the user."""
        return self.root / "weights"

    @property
    def attachments(self) -> Path:
        """The records and figures that the report links."""
        return self.root / ATTACHMENTS

    @property
    def records(self) -> Path:
        """All measurements."""
        return self.attachments / "records"

    @property
    def figures(self) -> Path:
        """All figures."""
        return self.attachments / "figures"

    @property
    def report(self) -> Path:
        """The report in Markdown."""
        return self.root / "reproduction.md"

    def check(self) -> None:
        """Check that the folder is missing, empty, or a reproduction by this version.

        Raises:
            InputError: If it is not a folder, holds other files, or was written by another version.
        """
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise InputError(f"{self.root} is a file, and the output needs a folder: choose another --out")
        _check_entries(self.root, _IN_ROOT, "--out")
        if any(self.root.iterdir()):
            _check_marker(self.root / _MARKER, "--out")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Check and create the folder, and lock out every other process.

        Raises:
            InputError: If the folder fails :meth:`check`, or cannot be written to.
            EvaluationError: If another process works in it.
        """
        self.check()
        try:
            for folder in (self.store, self.training, self.records, self.figures):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.attachments):
                write_atomically(folder / _MARKER, _marker().encode())
        except OSError as error:
            raise InputError(f"{self.root} cannot be written to ({error}): choose another --out") from error
        with locked(self.root / "cache" / "lock"):
            yield

    def publish(self, report: Path) -> None:
        """Copy the report to another path, and its records and figures to a folder of the same name beside it.

        Args:
            report: Path of the copy; it must end in ``.md``.

        Raises:
            InputError: If that would overwrite anything but an earlier copy.
        """
        if report.resolve() == self.report.resolve():
            return
        check_publishable(report)
        folder = report.with_suffix("")
        shutil.copytree(self.attachments, folder, dirs_exist_ok=True)
        text = self.report.read_text(encoding="utf-8").replace(f"({self.attachments.name}/", f"({folder.name}/")
        report.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(report, text.encode())


def check_publishable(report: Path) -> None:
    """Check that a report can be published to a path without overwriting anything but an earlier copy.

    Raises:
        InputError: If the path does not end in ``.md``, or it or the folder beside it holds something else.
    """
    folder = report.with_suffix("")
    if report.suffix != ".md":
        raise InputError(f"--report must name a file that ends in .md, got {report}")
    if folder.exists():
        _check_entries(folder, _IN_ATTACHMENTS, "--report")
        _check_marker(folder / _MARKER, "--report")
    elif report.exists():
        raise InputError(f"{report} was not written by this command: choose another --report")


def _check_entries(folder: Path, allowed: frozenset[str], option: str) -> None:
    names = (path.name for path in sorted(folder.iterdir()))
    foreign = next((name for name in names if name not in allowed and not name.endswith(PARTIAL)), None)
    if foreign is not None:
        raise InputError(f"{folder} holds {foreign}, which is not part of a reproduction: choose another {option}")


def _check_marker(path: Path, option: str) -> None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        written_by = int(table["format"]), str(table["empir-plugin"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = f"choose another {option}"
        raise InputError(f"{path.parent} is not empty and not a reproduction by this package: {cure}") from error
    ours = FORMAT, version("empir-plugin")
    if written_by != ours:
        raise InputError(
            f"{path.parent} was made by empir-plugin {written_by[1]} (format {written_by[0]}), this is {ours[1]} "
            f"(format {ours[0]}), and their numbers do not mix: choose another {option}, or delete that folder"
        )


def _marker() -> str:
    table = {"made_by": "empir reproduce", "format": FORMAT, "empir-plugin": version("empir-plugin")}
    return json.dumps(table, indent=2) + "\n"
