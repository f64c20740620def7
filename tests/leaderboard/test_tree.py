"""Boards at RobustBench's radii, and Markdown tables ranked as RobustBench ranks, with every cell escaped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import InputError
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.tree import BOARDS, Place, Tree, board_of, markdown_tables
from empir_plugin.zoo.card import cards


def test_the_radii_are_those_of_robustbench() -> None:
    published = {name: board.eps_text for name, board in BOARDS.items() if board.in_robustbench}
    assert published == {
        "cifar10/Linf": "8/255",
        "cifar10/L2": "0.5",
        "cifar10/corruptions": None,
        "cifar100/Linf": "8/255",
        "cifar100/corruptions": None,
        "imagenet/Linf": "4/255",
        "imagenet/corruptions": None,
    }
    assert [name for name, board in BOARDS.items() if not board.in_robustbench] == ["mnist/Linf"]


def test_the_models_are_evaluated_at_the_radius_of_their_board() -> None:
    for card in cards().values():
        assert str(board_of(card.dataset, "Linf").threat) == card.threat


def test_an_unknown_board_is_refused() -> None:
    with pytest.raises(InputError, match=r"cifar10/Linf.*'mnist/L2'"):
        board_of("mnist", "L2")


def table_cells(tree: Tree) -> list[list[str]]:
    return [[cell.strip() for cell in line.split(" | ")] for line in markdown_tables(tree).splitlines()]


def test_a_tree_without_entries_has_no_table(tmp_path: Path) -> None:
    assert markdown_tables(Tree(tmp_path)) == ""
    with pytest.raises(InputError, match=r"none.*--tree"):
        markdown_tables(Tree(tmp_path / "none"))


def test_each_board_has_a_table_ranked_by_the_lowest_accuracy(
    place: Place, tree: Tree, tmp_path: Path, make: Any
) -> None:
    for model, robust in (("cifarconv-fp", 0), ("cifarconv-w2a2", 95)):
        path = tmp_path / f"{model}.json"
        make.record(make.autoattack(0, robust), model=model).write(path)
        add(tree, model, Files((path,)))
    path = tmp_path / "mnist.json"
    about = {"model": "empir-mnist", "dataset": "mnist", "clean": 9901}
    make.record(make.autoattack(0, 3, threat="Linf:0.3"), **about).write(path)
    add(tree, "empir-mnist", Files((path,)))
    rows = table_cells(tree)
    assert rows[0] == ["### cifar10, Linf, eps = 8/255"]
    # By AutoAttack alone, Sen2020EMPIR (1.40) would be first; its lowest known accuracy is 0.90.
    assert [row[1] for row in rows[4:7]] == ["Sen2020EMPIR\\_w2a2", "Sen2020EMPIR", "Sen2020EMPIR\\_fp"]
    assert rows[5][3:7] == ["75.23 %", "1.40 %", "0.90 %", "no"]
    assert rows[5][2].endswith("](https://openreview.net/forum?id=HJem3yHKwH)")
    assert rows[8] == ["### mnist, Linf, eps = 0.3"]


def test_cells_are_escaped(place: Place, tree: Tree) -> None:
    table = json.loads(place.entry.read_text())
    table.update(architecture="a | b", name="[x](y)", link="https://example.org/a_(b)")
    place.entry.write_text(json.dumps(table))
    row = markdown_tables(tree).splitlines()[-1]
    assert "a \\| b" in row
    assert "[\\[x\\](y)](https://example.org/a_%28b%29)" in row


def test_entries_of_others_are_ranked_with_ours(place: Place, tree: Tree) -> None:
    for stem, lowest in (("Best2020File", "50.1"), ("Worst2020File", "0")):
        table = {"clean_acc": "60", "autoattack_acc": lowest, "name": "<b>", "venue": "a | b", "unreliable": None}
        (place.entry.parent / f"{stem}.json").write_text(json.dumps(table))
    rows = table_cells(tree)[4:7]
    assert [row[1] for row in rows] == ["Best2020File", "Sen2020EMPIR", "Worst2020File"]
    assert rows[0][2:7] == ["&lt;b&gt;", "60.00 %", "50.10 %", "50.10 %", ""]
    assert "a \\| b" in markdown_tables(tree)


def test_a_board_of_corruptions_has_its_own_columns(tree: Tree, tmp_path: Path, make: Any) -> None:
    make.corruptions().write(tmp_path / "c.json")
    add(tree, "empir-cifar", Files((tmp_path / "c.json",)))
    rows = table_cells(tree)
    assert rows[0] == ["### cifar10, corruptions"]
    assert rows[2][3:5] == ["clean", "corruptions"]
    assert rows[4][3:5] == ["75.23 %", "50.00 %"]
    assert {len(row) for row in rows[2:]} == {7}


def test_a_malformed_entry_of_ours_is_an_error(place: Place, tree: Tree) -> None:
    place.entry.write_text("{}")
    with pytest.raises(InputError, match="clean_acc is missing"):
        markdown_tables(tree)
