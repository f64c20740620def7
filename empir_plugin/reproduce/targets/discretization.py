"""Tables 2, 3, 5 and 6 of Panda et al., https://arxiv.org/abs/1902.03151: MNIST at fewer bits per pixel, under FGSM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.evaluation.protocols import paper
from empir_plugin.evaluation.record import Record
from empir_plugin.reproduce.attacks import STRONG_ATTACKS, strong
from empir_plugin.reproduce.context import Discretize
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import draw_lines, panels, percent_axis, save_figure
from empir_plugin.reproduce.parts import Evaluation, select_attacks
from empir_plugin.reproduce.published import data_table, facets_table
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import DiscretizedSubject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RECIPE = "discretization-mnist"
RADII = (0.1, 0.2, 0.3)
BITS = (2, 4, 8)
_FGSM = select_attacks(paper, "FGSM")
_TRAINED = {"clean": ("", "standard training"), "rfgsm": ("-rfgsm", "R+FGSM training")}
_NETWORKS = {"full": "full precision", "bnn": "binary"}


@dataclass(frozen=True)
class DiscretizationRow:
    """One network of the tables.

    Args:
        network: ``full`` for full precision, ``bnn`` for binary.
        trained: ``clean`` for standard training, ``rfgsm`` for R+FGSM training.
        bits: Bits per pixel.
    """

    network: str
    trained: str
    bits: int

    @property
    def subject(self) -> DiscretizedSubject:
        """The network behind its discretization."""
        return DiscretizedSubject(_RECIPE, f"fcn2-{self.network}{_TRAINED[self.trained][0]}", self.bits)

    @property
    def title(self) -> str:
        """Network and training as the report writes them."""
        return f"{_NETWORKS[self.network]}, {_TRAINED[self.trained][1]}"

    def slug(self, attack: str, eps: float) -> str:
        """Name of the record of one attack."""
        return f"{self.subject.name}-{attack}-{eps}"


ROWS = tuple(
    DiscretizationRow(network, trained, bits) for trained in _TRAINED for network in _NETWORKS for bits in BITS
)
_ATTACKS = {
    "inside": "FGSM on the discretized image",
    "raw": "FGSM on the raw image",
    "strong": "strong attacks, raw image",
}


def _parts(row: DiscretizationRow) -> Iterator[Evaluation]:
    subject = row.subject
    for eps in RADII:
        threat = Threat(Linf(), eps)
        inside = Discretize(row.bits)
        yield Evaluation(subject, "mnist", _FGSM, threat, row.slug("inside", eps), preprocess=inside)
        yield Evaluation(subject, "mnist", _FGSM, threat, row.slug("raw", eps))
        yield Evaluation(subject, "mnist", strong, threat, row.slug("strong", eps), cascade=True)


def _accuracies(results: Results, row: DiscretizationRow, attack: str) -> tuple[float, ...]:
    """Clean accuracy, then accuracy under an attack at every radius."""
    records = [results.record(row.slug(attack, eps)) for eps in RADII]
    return (records[0].clean_accuracy, *(_accuracy(record, attack) for record in records))


def _accuracy(record: Record, attack: str) -> float:
    return record.worst_case_accuracy if attack == "strong" else attack_accuracy(record, "FGSM")


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    save_figure(folder, "discretization", (7.2, 6.4), lambda figure: _plot(figure, results))
    n = results.record(ROWS[0].slug("raw", RADII[0])).data["n"]
    header = ("Network", "Bits per pixel", "Numbers", "Clean", *(f"eps {eps}" for eps in RADII))
    rows = tuple(cells for row in ROWS for cells in _rows(results, row))
    table = Table(f"MNIST, accuracy in % without and under attack, {n:,} images.", header, rows, texts=3)
    return (Text(_TEXT), _PICTURE, table, facets_table("discretization"))


_TEXT = (
    "The paper finds that FGSM hardly harms networks with 2-bit inputs. It seems to perturb images that are already "
    "discretized; the network then discretizes them again, which removes every perturbation smaller than half a "
    "level. Shown here are that attack, FGSM on the raw image in front of the discretization, which is the attack a "
    f"defence must withstand, and the worst case over {STRONG_ATTACKS} on the raw image. The robustness of 2 bits at "
    "eps 0.1 is real, and a property of MNIST: black and white lie 1/6 from the nearest threshold, so only the few "
    "grey pixels can change; at eps 0.2 every pixel can."
)
_PICTURE = Picture(
    "discretization",
    "Accuracy on MNIST in percent against the radius of FGSM in units of the image, for 2 and 8 bits per pixel.",
    "Four panels: full-precision and binary networks, with standard and with R+FGSM training. Lines for 2-bit and "
    "8-bit inputs, attacked on the discretized image, on the raw image, and by the worst of several strong attacks; "
    "the numbers are in the table.",
)


def _rows(results: Results, row: DiscretizationRow) -> Iterator[tuple[str, ...]]:
    for published in data_table("discretization")["rows"]:
        if (published["network"], published["trained"], published["bits"]) == (row.network, row.trained, row.bits):
            source = f"paper, Table {published['table']} (FCN1)"
            yield row.title, str(row.bits), source, *map(points, published["numbers"])
    for attack, title in _ATTACKS.items():
        yield row.title, str(row.bits), f"ours, {title}", *map(points, _accuracies(results, row, attack))


def _plot(figure: Figure, results: Results) -> None:
    places = [(trained, network) for trained in _TRAINED for network in _NETWORKS]
    axes = panels(figure, 2, 2)
    for axis, (trained, network) in zip(axes, places, strict=True):
        rows = [DiscretizationRow(network, trained, bits) for bits in (BITS[0], BITS[-1])]
        series = [
            (f"{row.bits} bits, {title}", _accuracies(results, row, attack))
            for row in rows
            for attack, title in _ATTACKS.items()
        ]
        draw_lines(axis, (0.0, *RADII), series)
        axis.set_title(rows[0].title, loc="left", fontsize=9)
        axis.set_xlabel("eps (images in [0, 1])")
        percent_axis(axis, "accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, handlelength=4)


DISCRETIZATION = Target(
    "discretization",
    "Input discretization: fewer bits per pixel",
    tuple(part for row in ROWS for part in _parts(row)),
    _show,
)
"""Tables 2, 3, 5 and 6."""
