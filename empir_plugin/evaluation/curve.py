"""Robust accuracy over eps: one evaluation for each radius, each beginning with what the smaller radii broke."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from empir_plugin._files.strict_json import JsonKind
from empir_plugin.attacks.batch import Attack
from empir_plugin.attacks.surrogates import Model
from empir_plugin.attacks.threat import Norm, Threat
from empir_plugin.data.image_set import ImageSet
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.attack_spec import AttackSpec, Labels
from empir_plugin.evaluation.evaluator import Settings
from empir_plugin.evaluation.progress import OnProgress, Progress
from empir_plugin.evaluation.protocols import Protocol, default
from empir_plugin.evaluation.record import Record, parse_record, percent
from empir_plugin.evaluation.run import evaluate

SCHEMA = 1
_KIND = JsonKind("a curve over eps", EvaluationError, SCHEMA)
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)(?:/([1-9]\d*))?")
_MOST = 200


def parse_radii(text: str) -> tuple[str, ...]:
    """Read radii separated by commas, ascending; ``...`` continues in equal steps. Zero, the clean images, is dropped.

    Raises:
        InputError: If the text has another form, or the radii do not ascend.

    Example:
        >>> parse_radii("0,1/255,...,4/255"), parse_radii("0.1,0.3")
        (('1/255', '2/255', '3/255', '4/255'), ('0.1', '0.3'))
    """
    items = [item.strip() for item in text.split(",")]
    radii: list[str] = []
    for index, item in enumerate(items):
        if item == "...":
            if not 2 <= index < len(items) - 1:
                raise InputError(f"... stands between two radii and a last one, as in 0,1/255,...,8/255; got {text!r}")
            radii += _between(items[index - 2], items[index - 1], items[index + 1], text)
        elif _NUMBER.fullmatch(item):
            radii.append(item)
        else:
            raise InputError(f"radii are written as 0,1/255,...,8/255 or 0.1,0.2, got {item!r} in {text!r}")
    values = [Fraction(radius) for radius in radii]
    if values != sorted(set(values)):
        raise InputError(f"radii must ascend, got {', '.join(radii)}")
    if not any(values):
        raise InputError(f"a curve needs a radius above 0, got {text!r}")
    return tuple(radius for radius, value in zip(radii, values, strict=True) if value)


def _between(first: str, second: str, last: str, text: str) -> list[str]:
    if not all(_NUMBER.fullmatch(each) for each in (first, second, last)):
        raise InputError(f"... needs numbers before and after it, got {text!r}")
    start, step = Fraction(second), Fraction(second) - Fraction(first)
    count = (Fraction(last) - start) / step if step > 0 else Fraction(0)
    if count < 1 or count.denominator > 1 or count > _MOST:
        raise InputError(f"steps of {float(step):g} do not lead from {second} to {last}: {text!r}")
    denominator = second.partition("/")[2]
    values = [start + step * number for number in range(1, int(count))]
    if denominator and all((value * int(denominator)).denominator == 1 for value in values):
        return [f"{value * int(denominator)}/{denominator}" for value in values]
    return [f"{float(value):.12g}" for value in values]


@dataclass(frozen=True, eq=False)
class WarmStart:
    """An attack that begins with what it found at a smaller radius: those images are adversarial at a larger one, too.

    Images it has broken are returned as they are, without another pass; the judge decides about them again.

    Args:
        attack: Attacks the other images.
        found: Adversarial images ``(C, H, W)`` by the number of the image; grows with every call.

    Example:
        >>> from empir_plugin.attacks import fgsm
        >>> model, x = nn.Flatten(), torch.tensor([[[[0.5, 0.48]]]])
        >>> warm = WarmStart(fgsm())
        >>> small = warm(model, x, torch.tensor([0]), Threat.parse("Linf:0.02"), indices=torch.tensor([0]))
        >>> large = warm(model, x, torch.tensor([0]), Threat.parse("Linf:0.1"), indices=torch.tensor([0]))
        >>> bool((small == large).all()), list(warm.found)
        (True, [0])
    """

    kind: ClassVar[str] = "warm-start"

    attack: Attack
    found: dict[int, Tensor] = field(default_factory=dict, repr=False)

    def __call__(
        self, model: Model, x: Tensor, y: Tensor, threat: Threat, *, seed: int = 0, indices: Tensor | None = None
    ) -> Tensor:
        """Attack a batch, with the interface of every attack."""
        numbers = (torch.arange(len(x)) if indices is None else indices).tolist()
        adversarial = x.clone()
        known = [number in self.found for number in numbers]
        for row, number in enumerate(numbers):
            if known[row]:
                adversarial[row] = self.found[number].to(x.device)
        rows = torch.tensor([row for row, is_known in enumerate(known) if not is_known], device=x.device)
        if len(rows):
            given = None if indices is None else indices[rows]
            adversarial[rows] = self.attack(model, x[rows], y[rows], threat, seed=seed, indices=given).detach()
            with torch.no_grad():
                broken = model(adversarial[rows]).argmax(1) != y[rows]
            for row in rows[broken].tolist():
                self.found[numbers[row]] = adversarial[row].cpu().clone()
        return adversarial


@dataclass(frozen=True)
class Curve:
    """Robust accuracy over eps.

    Args:
        norm: Of the perturbations, such as ``"Linf"``.
        radii: As text, ascending, without 0.
        records: One evaluation for each radius, of the same model, images and attacks.

    Raises:
        EvaluationError: If the records do not belong together, or an image is broken at a radius and robust at a
            larger one.
    """

    norm: str
    radii: tuple[str, ...]
    records: tuple[Record, ...]
    schema: int = field(default=SCHEMA, kw_only=True)

    def __post_init__(self) -> None:
        if not self.records or [record.threat for record in self.records] != [f"{self.norm}:{r}" for r in self.radii]:
            raise EvaluationError("a curve has one record for each radius, in order, under its norm")
        first = self.records[0]
        for record in self.records:
            same = (record.model, record.data, record.clean) == (first.model, first.data, first.clean)
            if not same or [attack.name for attack in record.attacks] != list(self.attacks):
                raise EvaluationError("the records of a curve are of one model, the same images and the same attacks")
        columns = [[record.worst_case for record in self.records]]
        columns += [[record.attacks[index].robust for record in self.records] for index in range(len(self.attacks))]
        for column in columns:
            for smaller, larger in pairwise(column):
                if any(one == "0" and other == "1" for one, other in zip(smaller, larger, strict=True)):
                    raise EvaluationError("an image that is broken at a radius must be broken at every larger one")

    @property
    def attacks(self) -> tuple[str, ...]:
        """Names of the attacks."""
        return tuple(attack.name for attack in self.records[0].attacks)

    @property
    def eps(self) -> tuple[float, ...]:
        """The radii as numbers, with 0 first."""
        return (0.0, *(float(Fraction(radius)) for radius in self.radii))

    def verdicts(self, attack: str | None = None) -> tuple[str, ...]:
        """The verdicts on every image, at eps 0 and at each radius, under an attack or, by default, in the worst case.

        Raises:
            KeyError: If no attack has that name.
        """
        first = self.records[0].clean
        if attack is None:
            return (first, *(record.worst_case for record in self.records))
        return (first, *({each.name: each for each in record.attacks}[attack].robust for record in self.records))

    def accuracy(self, attack: str | None = None) -> tuple[float, ...]:
        """Robust accuracy in percent, at eps 0 and at each radius; arguments as for :meth:`verdicts`."""
        return tuple(map(percent, self.verdicts(attack)))

    def minimal_eps(self) -> tuple[float | None, ...]:
        """For every image, the smallest radius that breaks it; 0 if it is misclassified, None if none does."""
        columns = zip(*self.verdicts(), strict=True)
        return tuple(
            next((eps for eps, bit in zip(self.eps, column, strict=True) if bit == "0"), None) for column in columns
        )

    def to_json(self) -> str:
        """As JSON text."""
        return _KIND.text(asdict(self))

    def write(self, path: Path) -> None:
        """Write the curve atomically.

        Raises:
            EvaluationError: If it cannot be written.
        """
        _KIND.write(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> Curve:
        """Read a curve back.

        Raises:
            EvaluationError: If the file is missing, is not a curve, or contradicts itself.
        """
        return _KIND.read(path, cls.from_table)

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> Curve:
        """The curve of a JSON object.

        Raises:
            EvaluationError: If it contradicts itself.
            KeyError: If a field is missing.
        """
        return cls(str(table["norm"]), tuple(table["radii"]), tuple(map(parse_record, table["records"])))


def evaluate_curve(
    model: nn.Module,
    data: ImageSet,
    norm: Norm,
    radii: Sequence[str],
    attacks: Sequence[AttackSpec] | None = None,
    *,
    protocol: Protocol = default,
    name: str = "",
    settings: Settings | None = None,
    on_progress: OnProgress | None = None,
) -> Curve:
    """Evaluate a model at several radii; an image that an attack broke at one is not attacked again at the next.

    Args:
        model: From images ``(N, C, H, W)`` in [0, 1] to logits ``(N, K)``.
        data: Images and true labels.
        norm: Of the perturbations.
        radii: As text, ascending, as :func:`parse_radii` returns them.
        attacks: Instead of the protocol's. Attacks with a budget of their own, or labels that are not the true ones,
            have no curve and are left out.
        protocol: As in :func:`~empir_plugin.evaluation.run.evaluate`, also for the next two.
        name: Likewise.
        settings: Likewise.
        on_progress: Called as images are finished; the title names attack and radius.

    Raises:
        InputError: If no attack has a curve, or a radius is impossible.
        EvaluationError: As from :func:`~empir_plugin.evaluation.run.evaluate`.

    Example:
        >>> from empir_plugin import load_images, load_model
        >>> from empir_plugin.attacks import fgsm
        >>> from empir_plugin.attacks.threat import Linf
        >>> data, attacks = load_images("cifar10").first(4), [AttackSpec("FGSM", fgsm())]
        >>> curve = evaluate_curve(load_model("cifarconv-w2a2"), data, Linf(), parse_radii("4/255,16/255"), attacks)
        >>> curve.attacks, len(curve.accuracy())
        (('FGSM',), 3)
    """
    threats = [Threat.parse(f"{norm}:{radius}") for radius in radii]
    chosen = protocol.attacks(model, data.name) if attacks is None else attacks
    usable = [spec for spec in chosen if spec.threat is None and not spec.attack_all and spec.labels is Labels.TRUE]
    if not usable or not threats:
        names = ", ".join(spec.name for spec in chosen) or "none"
        raise InputError(f"a curve needs radii, and attacks that follow them; got {names}: choose others, such as PGD")
    defined = [spec.with_batch_size((settings or Settings()).batch_size) for spec in usable]
    defined = [spec.for_data(data.num_classes, data.images.shape[1:], threats[0]) for spec in defined]
    warm = tuple(replace(spec, attack=WarmStart(spec.attack)) for spec in defined)
    records = []
    for threat in threats:
        report = None if on_progress is None else _titled(on_progress, threat.eps_text)
        records.append(evaluate(model, data, threat, warm, name=name, settings=settings, on_progress=report))
    return Curve(str(norm), tuple(radii), tuple(records))


def _titled(on_progress: OnProgress, eps: str) -> OnProgress:
    def report(progress: Progress) -> None:
        on_progress(replace(progress, title=f"eps {eps}: {progress.title}"))

    return report
