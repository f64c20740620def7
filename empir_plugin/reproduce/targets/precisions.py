"""Figures 1 and 3(a) of the EMPIR paper: accuracy of single networks at several precisions, alone and beside EMPIR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from empir_plugin.evaluation.protocols import Protocol, paper, released
from empir_plugin.evaluation.record import Record
from empir_plugin.reproduce.attacks import STRONG_ATTACKS, strong
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import STYLES, annotate_points, draw_lines, panels, percent_axis, save_figure
from empir_plugin.reproduce.parts import Evaluation, select_attacks
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import DATASETS, THREATS, Subject, TrainedSubject, ZooSubject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SINGLES: Mapping[str, tuple[tuple[str, Subject], ...]] = MappingProxyType(
    {
        "mnist": (
            ("w1a1", TrainedSubject("precisions-mnist", "mnist-w1a1")),
            ("w2a2", TrainedSubject("precisions-mnist", "mnist-w2a2")),
            ("w2a4", ZooSubject("mnistconv-w2a4")),
            ("w4a4", TrainedSubject("precisions-mnist", "mnist-w4a4")),
            ("w8a8", TrainedSubject("precisions-mnist", "mnist-w8a8")),
            ("fp", ZooSubject("mnistconv-fp")),
        ),
        "cifar10": (
            ("w2a2", ZooSubject("cifarconv-w2a2")),
            ("w2a4", TrainedSubject("precisions-cifar", "cifar-w2a4")),
            ("w4a2", ZooSubject("cifarconv-w4a2")),
            ("w4a4", TrainedSubject("precisions-cifar", "cifar-w4a4")),
            ("w8a8", TrainedSubject("precisions-cifar", "cifar-w8a8")),
            ("fp", ZooSubject("cifarconv-fp")),
        ),
    }
)
"""Precision and network, by data set."""
_ENSEMBLES = {"mnist": "empir-mnist", "cifar10": "empir-cifar"}
_FGSM = {protocol.name: select_attacks(protocol, "FGSM") for protocol in (released, paper)}
_CW = select_attacks(released, "CW")


# Figure 1


def _fig1_slug(subject: Subject, protocol: str) -> str:
    return f"{subject.name}-{protocol}" if protocol == strong.name else f"{subject.name}-{protocol}-fgsm"


def _fig1_part(subject: Subject, name: str, protocol: Protocol) -> Evaluation:
    slug = _fig1_slug(subject, name)
    return Evaluation(subject, "mnist", protocol, THREATS["mnist"], slug, cascade=protocol is strong)


def _show_fig1(results: Results, folder: Path) -> tuple[Block, ...]:
    networks = _SINGLES["mnist"]
    series = _fig1_series(results)
    save_figure(folder, "fig1", (5.6, 3.6), lambda figure: _plot_fig1(figure, series))
    n = results.record(_fig1_slug(networks[0][1], released.name)).data["n"]
    header = ("Precision", *(name for name, _ in series))
    rows = tuple((name, *(points(numbers[index]) for _, numbers in series)) for index, (name, _) in enumerate(networks))
    table = Table(f"MNISTconv, {THREATS['mnist']}, {n:,} images; in %.", header, rows)
    return (Text(_FIG1_TEXT), _FIG1_PICTURE, table)


_FIG1_TEXT = (
    "The paper plots clean accuracy and accuracy under FGSM, and publishes no numbers with the figure; its claim is "
    f"that networks of fewer bits are more accurate under FGSM. The worst case over {STRONG_ATTACKS} shows how much "
    "of that is robustness, and how much is a gradient that FGSM cannot use. The first layer quantizes the image "
    "too: with one bit it sees every pixel as black or white, with the threshold at 0.5, and an eps below 0.5 moves "
    "neither a black nor a white pixel across it. The robustness at one bit is thus a property of MNIST's pixels, "
    "not of networks in general. wNaM stands for N-bit weights and M-bit activations, fp for full precision."
)
_FIG1_PICTURE = Picture(
    "fig1",
    "Accuracy on MNIST in percent against the precision of weights and activations; FGSM and the worst case within "
    "Linf 0.3.",
    "Lines over six precisions from one bit to full precision: clean accuracy, FGSM by two protocols, and the worst "
    "case; the numbers are in the table.",
)


def _fig1_series(results: Results) -> tuple[tuple[str, tuple[float, ...]], ...]:
    subjects = [subject for _, subject in _SINGLES["mnist"]]
    clean = tuple(results.record(_fig1_slug(subject, released.name)).clean_accuracy for subject in subjects)
    fgsm = [(f"FGSM, {name}", tuple(_fgsm_accuracy(results, subject, name) for subject in subjects)) for name in _FGSM]
    worst = tuple(results.record(_fig1_slug(subject, strong.name)).worst_case_accuracy for subject in subjects)
    return (("clean", clean), *fgsm, ("worst case, strong attacks", worst))


def _fgsm_accuracy(results: Results, subject: Subject, name: str) -> float:
    return attack_accuracy(results.record(_fig1_slug(subject, name)), "FGSM")


def _plot_fig1(figure: Figure, series: tuple[tuple[str, tuple[float, ...]], ...]) -> None:
    names = [name for name, _ in _SINGLES["mnist"]]
    (axis,) = panels(figure, 1, 1)
    draw_lines(axis, range(len(names)), series)
    axis.set_xticks(range(len(names)), names)
    axis.set_xlabel("precision (bits of weights and activations)")
    percent_axis(axis, "accuracy, %")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, handlelength=4)


FIG1 = Target(
    "fig1",
    "Figure 1: accuracy against precision",
    tuple(
        _fig1_part(subject, name, protocol)
        for _, subject in _SINGLES["mnist"]
        for name, protocol in (*_FGSM.items(), (strong.name, strong))
    ),
    _show_fig1,
)
"""Figure 1."""


# Figure 3(a)


def _networks(dataset: str) -> tuple[tuple[str, Subject], ...]:
    """Name and network of each point in a panel: the single networks, then EMPIR."""
    return (*_SINGLES[dataset], ("EMPIR", ZooSubject(_ENSEMBLES[dataset])))


def _fig3a_slug(subject: Subject, protocol: Protocol) -> str:
    return f"{subject.name}-{'cw' if protocol is _CW else protocol.name}"


def _fig3a_part(dataset: str, subject: Subject, protocol: Protocol) -> Evaluation:
    slug = _fig3a_slug(subject, protocol)
    return Evaluation(subject, dataset, protocol, THREATS[dataset], slug, cascade=protocol is strong)


def _show_fig3a(results: Results, folder: Path) -> tuple[Block, ...]:
    save_figure(folder, "fig3a", (7.2, 6.4), lambda figure: _plot_fig3a(figure, results))
    return (Text(_FIG3A_TEXT), _FIG3A_PICTURE, *(_fig3a_table(results, dataset) for dataset in _SINGLES))


_FIG3A_TEXT = (
    "The paper plots the upper row, and gives no numbers except those of Table 2. The released CW attacks the "
    "full-precision member of an ensemble alone, and is judged on the vote; the lower row shows the same networks "
    f"under the worst case over {STRONG_ATTACKS}, which attack what the released CW does not see: the vote."
)
_FIG3A_PICTURE = Picture(
    "fig3a",
    "Clean accuracy against accuracy under attack, both in percent; above CW as released (no budget), below the worst "
    f"case over {STRONG_ATTACKS} within the paper's eps.",
    "Four scatter plots: MNIST to the left, CIFAR-10 to the right, CW above, worst case below. Circles are single "
    "networks with their precision beside them, a filled diamond is EMPIR. To the right and up is better.",
)


def _fig3a_table(results: Results, dataset: str) -> Table:
    rows = tuple(_fig3a_row(results, name, subject) for name, subject in _networks(dataset))
    header = ("Network", "Clean", "CW, released", "Worst case, strong attacks", "n")
    return Table(f"{DATASETS[dataset]}; accuracy in %, worst case within {THREATS[dataset]}.", header, rows)


def _fig3a_row(results: Results, name: str, subject: Subject) -> tuple[str, ...]:
    cw, worst = (results.record(_fig3a_slug(subject, protocol)) for protocol in (_CW, strong))
    numbers = (cw.clean_accuracy, attack_accuracy(cw, "CW"), worst.worst_case_accuracy)
    return (name, *map(points, numbers), f"{cw.data['n']:,}")


def _plot_fig3a(figure: Figure, results: Results) -> None:
    axes = panels(figure, 2, 2)
    places = [(protocol, dataset) for protocol in (_CW, strong) for dataset in _SINGLES]
    for axis, (protocol, dataset) in zip(axes, places, strict=True):
        _scatter(axis, results, dataset, protocol)
        attack = "CW, released" if protocol is _CW else f"worst case, {THREATS[dataset]}"
        axis.set_title(f"{DATASETS[dataset]}: {attack}", loc="left", fontsize=9)
        axis.set_xlabel("clean accuracy, %")
        percent_axis(axis, "accuracy under attack, %")


def _scatter(axis: Axes, results: Results, dataset: str, protocol: Protocol) -> None:
    names: list[tuple[str, float, float]] = []
    for name, subject in _networks(dataset):
        record, is_ensemble = results.record(_fig3a_slug(subject, protocol)), name == "EMPIR"
        x, y = record.clean_accuracy, _accuracy(record, protocol)
        style = STYLES[3 if is_ensemble else 0]
        face, size = ("black", 60) if is_ensemble else ("white", 34)
        axis.scatter([x], [y], marker=style.marker, s=size, facecolor=face, edgecolor="black", zorder=3)
        names.append((name, x, y))
    axis.margins(x=0.12)
    annotate_points(axis, names)


def _accuracy(record: Record, protocol: Protocol) -> float:
    return attack_accuracy(record, "CW") if protocol is _CW else record.worst_case_accuracy


FIG3A = Target(
    "fig3a",
    "Figure 3(a): clean against adversarial accuracy",
    tuple(
        _fig3a_part(dataset, subject, protocol)
        for dataset in _SINGLES
        for _, subject in _networks(dataset)
        for protocol in (_CW, strong)
    ),
    _show_fig3a,
)
"""Figure 3(a)."""
