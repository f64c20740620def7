"""Entries are composed from files, and a refused one leaves the tree unchanged."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from empir_plugin.errors import EmpirError, EvaluationError, InputError
from empir_plugin.evaluation.record import Record
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.check import check
from empir_plugin.leaderboard.entry import KEYS, Entry
from empir_plugin.leaderboard.evidence import Evidence
from empir_plugin.leaderboard.tree import Place, Tree

PAPER = """
title = "Standing <still>"
link = "https://example.org/paper"
authors = "Ann Other"
venue = "Nowhere 2021"
[[models]]
model = "my-model"
stem = "Other2021Standing"
dataset = "cifar10"
architecture = "ResNet"
claims = [{ threat = "Linf:8/255", accuracy = "50.00", attack = "PGD" }]
"""


def contents(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_entry_of_empir(place: Place, tree: Tree) -> None:
    assert place.entry == tree.root / "model_info" / "cifar10" / "Linf" / "Sen2020EMPIR.json"
    table = json.loads(place.entry.read_text())
    footnote, overhead = table.pop("footnote"), table.pop("overhead")
    assert table == {
        "link": "https://openreview.net/forum?id=HJem3yHKwH",
        "name": "EMPIR: Ensembles of Mixed Precision Deep Networks for Increased Robustness against Adversarial "
        "Attacks",
        "authors": "Sanchari Sen, Balaraman Ravindran, Anand Raghunathan",
        "additional_data": False,
        "number_forward_passes": 3,
        "dataset": "cifar10",
        "venue": "ICLR 2020",
        "architecture": "CIFARconv, max vote of 3 (4-bit weights and 2-bit activations; 2-bit both; full precision)",
        "eps": "8/255",
        "clean_acc": "75.23",
        "reported": "",
        "autoattack_acc": "1.40",
        "external": "0.90",
        "unreliable": False,
    }
    assert overhead["eq6"]["storage"]["ideal"] == 1.1875
    assert "not the authors' weights" in footnote
    assert "The paper attacks at another eps (13.55% under PGD at Linf eps = 0.1)" in footnote
    assert "0.90% robust accuracy is the worst case per image over AutoAttack and 1 other attack" in footnote
    assert place.entry.read_text().endswith("}\n")


def test_all_sources_are_copied_to_the_tree(place: Place, tree: Tree, files: Files) -> None:
    evidence = Evidence.read(place.evidence)
    assert [source.path for source in evidence.records] == ["aa.json", "adaptive.json"]
    assert {path.name for path in tree.runs.glob("*.json")} == {path.name for path in files}
    assert all((tree.runs / path.name).read_bytes() == path.read_bytes() for path in files)
    assert check(tree) == []


def test_records_in_the_tree_stay_where_they_are(tree: Tree, standard: Record) -> None:
    path = tree.runs / "deep" / "aa.json"
    standard.write(path)
    place = add(tree, "empir-cifar", Files((path,)))
    assert [source.path for source in Evidence.read(place.evidence).records] == ["deep/aa.json"]
    assert [copy.name for copy in tree.runs.rglob("aa.json")] == ["aa.json"]
    assert check(tree) == []


def test_the_paper_s_accuracy_is_reported_if_it_is_at_the_same_eps(tree: Tree, tmp_path: Path, make: Any) -> None:
    about = {"model": "empir-mnist", "dataset": "mnist", "clean": 9901}
    record = make.record(make.autoattack(0, 3, threat="Linf:0.3"), **about)
    record.write(tmp_path / "aa.json")
    entry = Entry.read(add(tree, "empir-mnist", Files((tmp_path / "aa.json",))).entry)
    assert (entry.eps, entry.clean_acc, entry.autoattack_acc, entry.reported) == ("0.3", "99.01", "0.03", "17.51")
    assert "another eps" not in (entry.footnote or "")
    assert "external" not in entry.table()
    assert "overhead" not in entry.table()
    assert (tree.model_info / "mnist" / "Linf" / "Sen2020EMPIR.json").exists()


@pytest.mark.parametrize(
    ("flags", "masked", "sentence"),
    [
        (("a flag",), False, "AutoAttack warns that"),
        ((), True, "An audit finds masked gradients (zero gradients)."),
    ],
)
def test_the_footnote_says_why_an_entry_is_unreliable(
    flags: tuple[str, ...], masked: bool, sentence: str, tree: Tree, tmp_path: Path, make: Any
) -> None:
    record = make.record(make.autoattack(flags=flags))
    record.write(tmp_path / "aa.json")
    make.audit(record, masked=masked).write(tmp_path / "audit.json")
    entry = Entry.read(add(tree, "empir-cifar", Files((tmp_path / "aa.json",), tmp_path / "audit.json")).entry)
    assert entry.unreliable
    assert sentence in (entry.footnote or "")


def test_a_model_with_a_paper_of_its_own(tree: Tree, tmp_path: Path, make: Any) -> None:
    (tmp_path / "paper.toml").write_text(PAPER)
    make.record(make.autoattack(), model="my-model", model_={"sha256": "ab" * 32}).write(tmp_path / "aa.json")
    place = add(tree, "my-model", Files((tmp_path / "aa.json",), paper=tmp_path / "paper.toml"))
    entry = Entry.read(place.entry)
    assert (place.stem, entry.name, entry.reported, entry.footnote) == (
        "Other2021Standing", "Standing &lt;still&gt;", "50.00", None,
    )  # fmt: skip
    assert check(tree) == []


def test_adding_an_entry_again_keeps_unknown_keys(place: Place, tree: Tree, files: Files) -> None:
    table = json.loads(place.entry.read_text())
    mine = {"mine": 1, **table, "clean_acc": "10.00", "autoattack_acc": "1.00", "external": "0.00"}
    place.entry.write_text(json.dumps(mine))
    add(tree, "empir-cifar", files)
    assert list(json.loads(place.entry.read_text()).items()) == [("mine", 1), *table.items()]


def test_a_record_of_a_sample_is_kept_in_the_runs_and_makes_no_entry(tree: Tree, tmp_path: Path, make: Any) -> None:
    whole = make.record(make.autoattack())
    attacks = tuple(replace(a, robust=a.robust[:500], accuracy=28.0) for a in whole.attacks)
    small = replace(
        whole, data={**whole.data, "n": 500, "sha256": "5" * 64, "full_official": False},
        clean="1" * 500, clean_accuracy=100.0, attacks=attacks, worst_case=attacks[0].robust, worst_case_accuracy=28.0,
    )  # fmt: skip
    path = tmp_path / "small.json"
    small.write(path)
    with pytest.raises(EvaluationError, match=r"500 images of cifar10 .*10,000.*--data-dir"):
        add(tree, "empir-cifar", Files((path,)))
    assert contents(tree.root) == {"runs/small.json": path.read_bytes()}
    assert check(tree) == []


def spoil(change: str, files: Files, make: Any) -> Files:
    """The files with one that cannot be a source of the entry."""
    folder = files.records[0].parent
    bad = folder / "bad.json"
    if change == "malformed record":
        bad.write_text("{")
        return replace(files, records=(*files.records, bad))
    if change == "other model":
        make.record(make.autoattack(), model="cifarconv-fp").write(bad)
        return replace(files, records=(*files.records, bad))
    if change == "other data":
        mnist = make.record(make.autoattack(threat="Linf:0.3"), model="empir-mnist", dataset="mnist", clean=9901)
        replace(mnist, model={**mnist.model, "name": "empir-cifar"}).write(bad)
        return replace(files, records=(*files.records, bad))
    if change == "missing audit":
        return replace(files, audit=folder / "none.json")
    if change == "no audit":
        return replace(files, audit=files.records[0])
    if change == "same names":
        (folder / "deep").mkdir()
        (folder / "deep" / "aa.json").write_bytes(files.records[1].read_bytes())
        return replace(files, records=(files.records[0], folder / "deep" / "aa.json"))
    if change == "no records":
        return replace(files, records=())
    number = {"NaN": "NaN", "infinite": "1e9999"}[change]
    bad.write_text((folder / "overhead.json").read_text().replace("1.77", number))
    return replace(files, overhead=bad)


REFUSED = {
    "malformed record": "is not a run record",
    "other model": "the record is of 'cifarconv-fp'",
    "other data": "is of another network",
    "missing audit": "cannot be read",
    "no audit": "is not an audit report",
    "same names": "aa.json, aa.json.*rename",
    "no records": "pass --record",
    "NaN": "NaN is not",
    "infinite": "1e9999.* is not",
}


@pytest.mark.parametrize(("change", "sentence"), REFUSED.items(), ids=REFUSED)
def test_a_refusal_leaves_the_tree_as_it_was(
    change: str, sentence: str, place: Place, tree: Tree, files: Files, make: Any
) -> None:
    before = contents(tree.root)
    with pytest.raises(EmpirError, match=sentence) as refused:
        add(tree, "empir-cifar", spoil(change, files, make))
    assert contents(tree.root) == before
    assert "\n" not in str(refused.value)


def test_every_eligible_record_of_the_tree_is_needed(place: Place, tree: Tree, files: Files) -> None:
    before = contents(tree.root)
    with pytest.raises(EvaluationError, match=r"empir-cifar.*adaptive\.json as --record"):
        add(tree, "empir-cifar", replace(files, records=files.records[:1]))
    assert contents(tree.root) == before


def test_another_run_with_the_same_name_is_refused(place: Place, tree: Tree, files: Files, make: Any) -> None:
    make.record(make.autoattack(0, 100)).write(files.records[0])
    before = contents(tree.root)
    with pytest.raises(EvaluationError, match=r"aa\.json.*rename"):
        add(tree, "empir-cifar", files)
    assert contents(tree.root) == before


def test_a_full_disk_leaves_the_tree_unchanged(
    place: Place, tree: Tree, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(tree.root)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"No space left on device.*another tree"):
        add(tree, "empir-cifar", files)
    assert contents(tree.root) == before


def test_an_unwritable_tree_is_refused(tmp_path: Path, files: Files) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file cannot be written.*another tree"):
        add(Tree(tmp_path / "file"), "empir-cifar", files)
    assert (tmp_path / "file").read_text() == "in the way"


def test_an_entry_has_every_key(place: Place) -> None:
    assert list(json.loads(place.entry.read_text())) == [key for key in KEYS if key != "corruptions_acc"]


def test_an_entry_of_corruptions_has_robustbench_s_keys(tree: Tree, tmp_path: Path, make: Any) -> None:
    make.corruptions().write(tmp_path / "c.json")
    place = add(tree, "empir-cifar", Files((tmp_path / "c.json",)))
    assert str(place) == "cifar10/corruptions/Sen2020EMPIR"
    table = json.loads(place.entry.read_text())
    assert list(table) == [
        "link", "name", "authors", "additional_data", "number_forward_passes", "dataset", "venue", "architecture",
        "eps", "clean_acc", "reported", "corruptions_acc", "footnote",
    ][: len(table)]  # fmt: skip
    assert (table["eps"], table["clean_acc"], table["reported"]) == (None, "75.23", "")
    assert table["corruptions_acc"] == "50.00", "the mean, not the worst case of 48.00"
    assert check(tree) == []
    place.entry.write_text(place.entry.read_text().replace('"50.00"', '"50.01"'))
    assert [problem.reason for problem in check(tree)] == ['corruptions_acc is "50.01", its sources make it "50.00"']


def test_the_lower_of_two_records_of_corruptions_counts(tree: Tree, tmp_path: Path, make: Any) -> None:
    for name, mean in (("a", 5000), ("b", 4900)):
        make.corruptions(mean).write(tmp_path / f"{name}.json")
    add(tree, "empir-cifar", Files((tmp_path / "a.json",)))
    place = add(tree, "empir-cifar", Files((tmp_path / "a.json", tmp_path / "b.json")))
    assert Entry.read(place.entry).corruptions_acc == "49.00"
    with pytest.raises(EvaluationError, match=r"has more records .* cifar10/corruptions.*b\.json"):
        add(tree, "empir-cifar", Files((tmp_path / "a.json",)))


def test_boards_of_one_model_are_independent(place: Place, tree: Tree, tmp_path: Path, make: Any) -> None:
    make.corruptions().write(tmp_path / "c.json")
    add(tree, "empir-cifar", Files((tmp_path / "c.json",)))
    assert check(tree) == []
    assert {str(each) for each in tree.places()} == {"cifar10/Linf/Sen2020EMPIR", "cifar10/corruptions/Sen2020EMPIR"}


def test_a_file_of_others_under_the_same_name_is_replaced_and_its_own_keys_stay(
    tree: Tree, files: Files, place: Place
) -> None:
    for path in (place.entry, place.evidence):
        path.unlink()
    place.entry.write_text('{"eps": 0.0313, "autoattack_acc": "1.4", "corruptions_mce": null, "mine": 3}')
    add(tree, "empir-cifar", files)
    table = json.loads(place.entry.read_text())
    assert (table["eps"], table["autoattack_acc"], table["mine"]) == ("8/255", "1.40", 3)
    assert "corruptions_mce" not in table
    assert check(tree) == []
