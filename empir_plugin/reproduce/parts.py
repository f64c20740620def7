"""One measurement of a reproduction: a piece of work that leaves one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol as Interface

from torch import nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import DataError, InputError
from empir_plugin.evaluation.planned import Planned
from empir_plugin.evaluation.protocols import Protocol
from empir_plugin.evaluation.run import evaluate
from empir_plugin.reproduce.desk import Desk
from empir_plugin.reproduce.images import Prepare, as_they_are
from empir_plugin.reproduce.subjects import Subject


class Part(Interface):
    """A piece of work. What it has done, or begun, it finds again and does not do twice."""

    @property
    def slug(self) -> str:
        """Name of its record, unique among all parts of all targets."""
        ...

    @property
    def dataset(self) -> str:
        """What it runs on."""
        ...

    @property
    def images(self) -> str:
        """Which images: the data set, and what was done to them."""
        ...

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """What it is about."""
        ...

    def run(self, desk: Desk) -> None:
        """Measure, and write the record."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """Attacks on one network.

    Args:
        subject: The network.
        dataset: What it classifies.
        protocol: The attacks.
        threat: The budget.
        slug: Name of the record.
        cascade: Whether images that fell are spared later attacks: the worst case is the same, sooner.
        prepare: What is done to the images before they are attacked.
    """

    subject: Subject
    dataset: str
    protocol: Protocol
    threat: Threat
    slug: str
    cascade: bool = False
    prepare: Prepare = as_they_are

    @property
    def images(self) -> str:
        """The data set, and what was done to it."""
        return self.dataset if self.prepare is as_they_are else f"{self.dataset}, {self.prepare}"

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Its one network."""
        return (self.subject,)

    def run(self, desk: Desk) -> None:
        """Evaluate; shards that are finished are not computed again.

        Raises:
            EvaluationError: If the evaluation cannot go on.
        """
        record = evaluate(
            desk.load(self.subject),
            self.prepare(desk.test(self.dataset)),
            self.threat,
            protocol=self.protocol,
            name=self.subject.name,
            settings=replace(desk.settings, cascade=self.cascade),
            store=desk.workspace.store,
            on_progress=desk.on_attack,
        )
        record.write(desk.workspace.records / f"{self.slug}.json")


def lacking(part: Part, desk: Desk) -> str:
    """Why a part cannot run because of something only the user can have; empty if nothing keeps it.

    Weights of named models, and images of data sets that no network of this package was trained on, are such things.
    """
    for model in dict.fromkeys(name for subject in part.subjects for name in subject.given):
        path = desk.trainer.given(model)
        if not path.is_file():
            return f"no weights of {model}: put its state dict (safetensors) in {path.parent.name}/{path.name} of --out"
    if part.dataset != "imagenet":
        return ""
    try:
        desk.test(part.dataset)
    except (DataError, InputError) as error:
        return str(error)
    return ""


def only(protocol: Protocol, *names: str) -> Protocol:
    """A protocol cut down to some of its attacks.

    Example:
        >>> from empir_plugin.evaluation.protocols import paper
        >>> [planned.name for planned in only(paper, "FGSM").attacks(nn.Flatten())]
        ['FGSM']
    """
    told = f"{protocol.name}: {', '.join(names)}"
    return replace(protocol, name=told, plan=partial(_only, protocol, names))


def _only(protocol: Protocol, names: Sequence[str], model: nn.Module, dataset: str) -> tuple[Planned, ...]:
    return tuple(planned for planned in protocol.attacks(model, dataset) if planned.name in names)
