"""What every part of a reproduction works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from empir_plugin.evaluation.data import ImageSet
from empir_plugin.evaluation.run import Settings
from empir_plugin.reproduce.images import Source
from empir_plugin.reproduce.subjects import Subject
from empir_plugin.reproduce.weights import Trainer
from empir_plugin.reproduce.workspace import Workspace
from empir_plugin.training.loop import Step

Tell = Callable[[str], None]
"""Told in a few words what is being done."""


def silent(text: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, eq=False)
class Desk:
    """Images, weights and settings, at hand for one part after the other.

    Args:
        workspace: Where results go.
        images: Where images come from.
        settings: How evaluations run.
        tell: Told what is being done.
    """

    workspace: Workspace
    images: Source
    settings: Settings
    tell: Tell = silent
    _sets: dict[str, ImageSet] = field(default_factory=dict)

    def test(self, dataset: str) -> ImageSet:
        """The images to attack, loaded once."""
        if dataset not in self._sets:
            self._sets[dataset] = self.images.test(dataset)
        return self._sets[dataset]

    @property
    def trainer(self) -> Trainer:
        """Where weights come from that do not travel with this package."""
        return Trainer(self.workspace, self.images, self.settings.device, self._on_step)

    def load(self, subject: Subject) -> nn.Module:
        """A network with its weights; trained, if it has to be."""
        return subject.load(self.trainer)

    def on_attack(self, attack: str, done: int, total: int) -> None:
        """Tell how far an attack is."""
        self.tell(f"{attack} {done}/{total}")

    def _on_step(self, step: Step) -> None:
        self.tell(f"training {step.member} {step.step}/{step.steps}, accuracy {step.accuracy:.1%}")
