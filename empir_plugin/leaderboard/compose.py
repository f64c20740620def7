"""From what is known of a model to its entry: nothing in an entry is written by hand."""

from __future__ import annotations

from collections.abc import Iterator

from empir_plugin.leaderboard.boards import Board
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.evidence import Findings
from empir_plugin.leaderboard.markup import escaped
from empir_plugin.leaderboard.measured import Measured, in_percent, measure, require_overhead
from empir_plugin.leaderboard.papers import Facts


def compose(findings: Findings, board: Board) -> Entry:
    """The entry of a model on a board.

    Args:
        findings: Paper, run records, audit and costs.
        board: Of the model's data set.

    Raises:
        EvaluationError: If the records do not carry an entry: see :func:`empir_plugin.leaderboard.measured.measure`.
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
