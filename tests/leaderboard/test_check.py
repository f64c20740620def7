"""The check: the committed tree passes, and each of these broken copies fails with its reason."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import InputError
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.check import check
from empir_plugin.leaderboard.tree import Place, Tree

ROOT = Path(__file__).parents[2]


def test_the_committed_tree_passes() -> None:
    assert list(map(str, check(Tree(ROOT / "leaderboard")))) == []


def test_a_tree_just_made_passes(place: Place, tree: Tree) -> None:
    assert check(tree) == []


def changed(**change: Any) -> Callable[[Place, Tree], None]:
    """A break: keys of the entry set, or deleted where the value is ``...``."""

    def apply(place: Place, tree: Tree) -> None:
        table = {**json.loads(place.entry.read_text()), **change}
        kept = {key: item for key, item in table.items() if item is not ...}
        place.entry.write_text(json.dumps(kept, indent=2) + "\n")

    return apply


def rewritten(old: str, new: str, which: str = "entry") -> Callable[[Place, Tree], None]:
    """A break: a text replaced in a file."""

    def apply(place: Place, tree: Tree) -> None:
        path = {"entry": place.entry, "evidence": place.evidence}.get(which, tree.runs / which)
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return apply


def moved(where: str) -> Callable[[Place, Tree], None]:
    """A break: the entry and the names of its sources under another path."""

    def apply(place: Place, tree: Tree) -> None:
        for folder, path in ((tree.model_info, place.entry), (tree.evidence, place.evidence)):
            (folder / where).parent.mkdir(parents=True, exist_ok=True)
            path.rename(folder / where)

    return apply


def removed(which: str) -> Callable[[Place, Tree], None]:
    """A break: a file gone."""

    def apply(place: Place, tree: Tree) -> None:
        {"entry": place.entry, "evidence": place.evidence}.get(which, tree.runs / which).unlink()

    return apply


def exchanged(model: str) -> Callable[[Place, Tree], None]:
    """A break: the record is of another model, and the hash of the file is put right."""

    def apply(place: Place, tree: Tree) -> None:
        path = tree.runs / "aa.json"
        before = sha256(path.read_bytes()).hexdigest()
        path.write_text(path.read_text().replace('"name": "empir-cifar"', f'"name": "{model}"'))
        after = sha256(path.read_bytes()).hexdigest()
        place.evidence.write_text(place.evidence.read_text().replace(before, after))

    return apply


def stray(where: str) -> Callable[[Place, Tree], None]:
    """A break: a file that belongs to no board."""

    def apply(place: Place, tree: Tree) -> None:
        path = tree.model_info / where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(place.entry.read_bytes())

    return apply


BROKEN: dict[str, tuple[Callable[[Place, Tree], None], str]] = {
    "malformed": (rewritten('"eps"', "eps"), "is no valid JSON"),
    "cut": (rewritten('"unreliable": false', ""), "is no valid JSON"),
    "key twice": (rewritten('"eps"', '"eps": "0.1", "eps"'), "'eps' occurs twice"),
    "missing key": (changed(clean_acc=...), "clean_acc is missing"),
    "missing flag": (changed(unreliable=...), "unreliable is missing"),
    "wrong type": (changed(number_forward_passes="3"), "number_forward_passes must be a whole number"),
    "float eps": (changed(eps=8 / 255), "eps must be a text"),
    "other eps": (changed(eps="0.1"), "its eps is 0.1, entries on cifar10/Linf have 8/255"),
    "eps as a decimal": (changed(eps="0.031"), "its eps is 0.031"),
    "no decimals": (changed(clean_acc="75"), "clean_acc must be a text in percent with two decimals"),
    "external above": (changed(external="1.50"), "external 1.50 must be below autoattack_acc 1.40"),
    "external equal": (changed(external="1.40"), "external 1.40 must be below autoattack_acc 1.40"),
    "external null": (changed(external=None), "external must be left out"),
    "external hidden": (changed(external=...), 'external is left out, its sources make it "0.90"'),
    "external improved": (changed(external="1.10"), 'external is "1.10", its sources make it "0.90"'),
    "number improved": (changed(autoattack_acc="1.41"), 'autoattack_acc is "1.41", its sources make it "1.40"'),
    "clean improved": (changed(clean_acc="75.24"), 'clean_acc is "75.24", its sources make it "75.23"'),
    "above clean": (changed(clean_acc="1.00"), "autoattack_acc 1.40 is above clean_acc 1.00"),
    "reported": (changed(reported="13.55"), 'reported is "13.55", its sources make it ""'),
    "unreliable flipped": (changed(unreliable=True), "unreliable is true, its sources make it false"),
    "script": (changed(footnote="<script>alert(1)</script>"), 'footnote has markup that is not allowed: "<script>"'),
    "footnote dropped": (changed(footnote=...), "footnote is left out, its sources make it"),
    "authors": (changed(authors="Somebody Else"), 'authors is "Somebody Else", its sources make it'),
    "NaN": (rewritten("1.77", "NaN"), "there is no NaN"),
    "infinite": (rewritten("1.77", "1e999"), "1e999 is no finite number"),
    "overhead altered": (rewritten("1.77", "1.07"), "overhead is"),
    "overhead dropped": (changed(overhead=...), "overhead is left out"),
    "data set": (changed(dataset="mnist"), "its dataset is mnist, its folder is that of cifar10"),
    "other folder": (moved("cifar100/Linf/Sen2020EMPIR.json"), "its folder is that of cifar100"),
    "other norm": (moved("cifar10/L2/Sen2020EMPIR.json"), "its eps is 8/255, entries on cifar10/L2 have 0.5"),
    "no board": (moved("cifar10/L1/Sen2020EMPIR.json"), "no board has a file here"),
    "stem": (moved("cifar10/Linf/empir-cifar.json"), "the stem of an entry must be <Name><Year>"),
    "other stem": (moved("cifar10/Linf/Sen2020EMPIR_fp.json"), "are named Sen2020EMPIR on cifar10"),
    "beside the boards": (stray("Sen2020EMPIR.json"), "no board has a file here"),
    "too deep": (stray("cifar10/Linf/old/Sen2020EMPIR.json"), "no board has a file here"),
    "no sources": (removed("evidence"), "cannot be read as the sources of an entry"),
    "no entry": (removed("entry"), "the entry it names the sources of is missing"),
    "record missing": (removed("aa.json"), "aa.json is missing from"),
    "record altered": (rewritten('"seed": 0', '"seed": 1', "aa.json"), "aa.json was altered since the entry was made"),
    "audit missing": (removed("audit.json"), "audit.json is missing from"),
    "overhead file altered": (rewritten("1.77", "1.78", "overhead.json"), "overhead.json was altered"),
    "other model": (exchanged("cifarconv-fp"), "the record is of 'cifarconv-fp', the entry of 'empir-cifar'"),
    "sources elsewhere": (rewritten('"aa.json"', '"../aa.json"', "evidence"), "a source is a path below"),
    "sources absolute": (rewritten('"aa.json"', '"/aa.json"', "evidence"), "a source is a path below"),
    "sources of nothing": (rewritten('"records"', '"recods"', "evidence"), "does not name the sources of an entry"),
    "hash": (rewritten('"sha256": "', '"sha256": "x', "evidence"), "must be 64 hexadecimal digits"),
    "unknown model": (rewritten('"empir-cifar"', '"empir"', "evidence"), "no paper is known for 'empir'"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_broken_copy_fails_with_its_reason(
    damage: Callable[[Place, Tree], None], reason: str, place: Place, tree: Tree
) -> None:
    damage(place, tree)
    told = [str(problem) for problem in check(tree)]
    assert any(reason in sentence for sentence in told), told
    assert all("\n" not in sentence for sentence in told)


def test_a_record_cannot_be_left_out_of_the_sources(place: Place, tree: Tree) -> None:
    table = json.loads(place.evidence.read_text())
    del table["records"][1]
    place.evidence.write_text(json.dumps(table))
    told = [problem.reason for problem in check(tree)]
    assert told[0] == "adaptive.json is a record of empir-cifar on cifar10/Linf, too: add the entry anew, with it"
    assert told[1] == 'external is "0.90", its sources make it left out'


def test_flags_cannot_be_talked_away(tree: Tree, tmp_path: Path, made: Any) -> None:
    made.record(made.autoattack(flags=("a flag",))).write(tmp_path / "aa.json")
    place = add(tree, "empir-cifar", Files((tmp_path / "aa.json",)))
    assert check(tree) == []
    changed(unreliable=False)(place, tree)
    assert [problem.reason for problem in check(tree)] == ["unreliable is false, its sources make it true"]


def test_unknown_keys_are_nobodys_business(place: Place, tree: Tree) -> None:
    changed(mine={"a": 1})(place, tree)
    assert check(tree) == []


def test_what_a_killed_add_left_is_no_stray_file(place: Place, tree: Tree) -> None:
    place.entry.with_name(f".{place.entry.name}.7.partial").write_text("{")
    assert check(tree) == []
    place.entry.with_name("README").write_text("")
    assert [problem.path.name for problem in check(tree)] == ["README"]


def test_no_tree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no leaderboard at"):
        check(Tree(tmp_path / "none"))
    assert check(Tree(tmp_path)) == []
