"""Tables 2, 3, 5 and 6 of Panda et al., https://arxiv.org/abs/1902.03151, on MNIST: fewer bits per pixel under FGSM."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from empir_plugin.attacks.threat import Linf, Threat
from empir_plugin.evaluation.protocols import paper
from empir_plugin.evaluation.record import Record
from empir_plugin.reproduce.attacks import TOLD, strong
from empir_plugin.reproduce.context import Discretize
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points
from empir_plugin.reproduce.figures import draw, lines, panels, percent_axis
from empir_plugin.reproduce.parts import Evaluation, only
from empir_plugin.reproduce.published import data_table
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import Discrete

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_RECIPE = "discretization-mnist"
RADII = (0.1, 0.2, 0.3)
BITS = (2, 4, 8)
_FGSM = only(paper, "FGSM")
_TRAINED = {"clean": ("", "standard training"), "rfgsm": ("-rfgsm", "R+FGSM training")}
_NETWORKS = {"full": "full precision", "bnn": "binary"}


@dataclass(frozen=True)
class Case:
    """One network of the tables.

    Args:
        network: ``full`` or ``bnn``.
        trained: ``clean`` or ``rfgsm``.
        bits: Of every pixel.
    """

    network: str
    trained: str
    bits: int

    @property
    def subject(self) -> Discrete:
        """The network, behind its discretization."""
        return Discrete(_RECIPE, f"fcn2-{self.network}{_TRAINED[self.trained][0]}", self.bits)

    @property
    def title(self) -> str:
        """Network and training in words."""
        return f"{_NETWORKS[self.network]}, {_TRAINED[self.trained][1]}"

    def slug(self, way: str, eps: float) -> str:
        """Name of a record."""
        return f"{self.subject.name}-{way}-{eps}"


CASES = tuple(Case(network, trained, bits) for trained in _TRAINED for network in _NETWORKS for bits in BITS)
_WAYS = {
    "inside": "FGSM on the discretized image",
    "raw": "FGSM on the raw image",
    "strong": "strong attacks, raw image",
}


def _parts(case: Case) -> Iterator[Evaluation]:
    for eps in RADII:
        threat, subject = Threat(Linf(), eps), case.subject
        inside = Discretize(case.bits)
        yield Evaluation(subject, "mnist", _FGSM, threat, case.slug("inside", eps), prepare=inside)
        yield Evaluation(subject, "mnist", _FGSM, threat, case.slug("raw", eps))
        yield Evaluation(subject, "mnist", strong, threat, case.slug("strong", eps), cascade=True)


def _left(record: Record, way: str) -> float:
    return record.worst_case_accuracy if way == "strong" else attack_accuracy(record, "FGSM")


def _series(results: Results, case: Case, way: str) -> tuple[float, ...]:
    """Clean accuracy, and what is left at every radius."""
    records = [results.record(case.slug(way, eps)) for eps in RADII]
    return (records[0].clean_accuracy, *(_left(record, way) for record in records))


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    draw(folder, "discretization", (7.2, 6.4), lambda figure: _paint(figure, results))
    n = results.record(CASES[0].slug("raw", RADII[0])).data["n"]
    header = ("Network", "Bits per pixel", "Numbers", "Clean", *(f"eps {eps}" for eps in RADII))
    rows = tuple(row for case in CASES for row in _rows(results, case))
    table = Table(f"MNIST, accuracy in % without and under attack, {n:,} images.", header, rows, texts=3)
    told = tuple((row["facet"], row["text"]) for row in data_table("discretization")["differences"])
    differences = Table("What differs between the published numbers and ours.", ("What", "How"), told, texts=2)
    return (Text(_READING), _PICTURE, table, differences)


_READING = (
    "The paper finds networks with 2-bit inputs hardly harmed by FGSM. It seems to perturb images that are "
    "discretized already; the network then discretizes again, and a perturbation smaller than half a level is "
    "gone. Ours has that way, the attack on the raw image in front of the discretization, which is the only one a "
    f"defence has to withstand, and for each image the worst of {TOLD} on the raw image. What 2 bits keep at eps 0.1 "
    "is real, and a property of MNIST: black and white lie 1/6 from the next threshold, so only the few grey pixels "
    "can change; at eps 0.2 every pixel can."
)
_PICTURE = Picture(
    "discretization",
    "Accuracy on MNIST in percent against the radius of FGSM in units of the image, for 2 and 8 bits per pixel.",
    "Four panels: full-precision and binary networks, with standard and with R+FGSM training. Lines for 2-bit and "
    "8-bit inputs, attacked on the discretized image, on the raw image, and by the worst of several strong attacks; "
    "the numbers are in the table.",
)


def _rows(results: Results, case: Case) -> Iterator[tuple[str, ...]]:
    for row in data_table("discretization")["rows"]:
        if (row["network"], row["trained"], row["bits"]) == (case.network, case.trained, case.bits):
            yield case.title, str(case.bits), f"paper, Table {row['table']} (FCN1)", *map(points, row["numbers"])
    for way, told in _WAYS.items():
        yield case.title, str(case.bits), f"ours, {told}", *map(points, _series(results, case, way))


def _paint(figure: Figure, results: Results) -> None:
    places = [(trained, network) for trained in _TRAINED for network in _NETWORKS]
    axes = panels(figure, 2, 2)
    for axis, (trained, network) in zip(axes, places, strict=True):
        cases = [Case(network, trained, bits) for bits in (BITS[0], BITS[-1])]
        series = [
            (f"{case.bits} bits, {told}", _series(results, case, way)) for case in cases for way, told in _WAYS.items()
        ]
        lines(axis, (0.0, *RADII), series)
        axis.set_title(cases[0].title, loc="left", fontsize=9)
        axis.set_xlabel("eps (images in [0, 1])")
        percent_axis(axis, "accuracy, %")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, handlelength=4)


DISCRETIZATION = Target(
    "discretization",
    "Input discretization: fewer bits per pixel",
    tuple(part for case in CASES for part in _parts(case)),
    _show,
)
"""The tables."""
