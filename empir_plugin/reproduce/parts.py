"""One measurement of a reproduction: a piece of work that leaves one record."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.attacks.threat import Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import DataError, EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.evaluator import Evaluator, Settings
from empir_plugin.evaluation.identity import code_sha256, data_table, model_table, now, versions
from empir_plugin.evaluation.overhead.report import image_shape_of, overhead
from empir_plugin.evaluation.prepare import exact_float32, prepare
from empir_plugin.evaluation.protocols import Protocol
from empir_plugin.evaluation.run import evaluate
from empir_plugin.evaluation.shards import cut
from empir_plugin.reproduce.context import Desk, Prepare, as_they_are
from empir_plugin.reproduce.subjects import Subject

_COST = JsonKind("a record of costs", EvaluationError)


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
        _COST.write(desk.workspace.records / f"{self.slug}.json", table)


_CONFUSION = JsonKind("a confusion matrix", EvaluationError, cure="delete it")


@dataclass(frozen=True)
class Matrix:
    """How often each class was decided for, on what one attack made of the images.

    Args:
        model: ``name``, ``sha256`` and ``identity``, the version of that hash.
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
        _CONFUSION.write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Matrix:
        """Read it back.

        Raises:
            EvaluationError: If the file is missing or no matrix.
        """
        return _CONFUSION.read(path, lambda table: cls(**{**table, "counts": tuple(map(tuple, table["counts"]))}))


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
        about = model_table(model, self.subject.name)
        facts = {"model": str(about["sha256"]), "data": data.fingerprint, "code": code_sha256()}
        if _is_done(path, facts):
            return
        spec = self._planned(model)
        counts = _counts(prepare(model, desk.settings.device), data, spec, self.threat, desk)
        Matrix(
            model=about,
            data=data_table(data),
            attack=f"Protocol {self.protocol.name}. {spec.describe()}",
            threat=str(self.threat),
            counts=tuple(tuple(row) for row in counts.tolist()),
            run=_run(desk.settings),
        ).write(path)

    def _planned(self, model: nn.Module) -> AttackSpec:
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


def _counts(model: nn.Module, data: ImageSet, spec: AttackSpec, threat: Threat, desk: Desk) -> Tensor:
    """How often each class ``(K, K)``, true first, was decided for."""
    settings = desk.settings
    evaluator = Evaluator(model, data, threat, settings)
    counts = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
    with exact_float32():
        for shard in cut(len(data), settings.shard_size):
            labels = data.labels[shard.start : shard.stop]
            own = torch.tensor(evaluator.clean(shard).decisions)
            every_image = torch.ones_like(own, dtype=torch.bool)
            outcome, _ = evaluator.attack(spec, shard, every_image, own, lambda images: None)
            desk.on_attack(spec.name, shard.stop, len(data))
            counts.index_put_((labels, torch.tensor(outcome.decisions)), torch.tensor(1), accumulate=True)
    return counts


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
        >>> [spec.name for spec in only(paper, "FGSM").attacks(nn.Flatten())]
        ['FGSM']
    """
    told = f"{protocol.name}: {', '.join(names)}"
    return replace(protocol, name=told, plan=partial(_only, protocol, names))


def _only(protocol: Protocol, names: Sequence[str], model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    return tuple(spec for spec in protocol.attacks(model, dataset) if spec.name in names)
