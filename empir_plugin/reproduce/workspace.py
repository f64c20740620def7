"""The folder of a reproduction: what lies where in it, and what must not.

::

    OUT/
      reproduction.json      says that the folder is one of ours, and in which form
      cache/                 finished shards, checkpoints, weights: may be deleted, and is then computed again
      weights/               weights a user hands in
      reproduction/records/  one JSON file for each evaluation, cost, matrix and trained network
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
"""Raised when what lies in the folder changes its form."""

SHOWN = "reproduction"
"""Folder, beside the report, of what it shows and links."""

_MARKER = "reproduction.json"
_OURS = frozenset({_MARKER, "cache", "weights", SHOWN, "reproduction.md", "reproduction.html"})
_SHOWN_OURS = frozenset({_MARKER, "records", "figures"})


@dataclass(frozen=True)
class Workspace:
    """A folder that a reproduction works in.

    Args:
        root: The folder; made if it is missing.

    Example:
        >>> import tempfile
        >>> space = Workspace(Path(tempfile.mkdtemp(), "out"))
        >>> with space.opened():
        ...     sorted(path.name for path in space.root.iterdir())
        ['cache', 'reproduction', 'reproduction.json']
    """

    root: Path

    @property
    def store(self) -> Path:
        """Finished shards of evaluations."""
        return self.root / "cache" / "store"

    @property
    def training(self) -> Path:
        """Checkpoints and weights of networks trained here, a folder for each recipe."""
        return self.root / "cache" / "training"

    @property
    def given(self) -> Path:
        """Weights a user hands in."""
        return self.root / "weights"

    @property
    def shown(self) -> Path:
        """What a report shows and links."""
        return self.root / SHOWN

    @property
    def records(self) -> Path:
        """Everything measured."""
        return self.shown / "records"

    @property
    def figures(self) -> Path:
        """Pictures."""
        return self.shown / "figures"

    @property
    def report(self) -> Path:
        """The report in Markdown."""
        return self.root / "reproduction.md"

    def check(self) -> None:
        """Refuse a folder that holds anything but a reproduction of this version.

        Raises:
            InputError: If it is no folder, has files of somebody else, or comes from another version.
        """
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise InputError(f"{self.root} is a file, and the output needs a folder: choose another --out")
        _check_entries(self.root, _OURS, "--out")
        if any(self.root.iterdir()):
            _check_marker(self.root / _MARKER, "--out")

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Check the folder, make it, and keep every other process out of it.

        Raises:
            InputError: If the folder may not be used.
            EvaluationError: If another process works in it.
        """
        self.check()
        try:
            for folder in (self.store, self.training, self.records, self.figures):
                folder.mkdir(parents=True, exist_ok=True)
            for folder in (self.root, self.shown):
                write_atomically(folder / _MARKER, _marker().encode())
        except OSError as error:
            raise InputError(f"{self.root} cannot be written to ({error}): choose another --out") from error
        with locked(self.root / "cache" / "lock"):
            yield

    def publish(self, report: Path) -> None:
        """Copy the report to another place, with the records and figures it links in a folder of its name beside it.

        Raises:
            InputError: If that folder holds anything else.
        """
        if report.resolve() == self.report.resolve():
            return
        check_publishable(report)
        folder = report.with_suffix("")
        shutil.copytree(self.shown, folder, dirs_exist_ok=True)
        text = self.report.read_text(encoding="utf-8").replace(f"({self.shown.name}/", f"({folder.name}/")
        report.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(report, text.encode())


def check_publishable(report: Path) -> None:
    """Refuse a place for a report that would overwrite what is not a report of ours.

    Raises:
        InputError: If the file's name does not end in .md, it is another text, or the folder beside it is not ours.
    """
    folder = report.with_suffix("")
    if report.suffix != ".md":
        raise InputError(f"--report must name a file that ends in .md, got {report}")
    if folder.exists():
        _check_entries(folder, _SHOWN_OURS, "--report")
        _check_marker(folder / _MARKER, "--report")
    elif report.exists():
        raise InputError(f"{report} is not a report of this command: choose another --report")


def _check_entries(folder: Path, ours: frozenset[str], option: str) -> None:
    names = (path.name for path in sorted(folder.iterdir()))
    foreign = next((name for name in names if name not in ours and not name.endswith(PARTIAL)), None)
    if foreign is not None:
        raise InputError(f"{folder} holds {foreign}, which is not of a reproduction: choose another {option}")


def _check_marker(path: Path, option: str) -> None:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        found = int(table["format"]), str(table["empir-plugin"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        cure = f"choose another {option}"
        raise InputError(f"{path.parent} is not empty and no reproduction of this package: {cure}") from error
    ours = FORMAT, version("empir-plugin")
    if found != ours:
        raise InputError(
            f"{path.parent} was made by empir-plugin {found[1]} (format {found[0]}), this is {ours[1]} (format "
            f"{ours[0]}), and their numbers do not mix: choose another {option}, or delete that folder"
        )


def _marker() -> str:
    table = {"made_by": "empir reproduce", "format": FORMAT, "empir-plugin": version("empir-plugin")}
    return json.dumps(table, indent=2) + "\n"
