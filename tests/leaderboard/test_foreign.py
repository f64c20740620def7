"""Files of others: everything RobustBench's own files contain is read, noted, and written back as it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import InputError
from empir_plugin.leaderboard.check import check, notes
from empir_plugin.leaderboard.foreign import BY_ATTACKS, BY_CORRUPTIONS, ForeignEntry
from empir_plugin.leaderboard.page.render import render
from empir_plugin.leaderboard.tree import Tree, markdown_tables, ranking

USUAL: dict[str, Any] = {
    "link": "https://arxiv.org/abs/2001.00001",
    "name": "A Title",
    "authors": "One, Two",
    "additional_data": True,
    "number_forward_passes": 1,
    "dataset": "cifar10",
    "venue": "ICML 2020",
    "architecture": "ResNet-18",
    "eps": "8/255",
    "clean_acc": "87.03",
    "reported": "53.29",
    "autoattack_acc": "49.25",
    "unreliable": False,
}
# What benchmark(to_disk=True) of RobustBench 1.1.1 writes.
TO_DISK: dict[str, Any] = {
    "link": None, "name": None, "authors": None, "additional_data": None, "number_forward_passes": None,
    "dataset": "cifar10", "venue": None, "architecture": None, "eps": 8 / 255, "clean_acc": "93.8", "reported": None,
    "corruptions_acc": None, "corruptions_acc_3d": None, "corruptions_mce": None, "corruptions_mce_3d": None,
    "autoattack_acc": "50.0", "footnote": None,
}  # fmt: skip


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in USUAL.items() if key not in keys}


def corruptions(**changes: Any) -> dict[str, Any]:
    return {**without("autoattack_acc", "unreliable"), "eps": None, "corruptions_acc": "89.60", **changes}


ODD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "usual": (USUAL, []),
    "no flag": (without("unreliable"), ["unreliable is missing"]),
    "empty footnote": ({**USUAL, "footnote": ""}, ["footnote must be left out"]),
    "null footnote": ({**USUAL, "footnote": None}, ["footnote is null"]),
    "no decimals": ({**USUAL, "reported": "58"}, ["reported must be a text in percent with two decimals"]),
    "one decimal": ({**USUAL, "autoattack_acc": "0.0"}, ["autoattack_acc must be"]),
    "break in the venue": ({**USUAL, "venue": "GitHub,<br>Oct 2019"}, ["venue must be a text"]),
    "bare ampersand": ({**USUAL, "authors": "A & B"}, ["authors must be"]),
    "spaces": ({**USUAL, "name": " A\nTitle"}, ["name has spaces or line breaks"]),
    "external equal": ({**USUAL, "external": "49.25"}, ["external 49.25 must be below autoattack_acc 49.25"]),
    "above clean": ({**USUAL, "autoattack_acc": "88.00"}, ["autoattack_acc 88.00 is above clean_acc 87.03"]),
    "script": ({**USUAL, "footnote": "<script>"}, ["footnote has markup", '"<script>"']),
    "numbers": ({**USUAL, "clean_acc": 87.03}, ["clean_acc must be"]),
    "unknown key": ({**USUAL, "seed": 3}, ["seed is not a key of RobustBench"]),
    "corruptions": (corruptions(corruptions_mce="60.1", corruptions_acc_3d="5.1", corruptions_mce_3d="100.0"), []),
    "corruptions with eps": (corruptions(eps="0.5"), ["eps must be", "null on a board of corruptions"]),
    "both boards": (corruptions(autoattack_acc="1.00"), ["autoattack_acc belongs on another board"]),
    "to_disk": (TO_DISK, ["link, name, authors", "footnote are null", "unreliable is missing", "eps must be"]),
}


@pytest.mark.parametrize(("table", "expected"), ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "layout", [{"indent": 2}, {"indent": 4, "ensure_ascii": False}, {}], ids=["2", "4", "one line"]
)
def test_every_oddity_is_read_noted_and_written_back(
    table: dict[str, Any], expected: list[str], layout: dict[str, Any], tmp_path: Path
) -> None:
    path, copy = tmp_path / "Any2020Title.json", tmp_path / "copy" / "Any2020Title.json"
    path.write_bytes(json.dumps(table, **layout).encode())
    ranked_by = BY_CORRUPTIONS if table.get("corruptions_acc") else BY_ATTACKS
    entry = ForeignEntry.read(path, ranked_by)
    assert entry.values == table
    assert list(entry.values) == list(table)
    joined = "; ".join(entry.notes)
    assert all(text in joined for text in expected), joined
    assert bool(entry.notes) == bool(expected), joined
    entry.write(copy)
    assert copy.read_bytes() == path.read_bytes()


def test_a_folder_with_the_name_of_a_file_is_left_out_by_name(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    (tree.model_info / "cifar10" / "Linf" / "Bad2020File.json").mkdir(parents=True)
    (problem,) = ranking(tree)[1]
    assert "cannot be read" in problem.reason
    assert str(problem).count("Bad2020File.json") == 1


def test_what_is_shown_is_plain_and_has_two_decimals() -> None:
    changes = {"venue": "GitHub,<br>Oct  2019", "name": "R&amp;D <i>x</i>", "reported": "58", "autoattack_acc": "0.0"}
    entry = ForeignEntry({**USUAL, **changes}, "Engstrom2019Robustness")
    assert (entry.venue, entry.name) == ("GitHub, Oct 2019", "R&amp;D &lt;i&gt;x&lt;/i&gt;")
    assert (entry.clean_acc, entry.board_acc, entry.lowest_acc) == ("87.03", "0.00", "0.00")
    bare = ForeignEntry(TO_DISK, "Me2026Mine")
    assert (bare.name, bare.link, bare.venue, bare.unreliable) == ("Me2026Mine", "", "", None)
    assert ForeignEntry({**USUAL, "link": "javascript:alert(1)"}, "x").link == ""


def test_ranked_by_external_if_it_is_a_number() -> None:
    assert ForeignEntry({**USUAL, "external": "40"}, "x").lowest_acc == "40.00"
    assert ForeignEntry({**USUAL, "external": None}, "x").lowest_acc == "49.25"


UNREADABLE = {
    "cut": (b'{"autoattack_acc": "1.00"', "not valid JSON"),
    "list": (b"[]", "an entry is a JSON object, got a list"),
    "no accuracy": (b'{"clean_acc": "1.00"}', "external or autoattack_acc must be a number in percent"),
    "not a number": (b'{"autoattack_acc": "nan"}', 'got autoattack_acc "nan"'),
    "a share": (b'{"autoattack_acc": 101}', "got autoattack_acc 101"),
    "bytes": (b"\xff\xfe", "not valid JSON"),
    "deep": (b"[" * 100_000, "not valid JSON"),
    "huge": (b'{"autoattack_acc": 1' + b"0" * 400 + b"}", "got autoattack_acc 1"),
    "infinite": (b'{"autoattack_acc": 1e999}', "got autoattack_acc Infinity"),
    "latin-1": (b'{"name": "\xe9", "autoattack_acc": "1.00"}', "not valid JSON"),
    "empty": (b"", "not valid JSON"),
}


@pytest.mark.parametrize(("content", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_a_file_that_cannot_be_ranked_is_left_out_by_name_and_blocks_nothing(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    tree = Tree(tmp_path)
    folder = tree.model_info / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    (folder / "Bad2020File.json").write_bytes(content)
    (folder / "Good2020File.json").write_text(json.dumps(USUAL))
    with pytest.raises(InputError, match=r"Bad2020File\.json") as refused:
        ForeignEntry.read(folder / "Bad2020File.json")
    assert reason in str(refused.value)
    boards, left_out = ranking(tree)
    assert [place.stem for rows in boards.values() for place, _ in rows] == ["Good2020File"]
    assert [problem.path.name for problem in left_out] == ["Bad2020File.json"]
    assert reason in left_out[0].reason
    assert "Bad2020File" not in left_out[0].reason
    text = markdown_tables(tree)
    assert "| 1 | Good2020File | [A Title](https://arxiv.org/abs/2001.00001) | 87.03 % | 49.25 % |" in text
    assert "Bad2020File.json" in text.partition("### Files left out")[2]
    assert check(tree) == []
    assert [note.reason.partition(":")[0] for note in notes(tree)] == ["left out"]


def test_repeated_keys_and_a_byte_order_mark_are_read(tmp_path: Path) -> None:
    path = tmp_path / "Any2020Title.json"
    text = json.dumps(USUAL).replace('"clean_acc"', '"clean_acc": "1.00", "clean_acc"')
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    entry = ForeignEntry.read(path)
    assert entry.clean_acc == "87.03"
    assert entry.notes == ("clean_acc occurs more than once, and the last one counts",)
    entry.write(tmp_path / "copy.json")
    assert (tmp_path / "copy.json").read_bytes() == path.read_bytes()


def test_nothing_in_a_file_can_end_the_table_or_the_page(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    folder = tree.model_info / "cifar10" / "Linf"
    folder.mkdir(parents=True)
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    (folder / "<b>|2020File.json").write_text(json.dumps({**USUAL, "name": "half \ud800 a | b", "more": deep}))
    (folder / "Folder2020File.json").mkdir()
    (folder / "Gone2020File.json").symlink_to(tmp_path / "nowhere")
    text = markdown_tables(tree)
    assert "| 1 | &lt;b&gt;\\|2020File | [half ? a \\| b](https://arxiv.org/abs/2001.00001) |" in text
    left_out = text.partition("### Files left out")[2]
    assert "Folder2020File.json" in left_out
    assert "Gone2020File.json" in left_out
    assert "half ? a" in render(tree)
    assert all(str(note).encode() for note in notes(tree))


def test_notes_compare_with_the_folder_and_the_convention_for_names(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for where, table in (
        ("cifar100/Linf/Hendrycks2019Using", USUAL),
        ("cifar10/Linf/Atzmon2019Controlling", {**USUAL, "eps": "0.031"}),
        ("cifar10/Linf/Standard_R50", USUAL),
        ("cifar10/L3/Lost2020File", USUAL),
    ):
        path = tree.model_info / f"{where}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(table))
    (tree.model_info / "cifar10" / "corruptions").mkdir()
    (tree.model_info / "cifar10" / "corruptions" / "unaggregated_results.csv").write_text(",fog\n")
    found = {note.path.stem: note.reason for note in notes(tree)}
    assert found.keys() == {"Hendrycks2019Using", "Atzmon2019Controlling", "Standard_R50", "Lost2020File"}
    assert found["Hendrycks2019Using"] == "its dataset is cifar10, its folder is that of cifar100"
    assert found["Atzmon2019Controlling"] == "its eps is 0.031, entries on cifar10/Linf have 8/255"
    assert "got 'Standard_R50'" in found["Standard_R50"]
    assert "no board has a file here" in found["Lost2020File"]
    assert check(tree) == []


def test_an_entry_in_the_folder_of_another_kind_of_board_is_left_out(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    for board, table in (("corruptions", USUAL), ("Linf", corruptions())):
        path = tree.model_info / "cifar10" / board / "Any2020Title.json"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(table))
    boards, left_out = ranking(tree)
    assert boards == {}
    assert [problem.reason.partition(" must")[0].split(": ")[1] for problem in left_out] == [
        "external or autoattack_acc",
        "corruptions_acc",
    ]


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "Any2020Title.json"
    path.write_text(json.dumps(USUAL))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be written to .*file.*choose another"):
        ForeignEntry.read(path).write(tmp_path / "file" / "x.json")


def test_all_of_robustbench_s_own_files(tmp_path: Path) -> None:
    """Needs a checkout: ROBUSTBENCH_MODEL_INFO names its folder ``model_info``."""
    if "ROBUSTBENCH_MODEL_INFO" not in os.environ:
        pytest.skip("no checkout of RobustBench: set ROBUSTBENCH_MODEL_INFO to its model_info")
    root = Path(os.environ["ROBUSTBENCH_MODEL_INFO"])
    paths = sorted(root.rglob("*.json"))
    assert len([path for path in paths if path.parent.name != "corruptions"]) >= 188
    for path in paths:
        entry = ForeignEntry.read(path, BY_CORRUPTIONS if path.parent.name == "corruptions" else BY_ATTACKS)
        entry.write(tmp_path / path.name)
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    tree = Tree(root.parent)
    boards, left_out = ranking(tree)
    assert sum(map(len, boards.values())) == len(paths)
    assert left_out == []
    assert check(tree) == []
    odd = {note.path for note in notes(tree)}
    assert odd < set(paths), "some are unusual, and only in what they say"
