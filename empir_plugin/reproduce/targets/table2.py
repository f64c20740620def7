"""Table 2 of the EMPIR paper: accuracy of defences under CW, FGSM, BIM and PGD, and in the worst case."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from empir_plugin.attacks.threat import Threat
from empir_plugin.evaluation.protocols import Protocol, adaptive, paper, released
from empir_plugin.evaluation.record import Record
from empir_plugin.reproduce.document import Block, Cell, Picture, Table, Text, points, signed
from empir_plugin.reproduce.figures import draw_bars, panels, percent_axis, save_figure
from empir_plugin.reproduce.parts import Cost, Evaluation, Part
from empir_plugin.reproduce.published import COLUMNS, codes, legend, table2
from empir_plugin.reproduce.results import Results, Target, attack_accuracy, mean_accuracy
from empir_plugin.reproduce.subjects import DATASETS, DEFENCES, ROBUSTBENCH_THREAT, SUBJECTS, THREATS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ATTACKS = COLUMNS[1:5]
PROTOCOLS = (released, paper, adaptive)
_MEASURED = "mnist", "cifar10"
"""Data sets whose networks are trained here; the weights for ImageNet must come from the user."""


def slug_of(dataset: str, defence: str, protocol: str, threat: Threat | None = None) -> str:
    """Name of the record of a row under a protocol; ``threat`` is None for the paper's own.

    Example:
        >>> slug_of("mnist", "empir", "paper")
        'mnist-empir-paper'
    """
    radius = "" if threat is None else f"-{threat.eps_text.replace('/', '-')}"
    return f"{dataset}-{defence}-{protocol}{radius}"


def evaluation(dataset: str, defence: str, protocol: Protocol, threat: Threat | None = None) -> Evaluation:
    """The evaluation of a row under a protocol, within the paper's eps unless ``threat`` is given."""
    budget = threat or protocol.threat(dataset) or THREATS[dataset]
    slug = slug_of(dataset, defence, protocol.name, threat)
    return Evaluation(SUBJECTS[dataset, defence], dataset, protocol, budget, slug, cascade=protocol is adaptive)


def _rows(*datasets: str) -> Iterator[tuple[str, str]]:
    return ((dataset, defence) for dataset, defence in SUBJECTS if dataset in datasets)


def _parts(*datasets: str) -> Iterator[Part]:
    yield from (evaluation(*row, protocol) for row in _rows(*datasets) for protocol in PROTOCOLS)


def _claim_parts() -> Iterator[Part]:
    """Further measurements that published claims are checked against: at RobustBench's eps, and of costs."""
    yield evaluation("cifar10", "empir", adaptive, ROBUSTBENCH_THREAT)
    yield from (Cost(SUBJECTS[name, "empir"], name, f"{name}-empir-cost") for name in _MEASURED)


def _show(results: Results, folder: Path) -> tuple[Block, ...]:
    save_figure(folder, "table2", (7.2, 5.6), lambda figure: _plot(figure, results))
    tables = [_table(results, dataset) for dataset in DATASETS]
    gaps = [_gaps(results, dataset) for dataset in _MEASURED]
    letters = [str(row[-1]) for table in gaps for row in table.rows]
    return (Text(_TEXT), *tables, _PICTURE, Text(_GAPS_TEXT), *gaps, legend(letters))


_TEXT = (
    "Percent of the test images classified correctly. 'paper' is the review version, 'repository' the authors' "
    "table of the published version. 'ours, released' repeats the released code, slips included; 'ours, paper' runs "
    "the attacks as the paper describes them, with true labels; 'ours, adaptive' takes the worst case over all "
    "attacks known here, image by image, within the eps above the table, so it has no columns for single attacks. "
    "The average is that of CW, FGSM, BIM and PGD."
)
_WHERE = {"paper": "review version, Table 2", "repository": "README of the repository"}
_GAPS_TEXT = (
    "A gap is our number minus the repository's, or minus the paper's where the repository has none, in points. The "
    "letters name the differences between the two measurements; several can act at once, and none was measured "
    "alone."
)
_PICTURE = Picture(
    "table2",
    "Average accuracy under CW, FGSM, BIM and PGD as published and by two protocols of ours, and the worst case by the "
    "protocol adaptive, in percent of the test images. A missing bar or number means that nothing was published.",
    "Two panels of grouped bars, for MNIST and CIFAR-10. Each group is a defence, each bar a source of the number; the "
    "numbers are those of the tables.",
)


def _table(results: Results, dataset: str) -> Table:
    rows = tuple(row for _, defence in _rows(dataset) for row in _defence_rows(results, dataset, defence))
    header = ("Defence", "Numbers", "Clean", *ATTACKS, "Average", "Worst case", "n", "Record")
    return Table(f"{DATASETS[dataset]}, {_budgets(dataset)}; accuracy in %.", header, rows, texts=2)


def _budgets(dataset: str) -> str:
    """The eps, and that of protocols with another: on ImageNet, the paper and the released code disagree."""
    threats = {protocol.name: evaluation(dataset, "empir", protocol).threat for protocol in PROTOCOLS}
    others = [f"{name}: {threat}" for name, threat in threats.items() if not _same(threat, THREATS[dataset])]
    return ", ".join([str(THREATS[dataset]), *others])


def _same(threat: Threat, other: Threat) -> bool:
    """Whether two threats are equal up to rounding: the eps of the release is computed as a product."""
    return threat.norm == other.norm and math.isclose(threat.eps, other.eps)


def _defence_rows(results: Results, dataset: str, defence: str) -> Iterator[tuple[Cell, ...]]:
    known = table2().get((dataset, defence))
    sources = {} if known is None else {"paper": known.paper, "repository": known.repository}
    for source, numbers in sources.items():
        if numbers:
            size = {"mnist": "10,000", "cifar10": "10,000", "imagenet": "50,000"}[dataset]
            yield DEFENCES[defence], source, *map(points, numbers), "-", size, _WHERE[source]
    for protocol in PROTOCOLS:
        slug = slug_of(dataset, defence, protocol.name)
        yield DEFENCES[defence], f"ours, {protocol.name}", *_measured_cells(results, slug, protocol)


def _measured_cells(results: Results, slug: str, protocol: Protocol) -> Iterator[Cell]:
    if not results.has(slug):
        yield from ("not run", *("-",) * 8)
        return
    record = results.record(slug)
    yield points(record.clean_accuracy)
    yield from map(points, attack_columns(record, protocol))
    yield points(record.worst_case_accuracy) if protocol is adaptive else "-"
    yield f"{record.data['n']:,}"
    yield results.link(slug)


def attack_columns(record: Record, protocol: Protocol) -> tuple[float | None, ...]:
    """Accuracy under each attack of Table 2, and the mean; all None for ``adaptive``, which is a worst case."""
    if protocol is adaptive:
        return (None,) * (len(ATTACKS) + 1)
    return (*(attack_accuracy(record, name) for name in ATTACKS), mean_accuracy(record, ATTACKS))


def _gaps(results: Results, dataset: str) -> Table:
    header = ("Defence", "Ours by", "Clean", *ATTACKS, "Average", "Differs in")
    rows = (
        (
            DEFENCES[defence],
            protocol.name,
            *_gap(results, dataset, defence, protocol),
            codes(protocol.name, dataset, defence),
        )
        for _, defence in _rows(dataset)
        if (dataset, defence) in table2()
        for protocol in PROTOCOLS
    )
    return Table(f"{DATASETS[dataset]}: ours minus the published number, in points.", header, tuple(rows), texts=2)


def _gap(results: Results, dataset: str, defence: str, protocol: Protocol) -> Iterator[str]:
    """Differences column by column; the worst case of ``adaptive`` is compared with the published average."""
    record, known = results.record(slug_of(dataset, defence, protocol.name)), table2()[dataset, defence].reference
    ours = (record.clean_accuracy, *attack_columns(record, protocol))
    if protocol is adaptive:
        ours = (*ours[:-1], record.worst_case_accuracy)
    yield from (signed(None if our is None else our - their) for our, their in zip(ours, known, strict=True))


def _plot(figure: Figure, results: Results) -> None:
    axes = panels(figure, 2, 1)
    for axis, dataset in zip(axes, _MEASURED, strict=True):
        defences = [defence for _, defence in _rows(dataset)]
        names = [textwrap.fill(DEFENCES[defence], 15) for defence in defences]
        draw_bars(axis, names, list(_series(results, dataset, defences)))
        percent_axis(axis, "accuracy, %", room=0)
        axis.set_title(f"{DATASETS[dataset]}, {THREATS[dataset]}", loc="left", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)


def _series(results: Results, dataset: str, defences: list[str]) -> Iterator[tuple[str, list[float | None]]]:
    known = [table2().get((dataset, defence)) for defence in defences]
    yield "published: average", [None if row is None else row.reference[-1] for row in known]
    for protocol in (released, paper):
        records = [results.record(slug_of(dataset, defence, protocol.name)) for defence in defences]
        yield f"ours, {protocol.name}: average", [mean_accuracy(record, ATTACKS) for record in records]
    records = [results.record(slug_of(dataset, defence, adaptive.name)) for defence in defences]
    yield "ours, adaptive: worst case", [record.worst_case_accuracy for record in records]


TABLE2 = Target(
    "table2",
    "Table 2: defences under four attacks",
    (*_parts(*_MEASURED), *_claim_parts()),
    _show,
    extras=(*_parts("imagenet"), evaluation("imagenet", "empir", adaptive, Threat.parse("Linf:4/255"))),
)
"""Table 2."""
