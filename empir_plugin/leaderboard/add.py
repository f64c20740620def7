"""Add an entry to a tree: from the files of experiments to the files of a leaderboard."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.evaluation.audit.report import AuditReport
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.eligibility import Measured, covers, in_percent, left_out, measure, require_overhead
from empir_plugin.leaderboard.entry import Entry, escaped
from empir_plugin.leaderboard.evidence import OVERHEAD, Evidence, Findings, Source
from empir_plugin.leaderboard.papers import Facts, facts_of, read_facts
from empir_plugin.leaderboard.tree import Board, Place, Tree, board_of, filed, publish, source


def compose(findings: Findings, board: Board) -> Entry:
    """The entry of a model on a board.

    Args:
        findings: Paper, run records, audit and costs.
        board: Of the model's data set.

    Raises:
        EvaluationError: If the records do not carry an entry: see :func:`empir_plugin.leaderboard.eligibility.measure`.
        InputError: If a fact has no place in an entry.
    """
    facts, overhead = findings.facts, findings.overhead
    measured = measure(facts.model, board, findings.records, findings.audit)
    if overhead is not None:
        overhead = require_overhead(overhead, findings.records[0].model["sha256"])
    return Entry(
        **facts.fields(),
        eps=board.threat.eps_text,
        clean_acc=in_percent(measured.clean),
        reported=facts.reported(board.threat),
        autoattack_acc=in_percent(measured.autoattack),
        external=None if measured.external is None else in_percent(measured.external),
        footnote=" ".join(_footnote(facts, measured, board)) or None,
        unreliable=measured.unreliable,
        overhead=overhead,
    )


def _footnote(facts: Facts, measured: Measured, board: Board) -> Iterator[str]:
    if facts.note:
        yield facts.note
    if facts.claims and not facts.reported(board.threat):
        told = ", ".join(f"{claim.accuracy}% under {claim.attack} at {_text(claim.threat)}" for claim in facts.claims)
        yield f"The paper attacks at another eps ({told}), so nothing is reported for eps = {board.threat.eps_text}."
    if measured.external is not None:
        count = measured.attacks - 1
        others = f"AutoAttack and {count} other attack{'s' if count > 1 else ''} of empir-plugin"
        yield f"{in_percent(measured.external)}% robust accuracy is the worst case per image over {others}."
    if measured.flags:
        yield "AutoAttack warns that its own evaluation may be unreliable."
    if measured.masked:
        yield f"An audit finds masked gradients ({escaped(', '.join(measured.masked))})."


def _text(threat: object) -> str:
    norm, _, eps = str(threat).partition(":")
    return f"{norm} eps = {eps}"


@dataclass(frozen=True)
class Files:
    """What an entry is to be made of.

    Args:
        records: Run records.
        audit: An audit for gradient masking.
        overhead: What the model costs.
        paper: What is to be said of the model (TOML), where this package does not know it.
    """

    records: tuple[Path, ...]
    audit: Path | None = None
    overhead: Path | None = None
    paper: Path | None = None

    def __iter__(self) -> Iterator[Path]:
        return (path for path in (*self.records, self.audit, self.overhead, self.paper) if path is not None)

    def findings(self, model: str) -> Findings:
        """What they say."""
        return Findings(
            facts=read_facts(self.paper, model) if self.paper else facts_of(model),
            records=tuple(Record.read(path) for path in self.records),
            audit=AuditReport.read(self.audit) if self.audit else None,
            overhead=OVERHEAD.load(self.overhead) if self.overhead else None,
        )

    def evidence(self, model: str, sources: Mapping[Path, Source]) -> Evidence:
        """Their names in a tree."""
        single = {"audit": self.audit, "overhead": self.overhead, "paper": self.paper}
        named = {key: sources[path] for key, path in single.items() if path is not None}
        return Evidence(model, tuple(sources[path] for path in self.records), **named)


def add(tree: Tree, model: str, files: Files) -> Place:
    """Make the entry of a model and put it, with all it rests on, into a tree.

    Records that cover a part of the test set make no entry, and are filed among the runs instead.

    Args:
        tree: The leaderboard.
        model: Name for ``load_model``.
        files: Of its experiments; those that lie elsewhere are copied into the tree's runs.

    Returns:
        Where the entry is.

    Raises:
        EvaluationError: If the files do not carry an entry, have names that are taken, or are not all the records the
            tree has of this model.
        InputError: If a file is of another form, or something cannot be written. No entry is changed then.
    """
    if not files.records:
        raise InputError("an entry needs one run record at least, got none: pass --record")
    files = replace(files, records=tuple(dict.fromkeys(files.records)))
    sources = _named(tree, files)
    findings = files.findings(model)
    board = board_of(findings.facts.dataset, str(Threat.parse(findings.records[0].threat).norm))
    _file_small(tree, board, files, findings, sources)
    entry = compose(findings, board)
    forgotten = list(left_out(tree, model, board, [named.path for named in sources.values()]))
    if forgotten:
        raise EvaluationError(
            f"{tree.runs} has more records of {model} on {board}, and an entry rests on all: "
            f"pass {', '.join(forgotten)} as --record, too"
        )
    for path, named in sources.items():
        filed(tree, path, named)
    place = tree.place(board, findings.facts.stem)
    publish(place, entry, files.evidence(model, sources))
    return place


def _named(tree: Tree, files: Files) -> dict[Path, Source]:
    sources = {path: source(tree, path) for path in files}
    names = [named.path for named in sources.values()]
    if len(set(names)) < len(names):
        raise EvaluationError(f"files of an entry need different names, got {', '.join(names)}: rename one")
    return sources


def _file_small(tree: Tree, board: Board, files: Files, findings: Findings, sources: Mapping[Path, Source]) -> None:
    """Keep the records of the entry's model and data set that are too small for it; those of others are no business."""
    subject = findings.facts.model, board.dataset
    small = [
        (path, record)
        for path, record in zip(files.records, findings.records, strict=True)
        if (record.model.get("name"), record.data.get("name")) == subject and not covers(board, record)
    ]
    for path, _ in small:
        filed(tree, path, sources[path])
    if small:
        path, record = small[0]
        raise EvaluationError(
            f"{path.name} covers {record.data['n']:,} images of {record.data.get('name')} "
            f"({record.data.get('split')}, {record.data.get('source')}), an entry on {board} needs the official "
            f"{board.n:,} test images: it is kept in {tree.runs}, evaluate on all of them (--data-dir) for an entry"
        )
