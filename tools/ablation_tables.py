"""The tables of ablations in docs/robust.md, from committed records; ``python tools/docs_tables.py`` writes them."""

from __future__ import annotations

from functools import cache

from committed import RUNS
from markdown_tables import markdown_table

from empir_plugin.evaluation.audit.report import tail
from empir_plugin.evaluation.record import Record
from empir_plugin.reproduce.results import attack_accuracy, attack_of
from empir_plugin.training.networks import member_of
from empir_plugin.training.recipe import find_recipe

_SHOWN = (
    "alone-fp",
    "alone-w4a4",
    "alone-w4a4-b",
    "apart-mean-probability",
    "apart-vote",
    "together-2",
    "together-3",
    "together-3-logits",
    "together-3-vote",
    "together-4",
)
_COMPARED = (
    ("together-3", "alone-fp"),
    ("apart-mean-probability", "alone-fp"),
    ("together-3", "apart-mean-probability"),
    ("together-3", "together-3-vote"),
    ("apart-mean-probability", "apart-vote"),
    ("together-3", "together-3-logits"),
    ("together-3", "together-2"),
    ("together-3", "together-4"),
)


def ablations() -> str:
    """One network alone, members trained apart and together, two, three and four of them, and ways to decide."""
    records = [_record(name) for name in _SHOWN]
    if len({(record.data["sha256"], record.threat) for record in records}) != 1:
        raise ValueError("the ablations must all be of the same images within the same radius, got others")
    head = "networks", "trained", "decide by", "clean", "PGD-100", "AutoAttack"
    return markdown_table(head, map(_left, records), "lllr")


@cache
def _record(name: str) -> Record:
    return Record.read(RUNS / "ablations" / f"{name}.json")


def _left(record: Record) -> list[str]:
    left = (attack_accuracy(record, name) for name in ("PGD-100", "AutoAttack"))
    return [*_taken(record), *(f"{value:.1f} %" for value in (record.clean_accuracy, *left))]


def _taken(record: Record) -> tuple[str, str, str]:
    """Networks, training and rule, from what ``--trained`` calls ``RECIPE (RULE)``, or by the name of one member."""
    name = record.model["name"]
    recipe, _, rule = name.removesuffix(")").partition(" (")
    if not rule:
        return str(member_of(find_recipe("empir-cifar-at-apart"), name).precision), "alone", ""
    found = find_recipe(recipe)
    together = " + ".join(str(member.precision) for member in found.members if member.in_ensemble)
    return together, "together" if found.joint else "apart", rule.replace("_", " ")


def comparisons() -> str:
    """Pairs of them under AutoAttack, image by image."""
    head = "one", "another", "only the one", "only the other", "chance"
    return markdown_table(head, (_pair(*names) for names in _COMPARED), "llr")


def _pair(one: str, another: str) -> list[str]:
    found = _record(one), _record(another)
    verdicts = list(zip(*(attack_of(record, "AutoAttack").robust for record in found), strict=True))
    first, second = verdicts.count(("1", "0")), verdicts.count(("0", "1"))
    chance = min(1.0, 2 * tail(max(first, second), first + second, 0.5))
    return [*(_named(record) for record in found), str(first), str(second), f"{chance:.2g}"]


def _named(record: Record) -> str:
    networks, trained, rule = _taken(record)
    return f"{networks} {trained}, {rule}" if rule else f"{networks} {trained}"
