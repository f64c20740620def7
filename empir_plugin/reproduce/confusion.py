"""Confusion matrices under an attack: which class is taken for which."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.data import ImageSet
from empir_plugin.evaluation.planned import Planned
from empir_plugin.evaluation.protocols import Protocol
from empir_plugin.evaluation.provenance import code_sha256, data_table, now, versions
from empir_plugin.evaluation.run import Settings
from empir_plugin.evaluation.shards import Bench, shards
from empir_plugin.evaluation.strict_json import JsonKind
from empir_plugin.evaluation.subject import exact_float32, model_fingerprint, prepared
from empir_plugin.reproduce.desk import Desk
from empir_plugin.reproduce.subjects import Subject

_KIND = JsonKind("a confusion matrix", EvaluationError, cure="delete it")


@dataclass(frozen=True)
class Matrix:
    """How often each class was decided for, on what one attack made of the images.

    Args:
        model: ``name`` and ``sha256``.
        data: Which images.
        attack: Its name and its rules, as a sentence.
        threat: As text.
        counts: ``(K, K)``: by true class, then by decision.
        run: ``seed``, ``device``, ``finished``, ``versions``, ``code_sha256``.

    Raises:
        EvaluationError: If the counts are not those of the images.
    """

    model: dict[str, Any]
    data: dict[str, Any]
    attack: str
    threat: str
    counts: tuple[tuple[int, ...], ...]
    run: dict[str, Any]

    def __post_init__(self) -> None:
        if sum(map(sum, self.counts)) != self.data["n"] or any(len(row) != len(self.counts) for row in self.counts):
            raise EvaluationError(f"a confusion matrix must be square and count {self.data['n']} images")

    @property
    def accuracy(self) -> float:
        """Percent on the diagonal, to two decimals.

        Example:
            >>> Matrix({}, {"n": 4}, "", "", ((1, 1), (0, 2)), {}).accuracy
            75.0
        """
        return round(100 * sum(row[i] for i, row in enumerate(self.counts)) / self.data["n"], 2)

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        _KIND.write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Matrix:
        """Read it back.

        Raises:
            EvaluationError: If the file is missing or no matrix.
        """
        return _KIND.read(path, lambda table: cls(**{**table, "counts": tuple(map(tuple, table["counts"]))}))


@dataclass(frozen=True)
class Confusion:
    """One attack of a protocol, and what a network takes its images for. All images are attacked.

    Args:
        subject: The network.
        dataset: What it classifies.
        protocol: Has the attack.
        attack: Its name there.
        threat: The budget.
        slug: Name of the record.
    """

    subject: Subject
    dataset: str
    protocol: Protocol
    attack: str
    threat: Threat
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
        """Attack and count; a matrix that is there for the same network and images is kept.

        Raises:
            EvaluationError: If the attack fails or breaks its budget.
        """
        path, model, data = (
            desk.workspace.records / f"{self.slug}.json",
            desk.load(self.subject),
            desk.test(self.dataset),
        )
        facts = {"model": model_fingerprint(model), "data": data.fingerprint, "code": code_sha256()}
        if _is_done(path, facts):
            return
        planned = self._planned(model)
        counts = _counts(prepared(model, desk.settings.device), data, planned, self.threat, desk)
        Matrix(
            model={"name": self.subject.name, "sha256": facts["model"]},
            data=data_table(data),
            attack=f"Protocol {self.protocol.name}. {planned.describe()}",
            threat=str(self.threat),
            counts=tuple(tuple(row) for row in counts.tolist()),
            run=_run(desk.settings),
        ).write(path)

    def _planned(self, model: nn.Module) -> Planned:
        plan = self.protocol.attacks(model, self.dataset)
        return replace(next(each for each in plan if each.name == self.attack), attack_all=True)


def _is_done(path: Path, facts: dict[str, str]) -> bool:
    if not path.is_file():
        return False
    found = Matrix.read(path)
    return facts == {
        "model": found.model["sha256"], "data": found.data["sha256"], "code": found.run["code_sha256"]
    }  # fmt: skip


def _run(settings: Settings) -> dict[str, Any]:
    told = {"seed": settings.seed, "device": settings.device.type, "threads": torch.get_num_threads()}
    return {**told, "finished": now(), "versions": versions(), "code_sha256": code_sha256()}


def _counts(model: nn.Module, data: ImageSet, planned: Planned, threat: Threat, desk: Desk) -> Tensor:
    """How often each class ``(K, K)``, true first, was decided for."""
    settings = desk.settings
    bench = Bench(model, data, threat, settings.seed, settings.batch_size, settings.device)
    counts = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
    with exact_float32():
        for shard in shards(len(data), settings.shard_size):
            labels = data.labels[shard.start : shard.stop]
            own = torch.tensor(bench.clean(shard).decisions)
            outcome, _ = bench.attacked(
                planned, shard, torch.ones_like(own, dtype=torch.bool), own, lambda images: None
            )
            desk.on_attack(planned.name, shard.stop, len(data))
            counts.index_put_((labels, torch.tensor(outcome.decisions)), torch.tensor(1), accumulate=True)
    return counts
