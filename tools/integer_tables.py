"""Tables of docs/benchmarks.md on execution on integers: verdicts that differ, and this build against an older one."""

from __future__ import annotations

from collections.abc import Iterator

from markdown_tables import markdown_table
from run_records import read_run, read_times

from empir_plugin.evaluation.comparison import CLEAN, WORST_CASE, Change, compare, ranges

DEFINED = ("empir-cifar", "empir-cifar-at", "empir-mnist", "empir-mnist-at")
ROUNDED = (
    ("empir-cifar-float32", "empir-cifar-bf16"),
    ("empir-cifar-at-float32", "empir-cifar-at-bf16"),
    ("empir-cifar-at", "empir-cifar-at-autoattack-bf16"),
)
"""Pairs of records with gradients in float32 and in bf16."""


def change_of_definition(model: str) -> Change:
    """A model's verdicts under AutoAttack on the first 500 images, before integers were the definition and after."""
    changes = compare(read_run(f"{model}-500"), read_run(f"integers/{model}")).changes
    return next(change for change in changes if change.name == "AutoAttack")


def definition_table() -> str:
    """Verdicts under standard AutoAttack before and after integers became the definition, on the first 500 images."""
    head = "model", "AutoAttack before", "and after", "broken only after", "broken only before"
    rows = []
    for model in DEFINED:
        attack = change_of_definition(model)
        rows.append((model, *_accuracies(attack), _images(attack.lost), _images(attack.gained)))
    return markdown_table(head, rows, "lr")


def gradients_table() -> str:
    """Robust accuracy with gradients in float32 and in bf16."""
    head = "model", "images", "attack", "float32", "bf16", "broken only with bf16", "only with float32", "p-value"
    return markdown_table(head, [row for pair in ROUNDED for row in _rounded(*pair)], "lrlrr")


def _rounded(float32: str, bf16: str) -> Iterator[tuple[str, ...]]:
    before, after = read_run(f"integers/{float32}"), read_run(f"integers/{bf16}")
    alone = len(before.attacks) == 1  # then the worst case is its own
    for change in compare(before, after).changes:
        if change.name != CLEAN and not (alone and change.name == WORST_CASE):
            counts = str(len(change.lost)), str(len(change.gained)), f"{change.p_value:.2g}"
            yield before.model["name"], f"{before.data['n']:,}", change.name, *_accuracies(change), *counts


def _accuracies(change: Change) -> tuple[str, str]:
    table = change.to_table()
    return f"{table['before']:.2f} %", f"{table['after']:.2f} %"


def _images(numbers: tuple[int, ...]) -> str:
    return f"{len(numbers)} (image {ranges(numbers)})" if numbers else "0"


def builds_table() -> str:
    """``benchmarks/builds.py``: this build relative to an older one."""
    record = read_times("builds")
    rows = []
    for name, ratio in record["ratios"].items():
        target = record["targets"].get(name)
        limit = "" if target is None else f"at most {target['at_most']} ({'met' if target['met'] else 'missed'})"
        rows.append((name, f"**{ratio:.2f}**", limit))
    return markdown_table(("work", "relative to the older build", "target"), rows, "lr")
