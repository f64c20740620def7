"""A kill at any system call of ``add`` and ``submit``: what is visible is whole, and a rerun leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from empir_plugin.data.image_set import OFFICIAL_FINGERPRINTS
from empir_plugin.errors import EmpirError, InputError
from empir_plugin.evaluation.record import AttackRecord, Record, percent
from empir_plugin.leaderboard.add import Files, add
from empir_plugin.leaderboard.check import check
from empir_plugin.leaderboard.eligibility import shipped_fingerprint
from empir_plugin.leaderboard.publication import JOURNAL, LOCK, publishing, settle, sweep
from empir_plugin.leaderboard.submit import find, submit
from empir_plugin.leaderboard.tree import Tree

needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
MODEL = "mnistconv-w2a4"
CALLS = ("replace", "fsync", "unlink")


def write_record(path: Path, name: str, robust: int, kind: str = "gradient") -> Path:
    verdicts = "1" * robust + "0" * (10_000 - robust)
    clean = "1" * 9000 + "0" * 1000
    Record(
        model={"name": MODEL, "sha256": shipped_fingerprint(MODEL), "identity": 2, "weights_loaded": True},
        data={
            "name": "mnist", "split": "test", "source": "official", "n": 10_000, "full_official": True,
            "sha256": OFFICIAL_FINGERPRINTS["mnist", "test"],
        },
        threat="Linf:0.3", clean=clean, clean_accuracy=90.0,
        attacks=(AttackRecord(name, "", verdicts, percent(verdicts), 1.0, threat="Linf:0.3", kind=kind),),
        worst_case=verdicts, worst_case_accuracy=percent(verdicts),
        run={
            "seed": 0, "batch_size": 250, "shard_size": 500, "cascade": False, "device": "cpu", "threads": [1],
            "processes": 1, "finished": "2026-11-21T08:43:43+00:00", "versions": {"python": "3", "torch": "2"},
            "code_sha256": "c" * 64,
        },
        protocol={"name": "standard", "description": "", "headline": "WORST_CASE"},
    ).write(path)  # fmt: skip
    return path


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("records")
    first = write_record(folder / "aa.json", "AutoAttack", 140, "autoattack-standard")
    return first, write_record(folder / "pgd.json", "PGD", 100)


def contents(root: Path) -> dict[str, bytes]:
    files = (path for path in root.rglob("*") if path.is_file() and path.name != LOCK)
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def publish(tree: Tree, *records: Path) -> object:
    return add(tree, MODEL, Files(records))


def moments(
    work: Callable[[str, int, bool], bool | None], calls: tuple[str, ...], sides: tuple[bool, ...]
) -> list[bool]:
    """Run the work with a kill before or after each call, until it makes no more of them."""
    good: list[bool] = []
    for call in calls:
        for after in sides:
            moment = 1
            while (survived := work(call, moment, after)) is not None:
                good.append(survived)
                moment += 1
    return good


@needs_fork
@pytest.mark.parametrize(
    ("calls", "sides"),
    [(("replace",), (True,)), pytest.param(CALLS, (False, True), marks=pytest.mark.slow)],
    ids=["after each replace", "everywhere"],
)
def test_a_killed_add_is_visible_as_a_whole_or_not_at_all(
    calls: tuple[str, ...],
    sides: tuple[bool, ...],
    records: tuple[Path, Path],
    tmp_path: Path,
    tally: Any,
    toys: ModuleType,
) -> None:
    def survives(call: str, moment: int, after: bool) -> bool | None:
        tree = Tree(tmp_path / f"{call}-{moment}-{after}")
        publish(tree, records[0])
        old = contents(tree.root)
        if not toys.dies(call, moment, after, lambda: publish(tree, *records)):
            return None
        assert check(tree) == []
        assert contents(tree.root) in (old, wanted), "the old entry or the new one, and nothing left behind"
        publish(tree, *records)
        assert check(tree) == []
        return contents(tree.root) == wanted

    done = Tree(tmp_path / "done")
    publish(done, *records)
    wanted = contents(done.root)
    good = moments(survives, calls, sides)
    assert len(good) >= 6, "there are at least six moments"
    tally(f"leaderboard add: killed at {' or '.join(calls)}", len(good), sum(good))


@needs_fork
def test_a_killed_submit_is_right_after_a_rerun(
    records: tuple[Path, Path], tmp_path: Path, tally: Any, toys: ModuleType
) -> None:
    tree = Tree(tmp_path / "tree")
    publish(tree, *records)
    found = find(tree, MODEL)
    submit(found, tmp_path / "done")
    wanted = contents(tmp_path / "done")

    def survives(call: str, moment: int, after: bool) -> bool | None:
        out = tmp_path / f"{call}-{moment}-{after}"
        if not toys.dies(call, moment, after, lambda: submit(found, out)):
            return None
        submit(found, out)
        return contents(out) == wanted

    good = moments(survives, ("replace",), (True,))
    tally("leaderboard submit: killed", len(good), sum(good))


def test_one_process_publishes_at_a_time(records: tuple[Path, Path], tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    with publishing(tree.root), pytest.raises(EmpirError, match="another `empir leaderboard add` holds the lock"):
        publish(tree, *records)
    publish(tree, *records)
    assert check(tree) == []


def test_a_damaged_journal_is_named_and_leads_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    for text in ("{", '["../outside.json"]', '["/etc/passwd"]', "[3]"):
        (tmp_path / "tree" / JOURNAL).write_text(text)
        with pytest.raises(InputError, match=r"\.publication is not a journal"):
            settle(tmp_path / "tree")


def test_files_of_a_running_process_are_not_swept(tmp_path: Path) -> None:
    mine, gone = tmp_path / f".a.json.{os.getppid()}.partial", tmp_path / ".a.json.999999999.partial"
    for path in (mine, gone):
        path.write_text("")
    sweep(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [mine.name]


@needs_fork
@pytest.mark.parametrize(
    "sizes",
    [(0, 300, 3_000), pytest.param(tuple(range(0, 60_000, 1_500)), marks=pytest.mark.slow)],
    ids=["few", "many"],
)
def test_a_full_disk_leaves_the_tree_as_it_was(
    sizes: tuple[int, ...], records: tuple[Path, Path], tmp_path: Path, tally: Any, toys: ModuleType
) -> None:
    tree = Tree(tmp_path / "tree")
    publish(tree, records[0])
    old, good, reasons = contents(tree.root), 0, []
    for size in sizes:
        reason = toys.with_full_disk(size, lambda: publish(tree, *records))
        reasons.append(reason)
        settled = not reason or contents(tree.root) == old
        good += check(tree) == [] and settled and "\n" not in reason
        if not reason:
            break
    assert any("File too large" in reason for reason in reasons)
    publish(tree, *records)
    assert check(tree) == []
    tally("leaderboard add: full disk", len(reasons), good)


@needs_fork
def test_a_full_disk_ends_a_submit_in_one_sentence(
    records: tuple[Path, Path], tmp_path: Path, tally: Any, toys: ModuleType
) -> None:
    tree = Tree(tmp_path / "tree")
    publish(tree, *records)
    found, reasons = find(tree, MODEL), []
    for size in (0, 600, 1_000):
        reasons.append(toys.with_full_disk(size, lambda: submit(found, tmp_path / "out")))
        assert list(tmp_path.rglob("*.partial")) == []
    assert all("the submission cannot be written" in reason for reason in reasons), reasons
    tally("leaderboard submit: full disk", len(reasons), sum("\n" not in reason for reason in reasons))
