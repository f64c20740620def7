"""Tables 1 to 4 of Song et al., https://arxiv.org/abs/2012.14965: weights of 3 bits, and the mu-law."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from empir_plugin.evaluation.protocols import adaptive
from empir_plugin.evaluation.record import common_worst_case, percent
from empir_plugin.reproduce.attacks import BLACK, NOISE, STRENGTHS, WHITE, quantized_weights
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import bars, draw, panels, percent_axis
from empir_plugin.reproduce.parts import Evaluation, only
from empir_plugin.reproduce.published import data_table
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import DATASETS, Altered, Subject, Trained, Zoo

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BITS = 3
_MAPPED = {"mnist": 1, "cifar10": 3}
"""How many last layers the mu-law maps."""
_TITLES: Mapping[str, str] = MappingProxyType({**DATASETS, "mnist": "MNISTSmall, MNIST"})
"""Here MNIST has another network than in the other tables."""
_BASES: Mapping[tuple[str, str], Subject] = MappingProxyType(
    {
        ("mnist", "orig"): Trained("weight-quantized-mnist", "mnist-orig"),
        ("mnist", "adv"): Zoo("mnistsmall-at-fp"),
        ("mnist", "boundary"): Trained("weight-quantized-mnist", "mnist-boundary"),
        ("cifar10", "orig"): Trained("weight-quantized-cifar", "cifar-orig"),
        ("cifar10", "adv"): Zoo("cifarconv-at-fp"),
        ("cifar10", "boundary"): Trained("weight-quantized-cifar", "cifar-boundary"),
    }
)
"""The networks before they are changed, by data set and training."""
_TRAININGS = {"orig": "Orig.", "adv": "Adv.", "boundary": "F.L."}
_STRONG = only(adaptive, "PGD-100 plain margin", "PGD-100 plain temperature 100")
"""What sees through a saturated softmax, at a price that 24 networks can have."""


@dataclass(frozen=True)
class Case:
    """One row of the tables.

    Args:
        dataset: What it classifies.
        training: ``orig``, ``adv`` or ``boundary``.
        mapped: Whether its last layers are mapped by the mu-law.
        quantized: Whether its weights have 3 bits.
    """

    dataset: str
    training: str
    mapped: bool
    quantized: bool

    @property
    def subject(self) -> Altered:
        """The network."""
        base = _BASES[self.dataset, self.training]
        return Altered(base, _MAPPED[self.dataset] if self.mapped else 0, _BITS if self.quantized else 0)

    @property
    def title(self) -> str:
        """What the paper calls it; boundary retraining stands in for its feedback learning, F.L."""
        return _TRAININGS[self.training] + (" + mu" if self.mapped else "") + (" (Q)" if self.quantized else "")

    def slug(self, ending: str) -> str:
        """Name of a record."""
        return f"{self.subject.name}-{ending}"


def cases(dataset: str) -> tuple[Case, ...]:
    """The rows of a data set, in the paper's order.

    Example:
        >>> [case.title for case in cases("mnist")][:2]
        ['Orig.', 'Orig. (Q)']
    """
    flags = (False, True)
    return tuple(
        Case(dataset, training, mapped, quantized) for mapped in flags for training in _TRAININGS for quantized in flags
    )


def _parts(case: Case) -> Iterator[Evaluation]:
    strong = STRENGTHS[case.dataset].strong
    yield Evaluation(case.subject, case.dataset, quantized_weights, strong, case.slug("attacks"))
    yield Evaluation(case.subject, case.dataset, _STRONG, strong, case.slug("strong"), cascade=True)


def _worst(results: Results, case: Case) -> float:
    return percent(common_worst_case([results.record(case.slug(ending)) for ending in ("attacks", "strong")]))


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    draw(folder, "weight-quantized", (7.2, 6.6), lambda figure: _paint(figure, results))
    tables = [table for dataset in _MAPPED for table in (_white(results, dataset), _black(results, dataset))]
    told = tuple((row["facet"], row["text"]) for row in data_table("weight_quantized")["differences"])
    differences = Table("What differs between the published numbers and ours.", ("What", "How"), told, texts=2)
    return (Text(_READING), _PICTURE, *tables, differences)


_READING = (
    "Networks whose weights are rounded to 3 bits after training (Q), and whose last layers are mapped by the mu-law "
    "before that (mu). 'F.L.' in our rows is retraining near the decision boundary, which stands in for feedback "
    "learning. The last column is for each image the worst of all bounded attacks of the row, and of two that a "
    "saturated softmax does not blind; where it is far below the columns beside it, those were blind."
)
_PICTURE = Picture(
    "weight-quantized",
    "Accuracy in percent: without an attack, under PGD, and in the worst case, within the strong radius of either data "
    "set.",
    "Two panels of grouped bars, for MNIST and CIFAR-10. Each group is a network; the numbers are in the tables.",
)


def _white(results: Results, dataset: str) -> Table:
    header = ("Network", "Numbers", "Clean", *WHITE, "Worst case")
    rows = tuple(row for case in cases(dataset) for row in _white_rows(results, case))
    caption = f"{_TITLES[dataset]}: white box, in %; strong is {STRENGTHS[dataset].strong}."
    return Table(caption, header, rows, texts=2)


def _white_rows(results: Results, case: Case) -> Iterator[tuple[str, ...]]:
    record = results.record(case.slug("attacks"))
    yield case.title, "paper", *map(points, data_table("weight_quantized")[case.dataset][case.title]["white"]), "-"
    ours = (record.clean_accuracy, *(attack_accuracy(record, name) for name in WHITE), _worst(results, case))
    yield case.title, "ours", *map(points, ours)


def _black(results: Results, dataset: str) -> Table:
    header = ("Network", "Numbers", *BLACK, *NOISE)
    rows = tuple(row for case in cases(dataset) for row in _black_rows(results, case))
    return Table(f"{_TITLES[dataset]}: black box and noise, in %.", header, rows, texts=2)


def _black_rows(results: Results, case: Case) -> Iterator[tuple[str, ...]]:
    record = results.record(case.slug("attacks"))
    yield case.title, "paper", *map(points, data_table("weight_quantized")[case.dataset][case.title]["black"])
    yield case.title, "ours", *(points(attack_accuracy(record, name)) for name in (*BLACK, *NOISE))


def _paint(figure: Figure, results: Results) -> None:
    axes = panels(figure, 2, 1)
    for axis, dataset in zip(axes, _MAPPED, strict=True):
        rows = cases(dataset)
        records = [results.record(case.slug("attacks")) for case in rows]
        series: list[tuple[str, Sequence[float | None]]] = [
            ("clean", [record.clean_accuracy for record in records]),
            ("PGD", [attack_accuracy(record, "PGD") for record in records]),
            ("worst case", [_worst(results, case) for case in rows]),
        ]
        bars(axis, [case.title.replace(" + mu", "\n+ mu").replace(" (Q)", "\n(Q)") for case in rows], series)
        percent_axis(axis, "accuracy, %", room=0)
        axis.set_title(f"{_TITLES[dataset]}, {STRENGTHS[dataset].strong}", loc="left", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


WEIGHT_QUANTIZED = Target(
    "weight-quantized",
    "Weight-quantized networks and the mu-law",
    tuple(part for dataset in _MAPPED for case in cases(dataset) for part in _parts(case)),
    _show,
)
"""The tables."""
