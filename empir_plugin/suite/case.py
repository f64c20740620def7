"""One evaluation as a user requests it: model, data, threat and attacks by name, with defaults."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from empir_plugin.attacks.threat import Threat, parse_norm
from empir_plugin.data.image_set import ImageSet, load_images
from empir_plugin.errors import InputError
from empir_plugin.evaluation.attack_spec import AttackSpec
from empir_plugin.evaluation.comparison import ranges
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.identity import describe
from empir_plugin.evaluation.named_attacks import NamedAttack, attack_specs, name_of
from empir_plugin.evaluation.prepare import parse_device, require_weights
from empir_plugin.evaluation.protocols import Protocol, parse_protocol
from empir_plugin.evaluation.record import Record
from empir_plugin.zoo.find import ModelSource, find_model, threat_of
from empir_plugin.zoo.spec import ModelOptions


@dataclass(frozen=True)
class Thresholds:
    """Least accuracies, in percent of all images; None for no threshold.

    They are compared with the accuracies in a record, which have two decimals.

    Args:
        min_clean: Least accuracy on clean images.
        min_robust: Least robust accuracy: the per-image worst case over all attacks that count.

    Raises:
        InputError: If a threshold is not in [0, 100].

    Example:
        >>> Thresholds(min_robust=30).min_clean is None
        True
    """

    min_clean: float | None = None
    min_robust: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("min_clean", self.min_clean), ("min_robust", self.min_robust)):
            if least is None:
                continue
            if isinstance(least, bool) or not isinstance(least, (int, float)) or not 0 <= least <= 100:
                raise InputError(f"{name} must be a percentage from 0 to 100, got {least!r}")

    def shortfalls(self, record: Record) -> tuple[str, ...]:
        """One sentence for each threshold that a record misses.

        Without an attack with a finite budget there is no robust accuracy, and any ``min_robust`` is missed.
        """
        return tuple(self._shortfalls(record))

    def _shortfalls(self, record: Record) -> Iterator[str]:
        n = len(record.clean)
        if self.min_clean is not None and record.clean_accuracy < self.min_clean:
            have = f"{record.clean.count('1')} of {n} images are classified correctly, {_needed(self.min_clean, n)}"
            yield _below("clean", record.clean_accuracy, "min_clean", self.min_clean, have)
        if self.min_robust is None:
            return
        if not any(attack.in_worst_case for attack in record.attacks):
            names = ", ".join(attack.name for attack in record.attacks) or "none"
            yield f"min_robust {self.min_robust:g} % needs an attack with a budget, got {names}: add one, such as pgd"
        elif record.worst_case_accuracy < self.min_robust:
            robust = record.worst_case.count("1")
            have = f"{robust} of {n} images are robust to every attack, {_needed(self.min_robust, n)}"
            yield _below("robust", record.worst_case_accuracy, "min_robust", self.min_robust, have)

    def explain(self, record: Record) -> str:
        """The missed thresholds and the images that each attack broke, as lines of text; empty if none was missed."""
        missed = self.shortfalls(record)
        return "\n".join([*_heading(record), *missed, "", *_table(record)]) if missed else ""


def _below(what: str, accuracy: float, name: str, least: float, have: str) -> str:
    return f"{what} accuracy {accuracy:.2f} % is below {name} {least:g} %: {have}"


def _needed(least: float, n: int) -> str:
    exact = math.ceil(least * n / 100)
    rounded = exact - 1 if exact and round(100 * (exact - 1) / n, 2) >= least else exact
    return f"{rounded} are needed"


def _heading(record: Record) -> Iterator[str]:
    data = f"{record.data.get('n'):,} images of {record.data.get('name')} ({record.data.get('source')})"
    yield f"{record.model.get('name')} under {record.threat}, {data}"
    hashes = f"model {str(record.model.get('sha256'))[:16]}, data {str(record.data.get('sha256'))[:16]}"
    yield f"seed {record.run.get('seed')}, {record.run.get('device')}, SHA-256 of {hashes}"
    yield ""


def _table(record: Record) -> Iterator[str]:
    rows = [(attack.name, attack.robust, attack.accuracy) for attack in record.attacks]
    rows.append(("worst case per image", record.worst_case, record.worst_case_accuracy))
    width = max(len(name) for name, *_ in rows)
    wrong = [index for index, correct in enumerate(record.clean) if correct == "0"]
    yield f"  {'clean':{width}}  {record.clean_accuracy:6.2f} %  wrong: {ranges(wrong)}"
    for name, robust, accuracy in rows:
        yield f"  {name:{width}}  {accuracy:6.2f} %  broken: {ranges(_broken(record.clean, robust))}"


def _broken(clean: str, robust: str) -> list[int]:
    return [i for i, (before, after) in enumerate(zip(clean, robust, strict=True)) if before == "1" and after == "0"]


_QUICK = 100
"""Number of images of the bundled sample, the default of ``empir evaluate``."""


@dataclass(frozen=True)
class Case:
    """What to evaluate; empty text and None stand for the default.

    Args:
        model: What names a model, see :func:`empir_plugin.zoo.find.find_model`; empty for a model object of your own.
        dataset: Name of the data set; by default the one on the named model's card.
        threat: Norm, by default ``"Linf"``, or norm and radius, such as ``"Linf:8/255"``.
        eps: Radius in units of the image, as a number or as text such as ``"8/255"``; by default the protocol's, or the
            one on the named model's card.
        attack: Names, attack specs (:class:`~empir_plugin.evaluation.attack_spec.AttackSpec`), or attacks; the
            protocol's by default.
        protocol: Name of a protocol, instead of attacks.
        n_examples: Number of images, counted from the first; by default 100 of the bundled sample, or all of ``data``.
        data: Folder of the full data set; None for the bundled sample.
        checkpoint: Weights instead of the named model's own: safetensors or a PyTorch file.
        ema: Whether to load the moving average in them; None if they hold only one of the two.
        batch_size: Images per forward pass of an attack.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        seed: Seed of everything random in the attacks.
        min_robust: Least robust accuracy (per-image worst case), in percent.
        min_clean: Least clean accuracy, in percent.
        store: Folder for finished shards.
        adv_out: Folder for adversarial images.

    Raises:
        InputError: If both attacks and a protocol are named, or a threshold is not a percentage.

    Example:
        >>> case = Case(model="empir-cifar", attack=("pgd",), eps="4/255")
        >>> str(case.budget), len(case.load_data())
        ('Linf:4/255', 100)
    """

    model: str = ""
    dataset: str = ""
    threat: str = ""
    eps: str | float = ""
    attack: tuple[NamedAttack, ...] = ()
    protocol: str = ""
    n_examples: int | None = None
    data: Path | str | None = None
    checkpoint: Path | str | None = None
    ema: bool | None = None
    batch_size: int = 250
    device: str = "cpu"
    seed: int = 0
    min_robust: float | None = None
    min_clean: float | None = None
    store: Path | None = None
    adv_out: Path | None = None

    def __post_init__(self) -> None:
        if self.attack and self.protocol:
            raise InputError(f"name attacks or a protocol, got both ({self.label}): leave one out")
        _ = self.thresholds  # raises unless both are percentages

    @property
    def thresholds(self) -> Thresholds:
        """The least accuracies that pass."""
        return Thresholds(min_clean=self.min_clean, min_robust=self.min_robust)

    @property
    def settings(self) -> Settings:
        """How the evaluation runs."""
        return Settings(seed=self.seed, batch_size=self.batch_size, device=parse_device(self.device))

    @property
    def plan(self) -> Protocol:
        """The protocol whose attacks run if none is named."""
        return parse_protocol(self.protocol or "default")

    @property
    def label(self) -> str:
        """The names of its attacks or its protocol."""
        names = ", ".join(map(name_of, self.attack))
        return ", ".join(part for part in (names, self.protocol) if part) or "default"

    @property
    def budget(self) -> Threat:
        """The threat: the given one, else the protocol's, else the one on the model's card.

        Raises:
            InputError: If there is none, or it is invalid.
        """
        if ":" in self.threat and self.eps == "":
            return Threat.parse(self.threat)
        if self.eps != "":
            return _threat(self.threat or "Linf", self.eps)
        threat = self.plan.threat(self._dataset)
        if threat is None and self.model:
            threat = threat_of(self.source)
        if threat is None or self.threat not in ("", str(threat.norm)):
            whose = f"there is no default under {self.threat}" if self.threat else "a model of your own has no default"
            raise InputError(f"an evaluation needs a radius, {whose}: pass eps, such as '8/255' (--rb-eps)")
        return threat

    @property
    def _dataset(self) -> str:
        return self.dataset or (self.source.dataset if self.model else "")

    @property
    def source(self) -> ModelSource:
        """The model it names, before it is loaded."""
        checkpoint = None if self.checkpoint is None else Path(self.checkpoint)
        return find_model(self.model, ModelOptions(checkpoint, self.ema, self.dataset))

    def load_model(self) -> nn.Module:
        """The named model, with its weights.

        Raises:
            InputError: If no model has that name.
            WeightsError: If the checkpoint is missing, damaged or made for another model.
            EvaluationError: If the model has no weights.
        """
        if not self.model:
            hint = (
                "name one with --rb-model or model='...', or define a fixture rb_model that returns a torch.nn.Module"
            )
            raise InputError(f"an evaluation needs a model, got none: {hint}")
        model = self.source.load(str(self.budget.norm))
        require_weights(model, self.model)
        return model

    def load_data(self) -> ImageSet:
        """The images, from :func:`empir_plugin.load_images`.

        Raises:
            InputError: If no data set is named, or it has fewer images than requested.
            DataError: If the folder is missing or damaged.
        """
        if not self._dataset:
            hint = "name one with dataset='cifar10' (--rb-dataset), or define a fixture rb_data"
            raise InputError(f"a model of your own needs a data set, got none: {hint}")
        wanted = self.n_examples if self.n_examples is not None or self.data is not None else _QUICK
        return load_images(self._dataset, data_dir=self.data, n_examples=wanted)

    def attack_specs(self, model: nn.Module) -> tuple[AttackSpec, ...] | None:
        """The attack specs of this case on a model; None if its protocol chooses the attacks.

        Raises:
            InputError: If an attack is not known.
        """
        return attack_specs(self.attack, model) or None

    def images_file(self, name: str, fingerprints: str) -> Path | None:
        """The file for the adversarial images, one for each evaluation; None without ``adv_out``.

        Args:
            name: Of the model.
            fingerprints: Of the model's weights and of the images.
        """
        if self.adv_out is None:
            return None
        attacks = [each if isinstance(each, str) else describe(each) for each in self.attack]
        content = repr((fingerprints, attacks, self.protocol, self.seed, self.batch_size))
        text = f"{name}-{self.label}-{self.budget}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"
        return self.adv_out / f"{re.sub(r'[^A-Za-z0-9.]+', '-', text)}.safetensors"

    def describe(self) -> dict[str, Any]:
        """The case as a mapping that JSON can hold, for the report."""
        names = ("model", "dataset", "threat", "protocol", "n_examples", "device", "seed", "min_robust", "min_clean")
        chosen = {name: getattr(self, name) for name in names}
        return {
            **chosen,
            "eps": str(self.eps),
            "attack": [name_of(attack) for attack in self.attack],
            "label": self.label,
        }


def _threat(norm: str, eps: str | float) -> Threat:
    if ":" in norm:
        raise InputError(f"give the radius once, got {norm!r} and eps={eps!r}: leave one out")
    if isinstance(eps, str):
        return Threat.parse(f"{norm}:{eps}")
    if isinstance(eps, bool) or not isinstance(eps, (int, float)):
        raise InputError(f"eps must be a number or text such as '8/255', got {eps!r}")
    return Threat(parse_norm(norm), float(eps))
