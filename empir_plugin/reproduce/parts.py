"""The parts of a reproduction: evaluations, costs and confusion matrices, each measured once into one record."""

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
from empir_plugin.evaluation.prepare import exact_float32
from empir_plugin.evaluation.progress import Progress
from empir_plugin.evaluation.protocols import Protocol
from empir_plugin.evaluation.run import evaluate
from empir_plugin.evaluation.shards import cut
from empir_plugin.reproduce.context import Context, Preprocess, unchanged
from empir_plugin.reproduce.subjects import Subject

_COST_FILE = JsonKind("a record of costs", EvaluationError)
_MATRIX_FILE = JsonKind("a confusion matrix", EvaluationError, cure="delete it")


class Part(Interface):
    """One measurement, written to one record. Finished work is reused, interrupted work resumes."""

    @property
    def slug(self) -> str:
        """Name of its record; parts of the same name are the same measurement."""
        ...

    @property
    def dataset(self) -> str:
        """Data set it runs on."""
        ...

    @property
    def images(self) -> str:
        """Identifies its images: the data set and any preprocessing."""
        ...

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Networks it measures."""
        ...

    def run(self, context: Context) -> None:
        """Measure, and write the record."""
        ...


@dataclass(frozen=True)
class Evaluation:
    """The attacks of a protocol on one network.

    Args:
        subject: The network.
        dataset: Data set it is attacked on.
        protocol: The attacks.
        threat: Norm and budget of the attacks.
        slug: Name of the record.
        cascade: Attack only images that survived earlier attacks (same worst case, faster).
        preprocess: Applied to the images before they are attacked.
    """

    subject: Subject
    dataset: str
    protocol: Protocol
    threat: Threat
    slug: str
    cascade: bool = False
    preprocess: Preprocess = unchanged

    @property
    def images(self) -> str:
        """The data set, with its preprocessing if there is any."""
        return self.dataset if self.preprocess is unchanged else f"{self.dataset}, {self.preprocess}"

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Its one network."""
        return (self.subject,)

    def run(self, context: Context) -> None:
        """Evaluate, reusing finished shards.

        Raises:
            EvaluationError: If the evaluation fails.
        """
        record = evaluate(
            context.load(self.subject),
            self.preprocess(context.test(self.dataset)),
            self.threat,
            protocol=self.protocol,
            name=self.subject.name,
            settings=replace(context.settings, cascade=self.cascade),
            store=context.workspace.store,
            on_progress=context.report_attack,
        )
        record.write(context.workspace.records / f"{self.slug}.json")


@dataclass(frozen=True)
class _OnOneNetwork:
    # A part of a target that looks at one network, on one data set.
    subject: Subject
    dataset: str

    @property
    def images(self) -> str:
        """The data set."""
        return self.dataset

    @property
    def subjects(self) -> tuple[Subject, ...]:
        """Its one network."""
        return (self.subject,)


@dataclass(frozen=True)
class Cost(_OnOneNetwork):
    """Time and storage of one network relative to full precision, by Equation 6 of the EMPIR paper.

    Args:
        subject: The network.
        dataset: Data set that gives the shape of its input.
        slug: Name of the record.
    """

    slug: str

    def run(self, context: Context) -> None:
        """Count operations and bits; nothing is timed.

        Raises:
            EvaluationError: If the network's operations cannot be counted.
        """
        context.report("counting operations and bits")
        costs = overhead(context.load(self.subject), image_shape_of(self.dataset)).to_dict()
        run = {"finished": now(), "versions": versions(), "code_sha256": code_sha256()}
        table = {"name": self.subject.name, **costs, "run": run}
        _COST_FILE.write(context.workspace.records / f"{self.slug}.json", table)


@dataclass(frozen=True)
class ConfusionMatrix:
    """Decisions of a network by true class, under one attack.

    Args:
        model: ``name``, ``sha256`` and ``identity``, the version of that hash.
        data: ``name``, ``n``, ``sha256`` and more about the images.
        attack: Name and rules of the attack, as a sentence.
        threat: Norm and budget, as text.
        counts: ``(K, K)``: by true class, then by decision.
        run: ``seed``, ``device``, ``finished``, ``versions``, ``code_sha256``.

    Raises:
        EvaluationError: If the counts are not square, or do not add up to the number of images.
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
        """Percent of the images on the diagonal, to two decimals.

        Example:
            >>> ConfusionMatrix({}, {"n": 4}, "", "", ((1, 1), (0, 2)), {}).accuracy
            75.0
        """
        return round(100 * sum(row[i] for i, row in enumerate(self.counts)) / self.data["n"], 2)

    def write(self, path: Path) -> None:
        """Write the matrix as JSON."""
        _MATRIX_FILE.write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> ConfusionMatrix:
        """Read a matrix from JSON.

        Raises:
            EvaluationError: If the file is missing or not a confusion matrix.
        """
        return _MATRIX_FILE.read(path, lambda table: cls(**{**table, "counts": tuple(map(tuple, table["counts"]))}))


@dataclass(frozen=True)
class Confusion(_OnOneNetwork):
    """The confusion matrix of one network under one attack of a protocol. All images are attacked.

    Args:
        subject: The network.
        dataset: Data set it is attacked on.
        protocol: Protocol of the attack.
        attack: Name of the attack in the protocol.
        threat: Norm and budget of the attack.
        slug: Name of the record.
    """

    protocol: Protocol
    attack: str
    threat: Threat
    slug: str

    def run(self, context: Context) -> None:
        """Attack all images and count the decisions, unless the record is up to date.

        Raises:
            EvaluationError: If the attack fails or exceeds its budget.
        """
        path = context.workspace.records / f"{self.slug}.json"
        model, data = context.load(self.subject), context.test(self.dataset)
        about = model_table(model, self.subject.name)
        hashes = {"model": str(about["sha256"]), "data": data.fingerprint, "code": code_sha256()}
        if _is_up_to_date(path, hashes):
            return
        spec = self._attack_spec(model)
        counts = _count_decisions(model, data, spec, self.threat, context)
        ConfusionMatrix(
            model=about,
            data=data_table(data),
            attack=f"Protocol {self.protocol.name}. {spec.describe()}",
            threat=str(self.threat),
            counts=tuple(tuple(row) for row in counts.tolist()),
            run=_run_table(context.settings),
        ).write(path)

    def _attack_spec(self, model: nn.Module) -> AttackSpec:
        specs = self.protocol.attacks(model, self.dataset)
        return replace(next(spec for spec in specs if spec.name == self.attack), attack_all=True)


def _is_up_to_date(path: Path, hashes: dict[str, str]) -> bool:
    if not path.is_file():
        return False
    matrix = ConfusionMatrix.read(path)
    return hashes == {
        "model": matrix.model["sha256"], "data": matrix.data["sha256"], "code": matrix.run["code_sha256"]
    }  # fmt: skip


def _run_table(settings: Settings) -> dict[str, Any]:
    machine = {"seed": settings.seed, "device": settings.device.type, "threads": torch.get_num_threads()}
    return {**machine, "finished": now(), "versions": versions(), "code_sha256": code_sha256()}


def _count_decisions(model: nn.Module, data: ImageSet, spec: AttackSpec, threat: Threat, context: Context) -> Tensor:
    """Decisions under attack, counted by true class and decision: ``(K, K)``."""
    settings = context.settings
    evaluator = Evaluator.of(model, data, threat, settings)
    counts = torch.zeros(data.num_classes, data.num_classes, dtype=torch.int64)
    with exact_float32():
        for shard in cut(len(data), settings.images_per_shard):
            labels = data.labels[shard.start : shard.stop]
            clean = torch.tensor(evaluator.clean(shard).decisions)
            every_image = torch.ones_like(clean, dtype=torch.bool)
            outcome, _ = evaluator.attack(spec, shard, every_image, clean, lambda images, work, note: None)
            context.report_attack(Progress(spec.name, shard.stop, len(data), shard.stop))
            counts.index_put_((labels, torch.tensor(outcome.decisions)), torch.tensor(1), accumulate=True)
    return counts


def missing_input(part: Part, context: Context) -> str:
    """Explain what the user must supply before a part can run; empty if nothing is missing.

    Users supply the weights of models that come without, and the images of ImageNet.
    """
    for model in dict.fromkeys(name for subject in part.subjects for name in subject.user_weights):
        path = context.trainer.user_file(model)
        if not path.is_file():
            return f"no weights of {model}: put its state dict (safetensors) in {path.parent.name}/{path.name} of --out"
    if part.dataset != "imagenet":
        return ""
    try:
        context.test(part.dataset)
    except (DataError, InputError) as error:
        return str(error)
    return ""


def select_attacks(protocol: Protocol, *names: str) -> Protocol:
    """Restrict a protocol to some of its attacks.

    Example:
        >>> from empir_plugin.evaluation.protocols import paper
        >>> [spec.name for spec in select_attacks(paper, "FGSM").attacks(nn.Flatten())]
        ['FGSM']
    """
    name = f"{protocol.name}: {', '.join(names)}"
    return replace(protocol, name=name, plan=partial(_selected_plan, protocol, names))


def _selected_plan(protocol: Protocol, names: Sequence[str], model: nn.Module, dataset: str) -> tuple[AttackSpec, ...]:
    return tuple(spec for spec in protocol.attacks(model, dataset) if spec.name in names)
