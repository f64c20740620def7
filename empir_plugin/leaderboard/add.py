"""Add an entry to a leaderboard: compose it from run records, an audit and an overhead, and publish it in a tree."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.eligibility import (
    Numbers,
    covers_test_set,
    find_missing_records,
    format_percent,
    measure,
    require_same_overhead_subject,
)
from empir_plugin.leaderboard.entry import Entry, escape_html
from empir_plugin.leaderboard.evidence import OVERHEAD, Evidence, Findings, SourceFile
from empir_plugin.leaderboard.papers import Facts, facts_of, read_facts
from empir_plugin.leaderboard.publication import publishing, settle
from empir_plugin.leaderboard.tree import CORRUPTIONS, Board, Place, Tree, board_of, copy_to_runs, publish, source_file


def compose(findings: Findings, board: Board) -> Entry:
    """The entry of a model on a board.

    Args:
        findings: Paper, run records, audit and overhead.
        board: Of the entry.

    Raises:
        EvaluationError: If the findings are not eligible: see :func:`empir_plugin.leaderboard.eligibility.measure`.
        InputError: If a fact cannot be a field of an entry.
    """
    facts, overhead = findings.facts, findings.overhead
    numbers = measure(facts.model, board, findings.records, findings.audit)
    if overhead is not None:
        overhead = require_same_overhead_subject(overhead, findings.records[0])
    common = {**facts.fields(), "clean_acc": format_percent(numbers.clean), "overhead": overhead}
    robust = format_percent(numbers.autoattack)
    if board.threat is None:
        return Entry(**common, eps=None, reported="", corruptions_acc=robust, footnote=facts.note or None)
    return Entry(
        **common,
        eps=board.eps_text,
        reported=facts.reported_accuracy(board.threat),
        autoattack_acc=robust,
        external=None if numbers.external is None else format_percent(numbers.external),
        footnote=" ".join(_footnote(facts, numbers, board.threat)) or None,
        unreliable=numbers.unreliable,
    )


def _footnote(facts: Facts, numbers: Numbers, threat: Threat) -> Iterator[str]:
    if facts.note:
        yield facts.note
    if facts.claims and not facts.reported_accuracy(threat):
        claims = ", ".join(f"{claim.accuracy}% under {claim.attack} at {_text(claim.threat)}" for claim in facts.claims)
        yield f"The paper attacks at another eps ({claims}), so nothing is reported for eps = {threat.eps_text}."
    if numbers.external is not None:
        count = numbers.attacks - 1
        others = f"AutoAttack and {count} other attack{'s' if count > 1 else ''} of empir-plugin"
        yield f"{format_percent(numbers.external)}% robust accuracy is the worst case per image over {others}."
    if numbers.flags:
        yield "AutoAttack warns that its own evaluation may be unreliable."
    if numbers.masked:
        yield f"An audit finds masked gradients ({escape_html(', '.join(numbers.masked))})."


def _text(threat: object) -> str:
    norm, _, eps = str(threat).partition(":")
    return f"{norm} eps = {eps}"


@dataclass(frozen=True)
class Files:
    """The files an entry is composed from.

    Args:
        records: Run records.
        audit: An audit for gradient masking.
        overhead: Overhead of the model, as ``empir overhead --out`` writes it.
        paper: Facts about a model that this package does not know (TOML).
    """

    records: tuple[Path, ...]
    audit: Path | None = None
    overhead: Path | None = None
    paper: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        return (path for path in (*self.records, self.audit, self.overhead, self.paper) if path is not None)

    def findings(self, model: str) -> Findings:
        """Read the files.

        Args:
            model: Name for ``load_model``.

        Raises:
            EvaluationError: If a record or the audit cannot be read.
            InputError: If another file cannot be read.
        """
        return Findings(
            facts=read_facts(self.paper, model) if self.paper else facts_of(model),
            records=tuple(Record.read(path) for path in self.records),
            audit=AuditReport.read(self.audit) if self.audit else None,
            overhead=OVERHEAD.load(self.overhead) if self.overhead else None,
        )

    def evidence(self, model: str, sources: Mapping[Path, SourceFile]) -> Evidence:
        """The evidence of an entry, which names these files in a tree.

        Args:
            model: Name for ``load_model``.
            sources: The source file of each file.
        """
        single = {"audit": self.audit, "overhead": self.overhead, "paper": self.paper}
        present = {key: sources[path] for key, path in single.items() if path is not None}
        return Evidence(model, tuple(sources[path] for path in self.records), **present)


def add(tree: Tree, model: str, files: Files) -> Place:
    """Compose the entry of a model and publish it, with all its sources, in a tree.

    Records that cover a part of the test set make no entry, and are kept in the tree's runs.

    Args:
        tree: The leaderboard.
        model: Name for ``load_model``.
        files: The sources; those outside of the tree's runs are copied there.

    Returns:
        Where the entry is.

    Raises:
        EvaluationError: If the files are not eligible, two files have the same name, or the tree has more eligible
            records of this model.
        InputError: If a file cannot be read, or something cannot be written. No entry is changed then.
    """
    if not files.records:
        raise InputError("an entry needs one run record at least, got none: pass --record")
    files = replace(files, records=tuple(dict.fromkeys(files.records)))
    sources = _source_files(tree, files)
    findings = files.findings(model)
    board = board_of(findings.facts.dataset, _threat_model(findings.records[0]))
    for path, record in zip(files.records, findings.records, strict=True):
        if _is_partial(board, findings.facts, record):
            copy_to_runs(tree, path, sources[path])
    entry, place = compose(findings, board), tree.place(board, findings.facts.stem)
    settle(tree.root)
    _require_all_records(tree, model, board, sources)  # Before there is a lock: a refusal leaves no trace.
    try:
        with publishing(tree.root):
            _require_all_records(tree, model, board, sources)
            publish(tree, place, entry, files.evidence(model, sources), sources)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{tree.root} cannot be written ({reason}): choose another tree") from error
    return place


def _require_all_records(tree: Tree, model: str, board: Board, sources: Mapping[Path, SourceFile]) -> None:
    if missing := list(find_missing_records(tree, model, board, [source.path for source in sources.values()])):
        raise EvaluationError(
            f"{tree.runs} has more records of {model} on {board}, and an entry needs all of them: "
            f"pass {', '.join(missing)} as --record, too"
        )


def _threat_model(record: Record) -> str:
    return CORRUPTIONS if record.threat == CORRUPTIONS else str(Threat.parse(record.threat).norm)


def _source_files(tree: Tree, files: Files) -> dict[Path, SourceFile]:
    sources = {path: source_file(tree, path) for path in files}
    names = [source.path for source in sources.values()]
    if len(set(names)) < len(names):
        raise EvaluationError(f"files of an entry need different names, got {', '.join(names)}: rename one")
    return sources


def _is_partial(board: Board, facts: Facts, record: Record) -> bool:
    """Whether a record is of the entry's model and data set, and not of the full test set."""
    is_of_entry = (record.model.get("name"), record.data.get("name")) == (facts.model, board.dataset)
    return is_of_entry and not covers_test_set(board, record)
