"""Tables and progress bars on a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def console(*, stderr: bool = False) -> Any:
    """A terminal that leaves numbers uncoloured, so that output reads the same everywhere."""
    from rich.console import Console

    return Console(stderr=stderr, highlight=False)


def table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """A table without rows: first columns of text, then columns of numbers, which are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in texts:
        made.add_column(name, no_wrap=True)
    for name in numbers:
        made.add_column(name, justify="right", no_wrap=True)
    return made


class Progress:
    """A progress bar on the error stream, so that the output can be piped."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, *clock, console=console(stderr=True))
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> Any:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, title: str, done: int, total: int, note: str = "") -> None:
        """Move the bar of that title, adding it if it is new."""
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total, note=note)
        self._progress.update(self._tasks[title], completed=done, note=note)
