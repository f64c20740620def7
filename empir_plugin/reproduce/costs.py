"""What networks cost, as records of a reproduction."""

from __future__ import annotations

from dataclasses import dataclass

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.overhead import image_shape_of, overhead
from empir_plugin.evaluation.provenance import code_sha256, now, versions
from empir_plugin.evaluation.strict_json import JsonKind
from empir_plugin.reproduce.desk import Desk
from empir_plugin.reproduce.subjects import Subject

_KIND = JsonKind("a record of costs", EvaluationError)


@dataclass(frozen=True)
class Cost:
    """Time and storage of one network by Equation 6, relative to one in full precision.

    Args:
        subject: The network.
        dataset: What it classifies.
        slug: Name of the record.
    """

    subject: Subject
    dataset: str
    slug: str

    @property
    def images(self) -> str:
        """The data set as it is."""
        return self.dataset

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Its one network."""
        return (self.subject,)

    def run(self, desk: Desk) -> None:
        """Count; no time is measured.

        Raises:
            EvaluationError: If the network cannot be counted.
        """
        desk.tell("counting operations and bits")
        found = overhead(desk.load(self.subject), image_shape_of(self.dataset)).to_dict()
        run = {"finished": now(), "versions": versions(), "code_sha256": code_sha256()}
        table = {"name": self.subject.name, **found, "run": run}
        _KIND.write(desk.workspace.records / f"{self.slug}.json", table)
