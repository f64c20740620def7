"""Figure 4 of the EMPIR paper: accuracy and cost of ensembles by their number of low- and full-precision members."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empir_plugin.evaluation.protocols import Protocol, paper, released
from empir_plugin.reproduce.attacks import strong
from empir_plugin.reproduce.document import Block, Picture, Table, Text, points, signed
from empir_plugin.reproduce.figures import draw_bars, panels, percent_axis, save_figure
from empir_plugin.reproduce.parts import Cost, Evaluation, Part, select_attacks
from empir_plugin.reproduce.published import codes, data_table, legend
from empir_plugin.reproduce.results import Results, Target, attack_accuracy
from empir_plugin.reproduce.subjects import THREATS, EnsembleSubject, TrainedSubject, ZooSubject

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_RECIPE = "figure4-mnist"
_CODES = codes(released.name, "mnist", "empir")
_LOW = (ZooSubject("mnistconv-w2a4"), ZooSubject("mnistconv-w2a4-b"), TrainedSubject(_RECIPE, "mnist-w2a4-c"))
_FULL = (ZooSubject("mnistconv-fp"), TrainedSubject(_RECIPE, "mnist-fp-b"), TrainedSubject(_RECIPE, "mnist-fp-c"))
_FGSM = {protocol.name: select_attacks(protocol, "FGSM") for protocol in (released, paper)}
MIXES = tuple((low, full) for full in range(4) for low in range(4) if low + full)
"""Numbers of low-precision and full-precision members."""


def ensemble(low: int, full: int) -> EnsembleSubject:
    """The ensemble of the first ``low`` low-precision and the first ``full`` full-precision networks.

    Example:
        >>> ensemble(2, 1).name
        'mnist-2lp-1fp'
    """
    return EnsembleSubject(f"mnist-{low}lp-{full}fp", (*_LOW[:low], *_FULL[:full]))


def _parts() -> Iterator[Part]:
    for mix in MIXES:
        subject = ensemble(*mix)
        for name, protocol in _FGSM.items():
            yield _evaluation(subject, f"{name}-fgsm", protocol)
        yield _evaluation(subject, strong.name, strong)
        yield Cost(subject, "mnist", f"{subject.name}-cost")


def _evaluation(subject: EnsembleSubject, ending: str, protocol: Protocol) -> Evaluation:
    slug = f"{subject.name}-{ending}"
    return Evaluation(subject, "mnist", protocol, THREATS["mnist"], slug, cascade=protocol is strong)


_Number = Callable[[Results, str], float]


def _clean(results: Results, name: str) -> float:
    return results.record(f"{name}-released-fgsm").clean_accuracy


def _fgsm_released(results: Results, name: str) -> float:
    return attack_accuracy(results.record(f"{name}-released-fgsm"), "FGSM")


def _fgsm_paper(results: Results, name: str) -> float:
    return attack_accuracy(results.record(f"{name}-paper-fgsm"), "FGSM")


def _worst_case(results: Results, name: str) -> float:
    return results.record(f"{name}-strong").worst_case_accuracy


def _time(results: Results, name: str) -> float:
    return results.table(f"{name}-cost")["eq6"]["time"]["ideal"]


def _storage(results: Results, name: str) -> float:
    return results.table(f"{name}-cost")["eq6"]["storage"]["ideal"]


def _weight_file(results: Results, name: str) -> float:
    return results.table(f"{name}-cost")["storage_ratio"]


_PANELS: tuple[tuple[str, str, _Number], ...] = (
    ("(a) clean", "accuracy, %", _clean),
    ("(b) FGSM, released", "accuracy, %", _fgsm_released),
    ("FGSM, paper", "accuracy, %", _fgsm_paper),
    ("worst case, strong attacks", "accuracy, %", _worst_case),
    ("(c) time", "times one fp network", _time),
    ("(d) storage", "times one fp network", _storage),
)
_COLUMNS = (*((title, number) for title, _, number in _PANELS), ("weight file", _weight_file))


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    save_figure(folder, "fig4", (7.2, 7.6), lambda figure: _plot(figure, results))
    return (Text(_TEXT), _PICTURE, _table(results), _published(results), legend([_CODES]))


_TEXT = (
    "The paper chooses for each ensemble the precisions that do best under FGSM; here every low-precision network "
    "has 2-bit weights and 4-bit activations, as in the ensemble of Table 2. Time and storage follow Equation 6, "
    "for the ideal that the paper assumes, in which every layer has the low precision; the last column of the table "
    "is the size of the actual weight file. Without a full-precision member, a tied vote goes to the class with the "
    "highest mean probability."
)
_PICTURE = Picture(
    "fig4",
    "MNIST: accuracy in percent, and time and storage relative to one full-precision network, for 0 to 3 members of "
    "either kind; attacks within Linf 0.3.",
    "Six panels of grouped bars. A group is a number of full-precision members, a bar within it a number of "
    "low-precision members, told apart by shade and hatch; the numbers are in the table.",
)


def _table(results: Results) -> Table:
    header = ("Low", "Full", *(title for title, _ in _COLUMNS))
    rows = tuple((str(low), str(full), *_numbers(results, low, full)) for low, full in MIXES)
    return Table("Members of low and of full precision; accuracy in %, costs relative to one fp network.", header, rows)


def _numbers(results: Results, low: int, full: int) -> Iterator[str]:
    name = ensemble(low, full).name
    yield from (points(number(results, name)) for _, number in _COLUMNS)


def _published(results: Results) -> Table:
    header = ("Members", "Number", "Paper", "Ours", "Ours minus paper", "Differs in")
    rows = tuple(row for published in data_table("empir")["figure4"] for row in _comparison(results, published))
    return Table("Numbers in the text of Section 5.4, beside ours (FGSM as released).", header, rows, texts=2)


def _comparison(results: Results, published: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    name = ensemble(published["low"], published["full"]).name
    numbers: dict[str, _Number] = {"clean": _clean, "fgsm": _fgsm_released, "time": _time, "storage": _storage}
    for key, number in numbers.items():
        ours = number(results, name)
        members = f"{published['low']} low, {published['full']} full"
        yield members, key, points(published[key]), points(ours), signed(ours - published[key]), _CODES


def _plot(figure: Figure, results: Results) -> None:
    axes = panels(figure, 3, 2)
    for axis, (title, unit, number) in zip(axes, _PANELS, strict=True):
        _plot_mixes(axis, results, number)
        axis.set_title(title, loc="left", fontsize=9)
        percent_axis(axis, unit, room=0) if unit.endswith("%") else axis.set_ylabel(unit)
        axis.set_xlabel("full-precision members")
    figure.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)


def _plot_mixes(axis: Axes, results: Results, number: _Number) -> None:
    series = [
        (
            f"{low} low-precision",
            [number(results, ensemble(low, full).name) if low + full else None for full in range(4)],
        )
        for low in range(4)
    ]
    draw_bars(axis, [str(full) for full in range(4)], series)


FIG4 = Target("fig4", "Figure 4: how many members of either kind", tuple(_parts()), _show)
"""Figure 4."""
