"""The table: ranked as RobustBench ranks, and no cell broken."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import InputError
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.table import markdown
from empir_plugin.leaderboard.tree import Place, Tree


def lines(tree: Tree) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(" | ")] for line in markdown(tree).splitlines()]


def test_an_empty_tree(tmp_path: Path) -> None:
    assert markdown(Tree(tmp_path)) == ""
    with pytest.raises(InputError, match="there is no leaderboard at"):
        markdown(Tree(tmp_path / "none"))


def test_a_table_for_each_board_ranked_by_the_lowest_accuracy(
    place: Place, tree: Tree, tmp_path: Path, made: Any
) -> None:
    for model, left in (("cifarconv-fp", 0), ("cifarconv-w2a2", 95)):
        path = tmp_path / f"{model}.json"
        made.record(made.autoattack(0, left), model=model).write(path)
        add(tree, model, Files((path,)))
    path = tmp_path / "mnist.json"
    about = {"model": "empir-mnist", "dataset": "mnist", "clean": 9901}
    made.record(made.autoattack(0, 3, threat="Linf:0.3"), **about).write(path)
    add(tree, "empir-mnist", Files((path,)))
    found = lines(tree)
    assert found[0] == ["### cifar10, Linf, eps = 8/255"]
    # By AutoAttack alone, Sen2020EMPIR (1.40) would be first; its lowest known accuracy is 0.90.
    assert [row[1] for row in found[4:7]] == ["Sen2020EMPIR\\_w2a2", "Sen2020EMPIR", "Sen2020EMPIR\\_fp"]
    assert found[5][3:7] == ["75.23 %", "1.40 %", "0.90 %", "no"]
    assert found[5][2].endswith("](https://openreview.net/forum?id=HJem3yHKwH)")
    assert found[8] == ["### mnist, Linf, eps = 0.3"]


def test_what_would_end_a_cell_does_not(place: Place, tree: Tree) -> None:
    table = json.loads(place.entry.read_text())
    table.update(architecture="a | b", name="[x](y)", link="https://example.org/a_(b)")
    place.entry.write_text(json.dumps(table))
    row = markdown(tree).splitlines()[-1]
    assert "a \\| b" in row
    assert "[\\[x\\](y)](https://example.org/a_%28b%29)" in row
