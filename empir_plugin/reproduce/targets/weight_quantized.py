"""Tables 1 to 4 of Song et al., https://arxiv.org/abs/2012.14965: weights quantized to 3 bits, and the mu-law."""

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
from empir_plugin.reproduce.figures import draw_bars, panels, percent_axis, save_figure
from empir_plugin.reproduce.parts import Evaluation, select_attacks
from empir_plugin.reproduce.published import data_table, facets_table
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import DATASETS, PostTrainingSubject, Subject, TrainedSubject, ZooSubject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_BITS = 3
_MU_LAYERS = {"mnist": 1, "cifar10": 3}
"""Number of last layers to which the mu-law is applied."""
_TITLES: Mapping[str, str] = MappingProxyType({**DATASETS, "mnist": "MNISTSmall, MNIST"})
"""The network on MNIST is not the one of the other tables."""
_BASES: Mapping[tuple[str, str], Subject] = MappingProxyType(
    {
        ("mnist", "orig"): TrainedSubject("weight-quantized-mnist", "mnist-orig"),
        ("mnist", "adv"): ZooSubject("mnistsmall-at-fp"),
        ("mnist", "boundary"): TrainedSubject("weight-quantized-mnist", "mnist-boundary"),
        ("cifar10", "orig"): TrainedSubject("weight-quantized-cifar", "cifar-orig"),
        ("cifar10", "adv"): ZooSubject("cifarconv-at-fp"),
        ("cifar10", "boundary"): TrainedSubject("weight-quantized-cifar", "cifar-boundary"),
    }
)
"""The trained networks, by data set and training."""
_TRAININGS = {"orig": "Orig.", "adv": "Adv.", "boundary": "F.L."}
_STRONG = select_attacks(adaptive, "PGD-100 plain margin", "PGD-100 plain temperature 100")
"""Attacks that a saturated softmax does not blind, cheap enough for 24 networks."""


@dataclass(frozen=True)
class WeightQuantizedRow:
    """One network of the tables.

    Args:
        dataset: Its data set.
        training: ``orig``, ``adv`` or ``boundary``.
        mapped: Whether the mu-law is applied to its last layers.
        quantized: Whether its weights are quantized to 3 bits.
    """

    dataset: str
    training: str
    mapped: bool
    quantized: bool

    @property
    def subject(self) -> PostTrainingSubject:
        """The network."""
        base = _BASES[self.dataset, self.training]
        mu_layers = _MU_LAYERS[self.dataset] if self.mapped else 0
        return PostTrainingSubject(base, mu_layers, _BITS if self.quantized else 0)

    @property
    def title(self) -> str:
        """Name in the paper; boundary retraining stands in for the paper's feedback learning, F.L."""
        return _TRAININGS[self.training] + (" + mu" if self.mapped else "") + (" (Q)" if self.quantized else "")

    def slug(self, ending: str) -> str:
        """Name of a record."""
        return f"{self.subject.name}-{ending}"


def rows_of(dataset: str) -> tuple[WeightQuantizedRow, ...]:
    """The rows of a data set, in the paper's order.

    Example:
        >>> [row.title for row in rows_of("mnist")][:2]
        ['Orig.', 'Orig. (Q)']
    """
    flags = (False, True)
    return tuple(
        WeightQuantizedRow(dataset, training, mapped, quantized)
        for mapped in flags
        for training in _TRAININGS
        for quantized in flags
    )


def _parts(row: WeightQuantizedRow) -> Iterator[Evaluation]:
    threat = STRENGTHS[row.dataset].strong
    yield Evaluation(row.subject, row.dataset, quantized_weights, threat, row.slug("attacks"))
    yield Evaluation(row.subject, row.dataset, _STRONG, threat, row.slug("strong"), cascade=True)


def _worst_case(results: Results, row: WeightQuantizedRow) -> float:
    """Accuracy in percent, each image under the worst attack of both records."""
    return percent(common_worst_case([results.record(row.slug(ending)) for ending in ("attacks", "strong")]))


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    save_figure(folder, "weight-quantized", (7.2, 6.6), lambda figure: _plot(figure, results))
    tables = [table for dataset in _MU_LAYERS for table in (_white_box(results, dataset), _black_box(results, dataset))]
    return (Text(_TEXT), _PICTURE, *tables, facets_table("weight_quantized"))


_TEXT = (
    "Networks whose weights are quantized to 3 bits after training (Q), some after the mu-law was applied to their "
    "last layers (mu). 'F.L.' in our rows is retraining near the decision boundary, which stands in for feedback "
    "learning. The last column is the worst case over all bounded attacks of the row, and over two attacks that a "
    "saturated softmax does not blind; where it is far below the other columns, their attacks were blind."
)
_PICTURE = Picture(
    "weight-quantized",
    "Accuracy in percent: without an attack, under PGD, and in the worst case, within the strong radius of either data "
    "set.",
    "Two panels of grouped bars, for MNIST and CIFAR-10. Each group is a network; the numbers are in the tables.",
)


def _white_box(results: Results, dataset: str) -> Table:
    header = ("Network", "Numbers", "Clean", *WHITE, "Worst case")
    rows = tuple(cells for row in rows_of(dataset) for cells in _white_box_rows(results, row))
    caption = f"{_TITLES[dataset]}: white box, in %; strong is {STRENGTHS[dataset].strong}."
    return Table(caption, header, rows, texts=2)


def _white_box_rows(results: Results, row: WeightQuantizedRow) -> Iterator[tuple[str, ...]]:
    record = results.record(row.slug("attacks"))
    yield row.title, "paper", *map(points, data_table("weight_quantized")[row.dataset][row.title]["white"]), "-"
    ours = (record.clean_accuracy, *(attack_accuracy(record, name) for name in WHITE), _worst_case(results, row))
    yield row.title, "ours", *map(points, ours)


def _black_box(results: Results, dataset: str) -> Table:
    header = ("Network", "Numbers", *BLACK, *NOISE)
    rows = tuple(cells for row in rows_of(dataset) for cells in _black_box_rows(results, row))
    return Table(f"{_TITLES[dataset]}: black box and noise, in %.", header, rows, texts=2)


def _black_box_rows(results: Results, row: WeightQuantizedRow) -> Iterator[tuple[str, ...]]:
    record = results.record(row.slug("attacks"))
    yield row.title, "paper", *map(points, data_table("weight_quantized")[row.dataset][row.title]["black"])
    yield row.title, "ours", *(points(attack_accuracy(record, name)) for name in (*BLACK, *NOISE))


def _plot(figure: Figure, results: Results) -> None:
    axes = panels(figure, 2, 1)
    for axis, dataset in zip(axes, _MU_LAYERS, strict=True):
        rows = rows_of(dataset)
        records = [results.record(row.slug("attacks")) for row in rows]
        series: list[tuple[str, Sequence[float | None]]] = [
            ("clean", [record.clean_accuracy for record in records]),
            ("PGD", [attack_accuracy(record, "PGD") for record in records]),
            ("worst case", [_worst_case(results, row) for row in rows]),
        ]
        draw_bars(axis, [row.title.replace(" + mu", "\n+ mu").replace(" (Q)", "\n(Q)") for row in rows], series)
        percent_axis(axis, "accuracy, %", room=0)
        axis.set_title(f"{_TITLES[dataset]}, {STRENGTHS[dataset].strong}", loc="left", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8)


WEIGHT_QUANTIZED = Target(
    "weight-quantized",
    "Weight-quantized networks and the mu-law",
    tuple(part for dataset in _MU_LAYERS for row in rows_of(dataset) for part in _parts(row)),
    _show,
)
"""Tables 1 to 4."""
