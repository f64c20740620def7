"""Tables and progress bars in the terminal."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.table import Table

    from empir_plugin.evaluation.progress import Progress
    from empir_plugin.training.loop import Step


def console(*, stderr: bool = False) -> Any:
    """A terminal that does not colour numbers, so that output looks the same everywhere; a pipe cuts no line."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = _UNLIMITED
    return made


_UNLIMITED = 10_000
"""Columns of a pipe or a file, where lines are as long as they are."""


def show_log() -> None:
    """Show what the library logs, such as which weights of a checkpoint it loads, until the running command ends."""
    logger, handler = logging.getLogger("empir_plugin"), logging.StreamHandler()
    context = click.get_current_context()
    context.call_on_close(partial(logger.removeHandler, handler))
    context.call_on_close(partial(logger.setLevel, logger.level))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def table(texts: Sequence[str], numbers: Sequence[str]) -> Table:
    """An empty table: columns of text first, then right-aligned columns of numbers."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = Table(box=SIMPLE_HEAD, pad_edge=False)
    for name in texts:
        rows.add_column(name, no_wrap=True)
    for name in numbers:
        rows.add_column(name, justify="right", no_wrap=True)
    return rows


class ProgressBar:
    """Progress bars on standard error, so that standard output can be piped."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[done]}/{task.total}"))
        clock = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[note]}"))
        self._progress = Progress(*columns, *clock, console=console(stderr=True))
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> ProgressBar:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def update(self, title: str, done: int, total: int, note: str = "", work: float | None = None) -> None:
        """Advance the bar with that title; add it if it is new.

        Args:
            title: Of the bar.
            done: How many are finished.
            total: How many there are.
            note: What is running.
            work: How much is done, also of unfinished ones: the length of the bar, and the time left, follow from it.
        """
        if title not in self._tasks:
            self._tasks[title] = self._progress.add_task(title, total=total, note=note, done=done)
        self._progress.update(self._tasks[title], completed=done if work is None else work, note=note, done=done)

    def show(self, progress: Progress) -> None:
        """Advance the bar of an attack."""
        self.update(progress.title, progress.done, progress.total, progress.note, progress.work)

    def show_step(self, step: Step) -> None:
        """Advance the bar of the member in training, with its loss and accuracy."""
        self.update(step.member, step.step, step.steps, f"loss {step.loss:.3f}, accuracy {step.accuracy:.1%}")
