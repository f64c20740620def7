"""Figure 1 of the EMPIR paper: clean and FGSM accuracy of single networks at several precisions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from empir_plugin.evaluation.protocols import Protocol, paper, released
from empir_plugin.reproduce.attacks import TOLD, strong
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import draw, lines, panels, percent_axis
from empir_plugin.reproduce.parts import Evaluation, only
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import THREATS, Subject
from empir_plugin.reproduce.targets.fig3a import subjects_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FGSM = {protocol.name: only(protocol, "FGSM") for protocol in (released, paper)}
_NETWORKS = subjects_of("mnist")[:-1]


def _slug(subject: Subject, protocol: str) -> str:
    return f"{subject.name}-{protocol}" if protocol == strong.name else f"{subject.name}-{protocol}-fgsm"


def _part(subject: Subject, name: str, protocol: Protocol) -> Evaluation:
    slug = _slug(subject, name)
    return Evaluation(subject, "mnist", protocol, THREATS["mnist"], slug, cascade=protocol is strong)


def _series(results: Results) -> tuple[tuple[str, tuple[float, ...]], ...]:
    clean = tuple(results.record(_slug(subject, released.name)).clean_accuracy for _, subject in _NETWORKS)
    fgsm = [(f"FGSM, {name}", tuple(_fgsm(results, subject, name) for _, subject in _NETWORKS)) for name in _FGSM]
    worst = tuple(results.record(_slug(subject, strong.name)).worst_case_accuracy for _, subject in _NETWORKS)
    return (("clean", clean), *fgsm, ("worst case, strong attacks", worst))


def _fgsm(results: Results, subject: Subject, name: str) -> float:
    return attack_accuracy(results.record(_slug(subject, name)), "FGSM")


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    series = _series(results)
    draw(folder, "fig1", (5.6, 3.6), lambda figure: _paint(figure, series))
    n = results.record(_slug(_NETWORKS[0][1], released.name)).data["n"]
    header = ("Precision", *(name for name, _ in series))
    rows = tuple(
        (name, *(points(numbers[index]) for _, numbers in series)) for index, (name, _) in enumerate(_NETWORKS)
    )
    return (Text(_READING), _PICTURE, Table(f"MNISTconv, {THREATS['mnist']}, {n:,} images; in %.", header, rows))


_READING = (
    "The paper draws clean accuracy and accuracy under FGSM and publishes no numbers with the figure; its claim "
    f"is that fewer bits leave more under FGSM. The worst case over {TOLD} "
    "tells how much of that is robustness and how much a gradient that FGSM cannot use. The first layer quantizes the "
    "image too: with one bit it sees every pixel as black or white, parted at 0.5, and an eps below 0.5 moves neither "
    "black nor white across. What one bit keeps is that of MNIST's pixels, not of networks in general. wNaM stands for "
    "N-bit weights and M-bit activations, fp for full precision."
)
_PICTURE = Picture(
    "fig1",
    "Accuracy on MNIST in percent against the precision of weights and activations; FGSM and the worst case within "
    "Linf 0.3.",
    "Lines over six precisions from one bit to full precision: clean accuracy, FGSM by two protocols, and the worst "
    "case; the numbers are in the table.",
)


def _paint(figure: Figure, series: tuple[tuple[str, tuple[float, ...]], ...]) -> None:
    (axis,) = panels(figure, 1, 1)
    lines(axis, range(len(_NETWORKS)), series)
    axis.set_xticks(range(len(_NETWORKS)), [name for name, _ in _NETWORKS])
    axis.set_xlabel("precision (bits of weights and activations)")
    percent_axis(axis, "accuracy, %")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, handlelength=4)


FIG1 = Target(
    "fig1",
    "Figure 1: accuracy against precision",
    tuple(
        _part(subject, name, protocol)
        for _, subject in _NETWORKS
        for name, protocol in (*_FGSM.items(), (strong.name, strong))
    ),
    _show,
)
"""The figure."""
