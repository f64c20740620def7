"""Figure 3(a) of the EMPIR paper: clean against adversarial accuracy of single networks and ensembles, under CW."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from empir_plugin.evaluation.protocols import Protocol, released
from empir_plugin.evaluation.record import Record
from empir_plugin.reproduce.attacks import TOLD, strong
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import LOOKS, draw, panels, percent_axis, write_names
from empir_plugin.reproduce.parts import Evaluation, only
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import DATASETS, THREATS, Subject, Trained, Zoo

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CW = only(released, "CW")
_SINGLES: Mapping[str, tuple[tuple[str, Subject], ...]] = MappingProxyType(
    {
        "mnist": (
            ("w1a1", Trained("precisions-mnist", "mnist-w1a1")),
            ("w2a2", Trained("precisions-mnist", "mnist-w2a2")),
            ("w2a4", Zoo("mnistconv-w2a4")),
            ("w4a4", Trained("precisions-mnist", "mnist-w4a4")),
            ("w8a8", Trained("precisions-mnist", "mnist-w8a8")),
            ("fp", Zoo("mnistconv-fp")),
        ),
        "cifar10": (
            ("w2a2", Zoo("cifarconv-w2a2")),
            ("w2a4", Trained("precisions-cifar", "cifar-w2a4")),
            ("w4a2", Zoo("cifarconv-w4a2")),
            ("w4a4", Trained("precisions-cifar", "cifar-w4a4")),
            ("w8a8", Trained("precisions-cifar", "cifar-w8a8")),
            ("fp", Zoo("cifarconv-fp")),
        ),
    }
)
_ENSEMBLES = {"mnist": "empir-mnist", "cifar10": "empir-cifar"}


def subjects_of(dataset: str) -> tuple[tuple[str, Subject], ...]:
    """Precision, or EMPIR, and network of every point of a panel.

    Example:
        >>> [name for name, _ in subjects_of("cifar10")][-2:]
        ['fp', 'EMPIR']
    """
    return (*_SINGLES[dataset], ("EMPIR", Zoo(_ENSEMBLES[dataset])))


def slug_of(subject: Subject, protocol: Protocol) -> str:
    """Name of a record."""
    return f"{subject.name}-{'cw' if protocol is _CW else protocol.name}"


def _part(dataset: str, subject: Subject, protocol: Protocol) -> Evaluation:
    slug = slug_of(subject, protocol)
    return Evaluation(subject, dataset, protocol, THREATS[dataset], slug, cascade=protocol is strong)


def _left(record: Record, protocol: Protocol) -> float:
    return attack_accuracy(record, "CW") if protocol is _CW else record.worst_case_accuracy


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    draw(folder, "fig3a", (7.2, 6.4), lambda figure: _paint(figure, results))
    return (Text(_READING), _PICTURE, *(_table(results, dataset) for dataset in _SINGLES))


_READING = (
    "The paper draws the upper row and gives no numbers except those of Table 2. The released CW attacks the "
    "full-precision member of an ensemble alone and is judged on the vote; the lower row shows the same networks "
    f"under the worst of {TOLD}, which see what CW as released does not: the vote."
)
_PICTURE = Picture(
    "fig3a",
    "Clean accuracy against accuracy under attack, both in percent; above CW as released (no budget), below the worst "
    f"case over {TOLD} within the paper's eps.",
    "Four scatter plots: MNIST to the left, CIFAR-10 to the right, CW above, worst case below. Circles are single "
    "networks with their precision beside them, a filled diamond is EMPIR. To the right and up is better.",
)


def _table(results: Results, dataset: str) -> Table:
    rows = tuple(_row(results, name, subject) for name, subject in subjects_of(dataset))
    header = ("Network", "Clean", "CW, released", "Worst case, strong attacks", "n")
    return Table(f"{DATASETS[dataset]}; accuracy in %, worst case within {THREATS[dataset]}.", header, rows)


def _row(results: Results, name: str, subject: Subject) -> tuple[str, ...]:
    first, second = (results.record(slug_of(subject, protocol)) for protocol in (_CW, strong))
    numbers = (first.clean_accuracy, attack_accuracy(first, "CW"), second.worst_case_accuracy)
    return (name, *map(points, numbers), f"{first.data['n']:,}")


def _paint(figure: Figure, results: Results) -> None:
    axes = panels(figure, 2, 2)
    places = [(protocol, dataset) for protocol in (_CW, strong) for dataset in _SINGLES]
    for axis, (protocol, dataset) in zip(axes, places, strict=True):
        _scatter(axis, results, dataset, protocol)
        told = "CW, released" if protocol is _CW else f"worst case, {THREATS[dataset]}"
        axis.set_title(f"{DATASETS[dataset]}: {told}", loc="left", fontsize=9)
        axis.set_xlabel("clean accuracy, %")
        percent_axis(axis, "accuracy under attack, %")


def _scatter(axis: Axes, results: Results, dataset: str, protocol: Protocol) -> None:
    spots: list[tuple[str, float, float]] = []
    for name, subject in subjects_of(dataset):
        record, ensemble = results.record(slug_of(subject, protocol)), name == "EMPIR"
        x, y = record.clean_accuracy, _left(record, protocol)
        look = LOOKS[3 if ensemble else 0]
        face, size = ("black", 60) if ensemble else ("white", 34)
        axis.scatter([x], [y], marker=look.marker, s=size, facecolor=face, edgecolor="black", zorder=3)
        spots.append((name, x, y))
    axis.margins(x=0.12)
    write_names(axis, spots)


FIG3A = Target(
    "fig3a",
    "Figure 3(a): clean against adversarial accuracy",
    tuple(
        _part(dataset, subject, protocol)
        for dataset in _SINGLES
        for _, subject in subjects_of(dataset)
        for protocol in (_CW, strong)
    ),
    _show,
)
"""The figure."""
