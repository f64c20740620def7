"""Progress of an evaluation: what is reported, and bars for a terminal or a notebook."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from empir_plugin.attacks.suite_progress import SuiteProgress


@dataclass(frozen=True)
class Progress:
    """How far an attack is.

    Args:
        title: Name of the attack, or of another step.
        done: Images that are finished: broken, attacked to the end, or not to be attacked.
        total: Images in all.
        work: The same, and of unfinished images the share of the work that is done; from it follows the time left.
        note: What is running, such as ``"apgd-t: part 2/4, batch 1/1, restart 3/9"``; may be empty.
    """

    title: str
    done: int
    total: int
    work: float
    note: str = ""


OnProgress = Callable[[Progress], None]
"""Called as images are finished, and in between."""

Tick = Callable[[int, float, str], None]
"""Called with the images that were finished and the work that was done since the last call, and what is running."""


class AttackedImages:
    """Turns the running totals of an attack on some images into ticks.

    Args:
        tick: Called with what is new.
        images: How many are attacked.

    Example:
        >>> images = AttackedImages(lambda images, work, note: print(images, work), 10)
        >>> images.report(SuiteProgress(2, 4.5, "apgd-ce"))
        2 4.5
        >>> images.finish()
        8 5.5
    """

    def __init__(self, tick: Tick, images: int) -> None:
        self._tick, self._images = tick, images
        self._finished, self._work = 0, 0.0

    def report(self, progress: SuiteProgress) -> None:
        """Tick what is new."""
        work = max(self._work, progress.work)  # An estimate may fall; a bar must not.
        self._tick(progress.finished - self._finished, work - self._work, progress.note)
        self._finished, self._work = progress.finished, work

    def finish(self) -> None:
        """Tick whatever is left."""
        self._tick(self._images - self._finished, self._images - self._work, "")
        self._finished, self._work = self._images, float(self._images)


@contextmanager
def progress_bars(progress: bool | None, on_progress: OnProgress | None) -> Iterator[OnProgress | None]:
    """What an evaluation reports to: the function given, or bars of tqdm.

    Args:
        progress: Whether to show bars; None shows them in a terminal or a notebook, unless there is a function.
        on_progress: Called instead of, or beside, the bars.
    """
    if not (progress if progress is not None else on_progress is None and _is_watched()):
        yield on_progress
        return
    bars = _Bars(on_progress)
    try:
        yield bars.update
    finally:
        bars.close()


def _is_watched() -> bool:
    """Whether a person sees standard error: in a terminal, or in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {}) or bool(getattr(sys.stderr, "isatty", lambda: False)())


class _Bars:
    """A bar for each title."""

    def __init__(self, on_progress: OnProgress | None) -> None:
        from tqdm.auto import tqdm

        self._new, self._bars, self._on_progress = tqdm, {}, on_progress

    def update(self, progress: Progress) -> None:
        title, total = progress.title, progress.total
        if title not in self._bars:
            shape = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}{postfix}]"
            self._bars[title] = self._new(desc=title, total=total, bar_format=shape, leave=True)
        bar = self._bars[title]
        finished = progress.done == total
        bar.n = total if finished else min(progress.work, total)
        bar.set_postfix_str(f"{progress.done}/{total} {progress.note}".rstrip(), refresh=False)
        bar.refresh()
        if self._on_progress is not None:
            self._on_progress(progress)

    def close(self) -> None:
        for bar in self._bars.values():
            bar.close()
