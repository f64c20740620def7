"""Figure 3(b) of the EMPIR paper: confusion matrices on MNIST under FGSM, and under PGD."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from empir_plugin.evaluation.protocols import Protocol, adaptive, paper, released
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import panels, save_figure
from empir_plugin.reproduce.parts import Confusion, ConfusionMatrix
from empir_plugin.reproduce.results import Results, Target
from empir_plugin.reproduce.subjects import DEFENCES, SUBJECTS, THREATS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MODELS = "baseline", "empir"
_PGD = {"baseline": "PGD-100 plain", "empir": "PGD-100 mean_probability"}
_ATTACKS: tuple[tuple[Protocol, str, str], ...] = (
    (released, "FGSM", "FGSM, released"),
    (paper, "FGSM", "FGSM, paper"),
    (adaptive, "PGD", "PGD-100, adaptive"),
)


def _slug(defence: str, protocol: Protocol) -> str:
    return f"mnist-{defence}-confusion-{protocol.name}"


def _part(defence: str, protocol: Protocol, attack: str) -> Confusion:
    name = _PGD[defence] if protocol is adaptive else attack
    return Confusion(SUBJECTS["mnist", defence], "mnist", protocol, name, THREATS["mnist"], _slug(defence, protocol))


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    save_figure(folder, "fig3b", (7.2, 5.2), lambda figure: _plot(figure, results))
    return (Text(_TEXT), _PICTURE, _table(results))


_TEXT = (
    "The paper shows one pair of matrices, under FGSM by the released code, and publishes no numbers with them. The "
    "first column repeats that attack; the second is FGSM with true labels and one softmax; the third is the first "
    "PGD of the protocol adaptive. All images are attacked, including those misclassified without an attack."
)
_PICTURE = Picture(
    "fig3b",
    "Confusion matrices on MNIST within Linf 0.3. Rows of a matrix are true digits, columns decisions; the shade is "
    "the percentage of a row, so that each row adds up to 100 %.",
    "Six square matrices of ten by ten: above the full-precision baseline, below EMPIR; from left to right FGSM as "
    "released, FGSM as in the paper, PGD with 100 steps. A robust network has a dark diagonal; the accuracy above each "
    "matrix is the share of images on it.",
)


def _table(results: Results) -> Table:
    rows = tuple(
        (DEFENCES[defence], attack, points(matrix.accuracy), points(_worst_class(matrix)), f"{matrix.data['n']:,}")
        for defence in _MODELS
        for protocol, _, attack in _ATTACKS
        for matrix in [results.matrix(_slug(defence, protocol))]
    )
    header = ("Network", "Attack", "On the diagonal, %", "Lowest digit, %", "n")
    return Table("Share of the images on the diagonal, over all digits and of the worst digit.", header, rows, texts=2)


def _worst_class(matrix: ConfusionMatrix) -> float:
    shares = [100 * row[digit] / sum(row) for digit, row in enumerate(matrix.counts) if sum(row)]
    return round(min(shares), 2)


def _plot(figure: Figure, results: Results) -> None:
    axes = panels(figure, len(_MODELS), len(_ATTACKS))
    places = [(defence, protocol, attack) for defence in _MODELS for protocol, _, attack in _ATTACKS]
    for axis, (defence, protocol, attack) in zip(axes, places, strict=True):
        matrix = results.matrix(_slug(defence, protocol))
        _heatmap(axis, matrix)
        name = "baseline" if defence == "baseline" else "EMPIR"
        axis.set_title(f"{name}, {attack}: {matrix.accuracy:.1f} %", fontsize=8)
        axis.set_ylabel("true digit" if protocol is released else "")
        axis.set_xlabel("decision" if defence == _MODELS[-1] else "")
    figure.colorbar(axes[-1].images[0], ax=axes, label="share of the true digit's images, %", shrink=0.7)


def _heatmap(axis: Axes, matrix: ConfusionMatrix) -> None:
    shares = [[100 * count / max(1, sum(row)) for count in row] for row in matrix.counts]
    axis.grid(False)
    axis.set_xticks(range(len(shares)))
    axis.set_yticks(range(len(shares)))
    axis.tick_params(labelsize=7)
    axis.imshow(shares, cmap="Greys", vmin=0, vmax=100)


FIG3B = Target(
    "fig3b",
    "Figure 3(b): confusion matrices under FGSM",
    tuple(_part(defence, protocol, attack) for defence in _MODELS for protocol, attack, _ in _ATTACKS),
    _show,
)
"""Figure 3(b)."""
