"""The report: every target that is complete, the claims ledger, and the way back from each number."""

from __future__ import annotations

from collections.abc import Sequence

from empir_plugin.reproduce.document import Block, Cell, Code, Document, Section, Table, Text
from empir_plugin.reproduce.ledger import ledger_table
from empir_plugin.reproduce.parts import Part
from empir_plugin.reproduce.results import Results, gap
from empir_plugin.reproduce.target import Target
from empir_plugin.reproduce.workspace import Workspace

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
