"""The check: the committed tree passes, and each damaged copy fails with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import InputError
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.check import check, notes
from empir_plugin.leaderboard.tree import Place, Tree

ROOT = Path(__file__).parents[2]


def test_the_committed_tree_passes() -> None:
    assert list(map(str, check(Tree(ROOT / "leaderboard")))) == []


def test_a_new_tree_passes(place: Place, tree: Tree) -> None:
    assert check(tree) == []


def set_keys(**change: Any) -> Callable[[Place, Tree], None]:
    """Damage: keys of the entry are set, or deleted if the value is ``...``."""

    def apply(place: Place, tree: Tree) -> None:
        table = {**json.loads(place.entry.read_text()), **change}
        kept = {key: item for key, item in table.items() if item is not ...}
        place.entry.write_text(json.dumps(kept, indent=2) + "\n")

    return apply


def replace_text(old: str, new: str, which: str = "entry") -> Callable[[Place, Tree], None]:
    """Damage: a text in a file is replaced."""

    def apply(place: Place, tree: Tree) -> None:
        path = {"entry": place.entry, "evidence": place.evidence}.get(which, tree.runs / which)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return apply


def move_entry(where: str) -> Callable[[Place, Tree], None]:
    """Damage: the entry and its evidence are moved."""

    def apply(place: Place, tree: Tree) -> None:
        for folder, path in ((tree.model_info, place.entry), (tree.evidence, place.evidence)):
            (folder / where).parent.mkdir(parents=True, exist_ok=True)
            path.rename(folder / where)

    return apply


def remove(which: str) -> Callable[[Place, Tree], None]:
    """Damage: a file is removed."""

    def apply(place: Place, tree: Tree) -> None:
        {"entry": place.entry, "evidence": place.evidence}.get(which, tree.runs / which).unlink()

    return apply


def rename_model(model: str) -> Callable[[Place, Tree], None]:
    """Damage: the record names another model, and the hash of the file is updated."""

    def apply(place: Place, tree: Tree) -> None:
        path = tree.runs / "aa.json"
        before = sha256(path.read_bytes()).hexdigest()
        path.write_text(path.read_text().replace('"name": "empir-cifar"', f'"name": "{model}"'))
        after = sha256(path.read_bytes()).hexdigest()
        place.evidence.write_text(place.evidence.read_text().replace(before, after))

    return apply


def add_stray(where: str) -> Callable[[Place, Tree], None]:
    """Damage: a file that belongs to no board."""

    def apply(place: Place, tree: Tree) -> None:
        path = tree.model_info / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(place.entry.read_bytes())

    return apply


DAMAGED: dict[str, tuple[Callable[[Place, Tree], None], str]] = {
    "malformed": (replace_text('"eps"', "eps"), "is not valid JSON"),
    "cut": (replace_text('"unreliable": false', ""), "is not valid JSON"),
    "key twice": (replace_text('"eps"', '"eps": "0.1", "eps"'), "'eps' occurs twice"),
    "missing key": (set_keys(clean_acc=...), "clean_acc is missing"),
    "missing flag": (set_keys(unreliable=...), "unreliable is missing"),
    "wrong type": (set_keys(number_forward_passes="3"), "number_forward_passes must be a whole number"),
    "float eps": (set_keys(eps=8 / 255), "eps must be a text"),
    "other eps": (set_keys(eps="0.1"), "its eps is 0.1, entries on cifar10/Linf have 8/255"),
    "eps as a decimal": (set_keys(eps="0.031"), "its eps is 0.031"),
    "no decimals": (set_keys(clean_acc="75"), "clean_acc must be a text in percent with two decimals"),
    "external above": (set_keys(external="1.50"), "external 1.50 must be below autoattack_acc 1.40"),
    "external equal": (set_keys(external="1.40"), "external 1.40 must be below autoattack_acc 1.40"),
    "external null": (set_keys(external=None), "external must be left out"),
    "external hidden": (set_keys(external=...), 'external is left out, its sources make it "0.90"'),
    "external improved": (set_keys(external="1.10"), 'external is "1.10", its sources make it "0.90"'),
    "number improved": (set_keys(autoattack_acc="1.41"), 'autoattack_acc is "1.41", its sources make it "1.40"'),
    "clean improved": (set_keys(clean_acc="75.24"), 'clean_acc is "75.24", its sources make it "75.23"'),
    "above clean": (set_keys(clean_acc="1.00"), "autoattack_acc 1.40 is above clean_acc 1.00"),
    "reported": (set_keys(reported="13.55"), 'reported is "13.55", its sources make it ""'),
    "unreliable flipped": (set_keys(unreliable=True), "unreliable is true, its sources make it false"),
    "script": (set_keys(footnote="<script>alert(1)</script>"), 'footnote has markup that is not allowed: "<script>"'),
    "footnote dropped": (set_keys(footnote=...), "footnote is left out, its sources make it"),
    "authors": (set_keys(authors="Somebody Else"), 'authors is "Somebody Else", its sources make it'),
    "NaN": (replace_text("1.77", "NaN"), "NaN is not"),
    "infinite": (replace_text("1.77", "1e9999"), "is not a finite number"),
    "overhead altered": (replace_text("1.77", "1.07"), "overhead is"),
    "overhead dropped": (set_keys(overhead=...), "overhead is left out"),
    "data set": (set_keys(dataset="mnist"), "its dataset is mnist, its folder is that of cifar10"),
    "other folder": (move_entry("cifar100/Linf/Sen2020EMPIR.json"), "its folder is that of cifar100"),
    "other norm": (move_entry("cifar10/L2/Sen2020EMPIR.json"), "its eps is 8/255, entries on cifar10/L2 have 0.5"),
    "no board": (move_entry("cifar10/L1/Sen2020EMPIR.json"), "no board has a file here"),
    "stem": (move_entry("cifar10/Linf/empir-cifar.json"), "the stem of an entry must be <Name><Year>"),
    "other stem": (move_entry("cifar10/Linf/Sen2020EMPIR_fp.json"), "are named Sen2020EMPIR on cifar10"),
    "beside the boards": (add_stray("Sen2020EMPIR.json"), "no board has a file here"),
    "too deep": (add_stray("cifar10/Linf/old/Sen2020EMPIR.json"), "no board has a file here"),
    "no sources": (remove("evidence"), "cannot be read as the sources of an entry"),
    "no entry": (remove("entry"), "there is no entry that this is the evidence of"),
    "record missing": (remove("aa.json"), "aa.json is missing from"),
    "record altered": (replace_text('"seed": 0', '"seed": 1', "aa.json"), "aa.json was altered since"),
    "audit missing": (remove("audit.json"), "audit.json is missing from"),
    "overhead file altered": (replace_text("1.77", "1.78", "overhead.json"), "overhead.json was altered"),
    "other model": (rename_model("cifarconv-fp"), "the record is of 'cifarconv-fp', the entry of 'empir-cifar'"),
    "sources elsewhere": (replace_text('"aa.json"', '"../aa.json"', "evidence"), "a source is a path below"),
    "sources absolute": (replace_text('"aa.json"', '"/aa.json"', "evidence"), "a source is a path below"),
    "sources of nothing": (replace_text('"records"', '"recods"', "evidence"), "does not name the sources of an entry"),
    "hash": (replace_text('"sha256": "', '"sha256": "x', "evidence"), "must be 64 hexadecimal digits"),
    "unknown model": (replace_text('"empir-cifar"', '"empir"', "evidence"), "no paper is known for 'empir'"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_copy_fails_with_its_reason(
    damage: Callable[[Place, Tree], None], reason: str, place: Place, tree: Tree
) -> None:
    damage(place, tree)
    problems = [str(problem) for problem in check(tree)]
    assert any(reason in problem for problem in problems), problems
    assert all("\n" not in problem for problem in problems)


def test_a_missing_source_is_reported(place: Place, tree: Tree) -> None:
    table = json.loads(place.evidence.read_text())
    del table["records"][1]
    place.evidence.write_text(json.dumps(table))
    reasons = [problem.reason for problem in check(tree)]
    assert reasons[0] == "adaptive.json is a record of empir-cifar on cifar10/Linf, too: add the entry anew, with it"
    assert reasons[1] == 'external is "0.90", its sources make it left out'


def test_a_removed_flag_is_reported(tree: Tree, tmp_path: Path, make: Any) -> None:
    make.record(make.autoattack(flags=("a flag",))).write(tmp_path / "aa.json")
    place = add(tree, "empir-cifar", Files((tmp_path / "aa.json",)))
    assert check(tree) == []
    set_keys(unreliable=False)(place, tree)
    assert [problem.reason for problem in check(tree)] == ["unreliable is false, its sources make it true"]


def test_unknown_keys_are_ignored(place: Place, tree: Tree) -> None:
    set_keys(mine={"a": 1})(place, tree)
    assert check(tree) == []


def test_partial_files_of_a_killed_add_are_ignored(place: Place, tree: Tree) -> None:
    place.entry.with_name(f".{place.entry.name}.7.partial").write_text("{")
    assert check(tree) == []
    place.entry.with_name("README").write_text("")
    assert check(tree) == []
    assert [problem.path.name for problem in notes(tree)] == ["README"]


def test_a_missing_tree_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none.*--tree"):
        check(Tree(tmp_path / "none"))
    assert check(Tree(tmp_path)) == []


def test_an_entry_of_others_is_a_note_and_one_of_ours_an_error(place: Place, tree: Tree) -> None:
    other = place.entry.with_name("Other2020Entry.json")
    other.write_bytes(place.entry.read_bytes())
    set_keys(unreliable=...)(tree.place(place.board, other.stem), tree)
    assert check(tree) == []
    assert str(notes(tree)[0]) == f"{other}: unreliable is missing"
    # Its evidence file makes it one of ours.
    evidence = place.evidence.with_name(other.name)
    evidence.write_bytes(place.evidence.read_bytes())
    assert notes(tree) == []
    assert [problem.reason for problem in check(tree)] == ["unreliable is missing"]


def test_a_name_of_ours_without_sources_is_no_entry_of_others(place: Place, tree: Tree) -> None:
    place.evidence.unlink()
    set_keys(clean_acc="99.99")(place, tree)
    assert notes(tree) == []
    assert any("cannot be read as the sources of an entry" in problem.reason for problem in check(tree))
