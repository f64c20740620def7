"""The report: every target that is complete, the claims ledger, and the way back from each number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from empir_plugin.evaluation.protocols import adaptive
from empir_plugin.reproduce.document import Block, Cell, Code, Document, Link, Picture, Section, Table, Text, points
from empir_plugin.reproduce.parts import Part
from empir_plugin.reproduce.published import data_table
from empir_plugin.reproduce.results import Results, Target, gap, mean_accuracy
from empir_plugin.reproduce.targets.table2 import ATTACKS, slug_of
from empir_plugin.reproduce.workspace import Workspace

HOLDS, FAILS, OPEN = "holds", "does not hold", "not measured"


@dataclass(frozen=True)
class Relation:
    """When a measurement bears a claim out.

    Args:
        sign: As readers know it.
        holds: Of claim, measurement and tolerance.
    """

    sign: str
    holds: Callable[[float, float, float], bool]


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "at_least": Relation(">=", lambda claim, found, tolerance: found >= claim - tolerance),
        "less_than": Relation("<", lambda claim, found, tolerance: found < claim + tolerance),
        "at_most": Relation("<=", lambda claim, found, tolerance: found <= claim + tolerance),
        "about": Relation("=", lambda claim, found, tolerance: abs(found - claim) <= tolerance),
    }
)
"""By the names that data files use."""


@dataclass(frozen=True)
class Found:
    """A measurement.

    Args:
        how: By what it was measured.
        slugs: Records it follows from.
        value: The number; None if a record is missing, or those to be compared are about different images.
    """

    how: str
    slugs: tuple[str, ...]
    value: float | None


@dataclass(frozen=True)
class Line:
    """One claim beside one measurement.

    Args:
        claim: In words.
        source: Where it was published.
        value: Its number.
        unit: Of both numbers.
        relation: A key of :data:`RELATIONS`.
        tolerance: In that unit.
        found: The measurement.
    """

    claim: str
    source: str
    value: float
    unit: str
    relation: str
    tolerance: float
    found: Found

    @property
    def verdict(self) -> str:
        """What follows from the two numbers.

        Example:
            >>> Line("", "", 42.6, "points", "at_least", 5.0, Found("", (), 40.0)).verdict
            'holds'
            >>> Line("", "", 42.6, "points", "at_least", 5.0, Found("", (), 1.0)).verdict
            'does not hold'
        """
        if self.found.value is None:
            return OPEN
        held = RELATIONS[self.relation].holds(self.value, self.found.value, self.tolerance)
        return HOLDS if held else FAILS


def _gain(results: Results, dataset: str, by: str) -> Found:
    slugs = tuple(slug_of(dataset, defence, by) for defence in ("baseline", "empir"))
    told = "worst cases" if by == adaptive.name else "averages of CW, FGSM, BIM, PGD"
    how = f"difference of the {told}, {by}"
    records = [results.record(slug) for slug in slugs if results.has(slug)]
    if len(records) < len(slugs) or len({record.data["sha256"] for record in records}) > 1:
        return Found(how, slugs, None)
    baseline, empir = (
        record.worst_case_accuracy if by == adaptive.name else mean_accuracy(record, ATTACKS) for record in records
    )
    return Found(how, slugs, round(empir - baseline, 2))


def _overhead(results: Results, dataset: str, cost: str, form: str) -> Found:
    slug = f"{dataset}-empir-cost"
    told = f"Equation 6, {'the ideal' if form == 'ideal' else 'layers as built'}"
    if not results.has(slug):
        return Found(told, (slug,), None)
    return Found(told, (slug,), round(100 * (results.table(slug)["eq6"][cost][form] - 1), 2))


def _worst(results: Results, slug: str) -> Found:
    value = results.record(slug).worst_case_accuracy if results.has(slug) else None
    return Found("worst case, adaptive", (slug,), value)


def _clean(results: Results, slug: str) -> Found:
    return Found("clean accuracy", (slug,), results.record(slug).clean_accuracy if results.has(slug) else None)


def _narrowest(results: Results, dataset: str) -> Found:
    slug = f"{dataset}-empir-cost"
    if not results.has(slug):
        return Found("bits of the weights in the model", (slug,), None)
    layers = [layer for member in results.table(slug)["members"] for layer in member["layers"]]
    return Found(
        "bits of the weights in the model", (slug,), min(layer["precision"]["weight_bits"] for layer in layers)
    )


_MEASURES: Mapping[str, Callable[..., Found]] = MappingProxyType(
    {"gain": _gain, "overhead": _overhead, "worst": _worst, "clean": _clean, "narrowest": _narrowest}
)


@cache
def _claims() -> tuple[Mapping[str, Any], ...]:
    return tuple(data_table("claims")["claims"])


def ledger(results: Results) -> tuple[Line, ...]:
    """Every claim beside every measurement that decides it.

    Example:
        >>> from pathlib import Path
        >>> {line.verdict for line in ledger(Results(Path("no such folder")))}
        {'not measured'}
    """
    return tuple(
        Line(
            row["claim"], row["source"], row["value"], row["unit"], row["relation"], row["tolerance"],
            _MEASURES[measure["kind"]](results, **{key: value for key, value in measure.items() if key != "kind"}),
        )
        for row in _claims()
        for measure in row["measures"]
    )  # fmt: skip


def ledger_table(results: Results) -> Table:
    """The ledger as a report shows it."""
    header = ("Claim", "Where", "Measured by", "Records", "Verdict", "Claimed", "Measured", "Tolerance")
    rows = tuple(_claim_row(results, line) for line in ledger(results))
    return Table("Claims about EMPIR. A verdict compares the two numbers, within the tolerance.", header, rows, texts=5)


def _claim_row(results: Results, line: Line) -> tuple[Cell, ...]:
    records = "-" if line.found.value is None else tuple(map(results.link, line.found.slugs))
    claimed = f"{RELATIONS[line.relation].sign} {line.value:g} {line.unit}"
    words = line.claim, line.source, line.found.how, records, line.verdict
    return (*words, claimed, points(line.found.value), f"{line.tolerance:g}")


def markdown(document: Document, figures: str) -> str:
    r"""Write a document as Markdown.

    Args:
        document: The report.
        figures: Folder of the figures, relative to the file.

    Example:
        >>> from empir_plugin.reproduce.document import Section
        >>> markdown(Document("Title", ("Lead.",), (Section("s", "Part", (Text("Words."),)),)), "figures")
        '# Title\n\nLead.\n\n## Part\n\nWords.\n'
    """
    pieces = [f"# {document.title}", *map(_escaped, document.lead)]
    for section in document.sections:
        pieces += [f"## {section.title}", *(_block(block, figures) for block in section.blocks)]
    return "\n\n".join(pieces) + "\n"


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Text):
        return _escaped(block.text)
    if isinstance(block, Code):
        return f"```console\n{block.text}\n```"
    if isinstance(block, Picture):
        alt = _escaped(block.description).replace("[", "(").replace("]", ")")
        return f"![{alt}]({figures}/{block.stem}.svg)\n\n*{_escaped(block.caption)}*"
    return "\n".join(_table(block))


def _table(table: Table) -> Iterator[str]:
    yield f"*{_escaped(table.caption)}*\n"
    yield _row(table.header)
    numbers = len(table.header) - table.texts
    yield _row(("---",) * table.texts + ("---:",) * numbers)
    yield from (_row(row) for row in table.rows)


def _row(cells: tuple[Cell, ...]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return ", ".join(map(_cell, cell))
    if isinstance(cell, Link):
        return f"[{_escaped(cell.text)}]({cell.path})"
    return _escaped(cell).replace("\n", " ")


def _escaped(text: str) -> str:
    for sign in "\\|*_<":
        text = text.replace(sign, f"\\{sign}")
    return text


_TITLE = "Reproduction of the papers' tables and figures"
_LEAD = (
    "Written by 'empir reproduce' from the records beside it. Each section ends in the command that measured it and in "
    "the records its numbers come from; a record holds the verdict on every image, the hashes of network, images and "
    "code, and all settings.",
    "Three protocols never mix: 'released' repeats the published code, slips included; 'paper' runs the attacks as the "
    "paper words them, with true labels; 'adaptive' takes for each image the worst of all attacks known here. Only the "
    "last one measures robustness; 'strong', in figures of many networks, is the part of it that is PGD or Square.",
)


def report(workspace: Workspace, targets: Sequence[Target]) -> Document:
    """Draw the figures of the targets that are complete, and tell of all of them.

    Raises:
        EvaluationError: If a record is damaged.
    """
    results = Results(workspace.records)
    sections = [_section(workspace, results, target) for target in targets]
    claims = Section("claims", "Claims ledger", (Text(_LEDGER), ledger_table(results)))
    return Document(_TITLE, _LEAD, (claims, *sections))


_LEDGER = (
    "What was published about EMPIR, beside what was measured here. 'holds' and 'does not hold' follow from the two "
    "numbers and the tolerance; 'not measured' means that a record is missing."
)


def _section(workspace: Workspace, results: Results, target: Target) -> Section:
    missing = gap(results, target.parts)
    if missing:
        told = Text(f"Not shown: {missing}. This command measures what is missing:")
        return Section(target.name, target.title, (told, Code(f"empir reproduce {target.name}")))
    shown = target.show(results, workspace.figures)
    extras = [part for part in target.extras if results.has(part.slug)]
    there = (*target.parts, *extras)
    return Section(target.name, target.title, (*shown, *_not_run(results, target), *_sources(results, target, there)))


def _not_run(results: Results, target: Target) -> list[Block]:
    absent = [part for part in target.extras if not results.has(part.slug)]
    if not absent:
        return []
    datasets = ", ".join(dict.fromkeys(part.dataset for part in absent))
    models = ", ".join(dict.fromkeys(model for part in absent for subject in part.subjects for model in subject.given))
    return [
        Text(
            f"Not run: {datasets}. Neither its images nor weights for it can travel with this package. With a folder "
            f"'val' of the 1,000 classes under --data-dir, and state dicts of {models} as weights/MODEL.safetensors "
            "in --out, the same command measures it."
        )
    ]


def _sources(results: Results, target: Target, parts: Sequence[Part]) -> list[Block]:
    sizes = sorted({results.table(part.slug)["data"]["n"] for part in parts if "data" in results.table(part.slug)})
    told = f" --n-examples {sizes[-1]}" if sizes else ""
    data = " --data-dir DATA" if target.trainings or (sizes and sizes[-1] > 1000) else ""
    rows = tuple(_source(results, part) for part in parts)
    header = ("Record", "Network", "SHA-256 of the record", "Code", "Threat", "n", "Seconds")
    names = ", ".join(dict.fromkeys(training.recipe for training in target.trainings))
    recipes = [Text(f"Trained for this, by recipe: {names}. Their course is in records/training.")] if names else []
    table = Table("The records of this section.", header, rows, texts=5)
    return [Code(f"empir reproduce {target.name}{told}{data}"), *recipes, table]


def _source(results: Results, part: Part) -> tuple[Cell, ...]:
    table = results.table(part.slug)
    seconds = sum(attack["seconds"] for attack in table.get("attacks", ()))
    return (
        results.link(part.slug),
        ", ".join(subject.name for subject in part.subjects),
        results.digest(part.slug)[:12],
        table.get("run", {}).get("code_sha256", "-")[:12],
        table.get("threat", "-"),
        f"{table['data']['n']:,}" if "data" in table else "-",
        f"{seconds:.0f}" if "attacks" in table else "-",
    )
