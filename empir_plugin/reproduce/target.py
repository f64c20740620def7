"""A table or figure of a paper, as what has to be measured for it and how that is shown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from empir_plugin.reproduce.document import Block
from empir_plugin.reproduce.parts import Part
from empir_plugin.reproduce.results import Results
from empir_plugin.reproduce.subjects import Training, trainings_of

Show = Callable[[Results, Path], tuple[Block, ...]]
"""Draws a target's figures into a folder, and gives what the report shows of it."""


@dataclass(frozen=True)
class Target:
    """A table or figure of a paper.

    Args:
        name: What the command calls it.
        title: Heading in the report.
        parts: What is measured for it.
        show: How that is shown, once all of it is there.
        extras: Measured too where the user has what they need; shown as not run otherwise.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    show: Show
    extras: tuple[Part, ...] = ()

    @property
    def trainings(self) -> tuple[Training, ...]:
        """Trainings of the networks it needs."""
        return trainings_of([subject for part in self.parts for subject in part.subjects])

    @property
    def datasets(self) -> tuple[str, ...]:
        """Data sets its parts run on."""
        return tuple(dict.fromkeys(part.dataset for part in self.parts))
