"""The report: published claims checked against the records, then a section for each table or figure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Any

from empir_plugin.evaluation.protocols import adaptive
from empir_plugin.reproduce.document import Block, Cell, Code, Document, Section, Table, Text, points
from empir_plugin.reproduce.parts import Part
from empir_plugin.reproduce.published import data_table
from empir_plugin.reproduce.results import Results, Target, incomplete_reason, mean_accuracy
from empir_plugin.reproduce.targets.table2 import ATTACKS, slug_of
from empir_plugin.reproduce.workspace import Workspace

HOLDS, FAILS, NOT_MEASURED = "holds", "does not hold", "not measured"


@dataclass(frozen=True)
class Relation:
    """How a measurement must compare with a claim.

    Args:
        sign: The sign that readers know it by.
        holds: Whether it holds, given the claimed value, the measured value and the tolerance.
    """

    sign: str
    holds: Callable[[float, float, float], bool]


RELATIONS: Mapping[str, Relation] = MappingProxyType(
    {
        "at_least": Relation(">=", lambda claimed, measured, tolerance: measured >= claimed - tolerance),
        "less_than": Relation("<", lambda claimed, measured, tolerance: measured < claimed + tolerance),
        "at_most": Relation("<=", lambda claimed, measured, tolerance: measured <= claimed + tolerance),
        "about": Relation("=", lambda claimed, measured, tolerance: abs(measured - claimed) <= tolerance),
    }
)
"""Relations by their names in data files."""


@dataclass(frozen=True)
class Measurement:
    """A measured number to compare with a claim.

    Args:
        method: How it was measured.
        slugs: Records it is computed from.
        value: The number; None if a record is missing, or the records are of different images.
    """

    method: str
    slugs: tuple[str, ...]
    value: float | None


@dataclass(frozen=True)
class ClaimCheck:
    """A published claim beside one measurement.

    Args:
        claim: The claim, as a sentence.
        source: Where it was published.
        value: The claimed number.
        unit: Unit of both numbers.
        relation: A key of :data:`RELATIONS`.
        tolerance: Tolerance in that unit.
        measurement: The measured number.
    """

    claim: str
    source: str
    value: float
    unit: str
    relation: str
    tolerance: float
    measurement: Measurement

    @property
    def verdict(self) -> str:
        """Whether the claim holds.

        Example:
            >>> ClaimCheck("", "", 42.6, "points", "at_least", 5.0, Measurement("", (), 40.0)).verdict
            'holds'
            >>> ClaimCheck("", "", 42.6, "points", "at_least", 5.0, Measurement("", (), 1.0)).verdict
            'does not hold'
        """
        if self.measurement.value is None:
            return NOT_MEASURED
        holds = RELATIONS[self.relation].holds(self.value, self.measurement.value, self.tolerance)
        return HOLDS if holds else FAILS


def _gain(results: Results, dataset: str, by: str) -> Measurement:
    """EMPIR's gain over the baseline: of worst cases under ``adaptive``, else of averages over four attacks."""
    slugs = tuple(slug_of(dataset, defence, by) for defence in ("baseline", "empir"))
    quantity = "worst cases" if by == adaptive.name else "averages of CW, FGSM, BIM, PGD"
    method = f"difference of the {quantity}, {by}"
    records = [results.record(slug) for slug in slugs if results.has(slug)]
    if len(records) < len(slugs) or len({record.data["sha256"] for record in records}) > 1:
        return Measurement(method, slugs, None)
    baseline, empir = (
        record.worst_case_accuracy if by == adaptive.name else mean_accuracy(record, ATTACKS) for record in records
    )
    return Measurement(method, slugs, round(empir - baseline, 2))


def _overhead(results: Results, dataset: str, cost: str, form: str) -> Measurement:
    slug = f"{dataset}-empir-cost"
    method = f"Equation 6, {'all layers quantized' if form == 'ideal' else 'layers as built'}"
    if not results.has(slug):
        return Measurement(method, (slug,), None)
    return Measurement(method, (slug,), round(100 * (results.table(slug)["eq6"][cost][form] - 1), 2))


def _worst_case(results: Results, slug: str) -> Measurement:
    value = results.record(slug).worst_case_accuracy if results.has(slug) else None
    return Measurement("worst case, adaptive", (slug,), value)


def _clean(results: Results, slug: str) -> Measurement:
    value = results.record(slug).clean_accuracy if results.has(slug) else None
    return Measurement("clean accuracy", (slug,), value)


def _narrowest(results: Results, dataset: str) -> Measurement:
    slug, method = f"{dataset}-empir-cost", "fewest weight bits of any layer"
    if not results.has(slug):
        return Measurement(method, (slug,), None)
    layers = [layer for member in results.table(slug)["members"] for layer in member["layers"]]
    return Measurement(method, (slug,), min(layer["precision"]["weight_bits"] for layer in layers))


_MEASURES: Mapping[str, Callable[..., Measurement]] = MappingProxyType(
    {"gain": _gain, "overhead": _overhead, "worst": _worst_case, "clean": _clean, "narrowest": _narrowest}
)


@cache
def _claims() -> tuple[Mapping[str, Any], ...]:
    return tuple(data_table("claims")["claims"])


def check_claims(results: Results) -> tuple[ClaimCheck, ...]:
    """Compare every published claim with each measurement that decides it.

    Example:
        >>> from pathlib import Path
        >>> {check.verdict for check in check_claims(Results(Path("no such folder")))}
        {'not measured'}
    """
    return tuple(
        ClaimCheck(
            row["claim"], row["source"], row["value"], row["unit"], row["relation"], row["tolerance"],
            _MEASURES[measure["kind"]](results, **{key: value for key, value in measure.items() if key != "kind"}),
        )
        for row in _claims()
        for measure in row["measures"]
    )  # fmt: skip


def claims_table(results: Results) -> Table:
    """All claims, measurements and verdicts as a table of the report."""
    header = ("Claim", "Source", "Measured by", "Records", "Verdict", "Claimed", "Measured", "Tolerance")
    rows = tuple(_claim_row(results, check) for check in check_claims(results))
    caption = "Claims about EMPIR. A verdict compares the two numbers, within the tolerance."
    return Table(caption, header, rows, texts=5)


def _claim_row(results: Results, check: ClaimCheck) -> tuple[Cell, ...]:
    measurement = check.measurement
    records = "-" if measurement.value is None else tuple(map(results.link, measurement.slugs))
    texts = check.claim, check.source, measurement.method, records, check.verdict
    claimed = f"{RELATIONS[check.relation].sign} {check.value:g} {check.unit}"
    return (*texts, claimed, points(measurement.value), f"{check.tolerance:g}")


_TITLE = "Reproduction of the papers' tables and figures"
_LEAD = (
    "Written by 'empir reproduce' from the records beside it. Each section ends with the command that measured it and "
    "the records its numbers come from; a record holds the verdict on every image, the hashes of network, images and "
    "code, and all settings.",
    "Three protocols are kept apart: 'released' repeats the published code, slips included; 'paper' runs the attacks "
    "as the paper describes them, with true labels; 'adaptive' takes the worst case over all attacks known here, image "
    "by image. Only 'adaptive' measures robustness; 'strong', in figures with many networks, is its PGD attacks and "
    "Square.",
)
_CLAIMS = (
    "What was published about EMPIR, beside what was measured here. 'holds' and 'does not hold' follow from the two "
    "numbers and the tolerance; 'not measured' means that a record is missing."
)


def build_report(workspace: Workspace, targets: Sequence[Target]) -> Document:
    """Build the report on some targets from their records, and draw the figures of those that are complete.

    Raises:
        EvaluationError: If a record is damaged.
    """
    results = Results(workspace.records)
    sections = [_section(workspace, results, target) for target in targets]
    claims = Section("claims", "Claims ledger", (Text(_CLAIMS), claims_table(results)))
    return Document(_TITLE, _LEAD, (claims, *sections))


def _section(workspace: Workspace, results: Results, target: Target) -> Section:
    reason = incomplete_reason(results, target.parts)
    if reason:
        text = Text(f"Not shown: {reason}. This command measures what is missing:")
        return Section(target.name, target.title, (text, Code(f"empir reproduce {target.name}")))
    blocks = target.show(results, workspace.figures)
    parts = (*target.parts, *(part for part in target.extras if results.has(part.slug)))
    return Section(target.name, target.title, (*blocks, *_not_run(results, target), *_sources(results, target, parts)))


def _not_run(results: Results, target: Target) -> list[Block]:
    absent = [part for part in target.extras if not results.has(part.slug)]
    if not absent:
        return []
    datasets = ", ".join(dict.fromkeys(part.dataset for part in absent))
    models = ", ".join(
        dict.fromkeys(model for part in absent for subject in part.subjects for model in subject.user_weights)
    )
    return [
        Text(
            f"Not run: {datasets}. This package can include neither its images nor weights for it. With a folder "
            f"'val' of the 1,000 classes under --data-dir, and state dicts of {models} as weights/MODEL.safetensors "
            "in --out, the same command measures it."
        )
    ]


def _sources(results: Results, target: Target, parts: Sequence[Part]) -> list[Block]:
    """The command that measured a target, its trainings, and its records."""
    sizes = sorted({results.table(part.slug)["data"]["n"] for part in parts if "data" in results.table(part.slug)})
    size = f" --n-examples {sizes[-1]}" if sizes else ""
    data = " --data-dir DATA" if target.trainings or (sizes and sizes[-1] > 1000) else ""
    command = Code(f"empir reproduce {target.name}{size}{data}")
    names = ", ".join(dict.fromkeys(training.recipe for training in target.trainings))
    trainings = [Text(f"Recipes trained for this: {names}. Training reports are in records/training.")] if names else []
    header = ("Record", "Network", "SHA-256 of the record", "Code", "Threat", "n", "Seconds")
    rows = tuple(_source(results, part) for part in parts)
    return [command, *trainings, Table("The records of this section.", header, rows, texts=5)]


def _source(results: Results, part: Part) -> tuple[Cell, ...]:
    table = results.table(part.slug)
    # Not sum(): from Python 3.12 on it adds floats in another way, which can move the last digit.
    seconds = math.fsum(attack["seconds"] for attack in table.get("attacks", ()))
    return (
        results.link(part.slug),
        ", ".join(subject.name for subject in part.subjects),
        results.digest(part.slug)[:12],
        table.get("run", {}).get("code_sha256", "-")[:12],
        table.get("threat", "-"),
        f"{table['data']['n']:,}" if "data" in table else "-",
        f"{seconds:.0f}" if "attacks" in table else "-",
    )
