"""Finished shards: found again only by what they belong to, never half written, never by two processes."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from empir_plugin._files.atomic import write_atomically
from empir_plugin._files.lock import locked
from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.cache.store import Fallen, Store, opened
from empir_plugin.evaluation.outcome import Outcome

KEY = {"subject": "a", "attack": "fgsm", "seed": 0, "shard": 3}
OUTCOME = Outcome((3, -1, 0), 0.25, 2, ("a flag",), (("clean", "101"), ("square", "100")))
FALLEN = Fallen(torch.tensor([2]), torch.rand(1, 3, 4, 4))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


def only_file(store: Store, ending: str = ".json") -> Path:
    (found,) = store.folder.glob(f"*{ending}")
    return found


def test_what_is_stored_is_found(store: Store) -> None:
    assert store.load(KEY) is None
    assert store.save(KEY, OUTCOME) == OUTCOME
    assert store.load(KEY) == OUTCOME
    assert only_file(store).name.startswith("00003-")
    assert json.loads(only_file(store).read_text())["key"] == KEY


@pytest.mark.parametrize(
    "change", [{"subject": "b"}, {"seed": 1}, {"shard": 4}, {"attack": "pgd"}, {"new": 1}], ids=str
)
def test_another_key_never_matches(store: Store, change: dict[str, str | int]) -> None:
    store.save(KEY, OUTCOME)
    assert store.load({**KEY, **change}) is None


def test_a_file_under_a_false_name_is_not_believed(store: Store) -> None:
    store.save(KEY, OUTCOME)
    path, other = only_file(store), {**KEY, "subject": "b"}
    store.save(other, Outcome((1,), 0.0, 1))
    (target,) = set(store.folder.glob("*.json")) - {path}
    shutil.copy(path, target)
    with pytest.warns(UserWarning, match="another evaluation"):
        assert store.load(other) is None


@pytest.mark.parametrize("cut", [0, 1, 20, -40, -2])
def test_a_truncated_file_is_computed_again(store: Store, cut: int) -> None:
    store.save(KEY, OUTCOME)
    path = only_file(store)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert store.load(KEY) is None
    store.save(KEY, OUTCOME)
    assert store.load(KEY) == OUTCOME


def test_no_flipped_digit_goes_unnoticed(store: Store) -> None:
    store.save(KEY, OUTCOME)
    path = only_file(store)
    content = path.read_bytes()
    for place in [place for place, byte in enumerate(content) if chr(byte).isdigit()]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.warns(UserWarning, match="damaged"):
            assert store.load(KEY) is None


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"\xff", b'{"sha256": 1, "key": {}, "outcome": {}}', b"[" * 99_999]
)
def test_anything_else_in_the_file_is_damage(store: Store, content: bytes) -> None:
    store.save(KEY, OUTCOME)
    only_file(store).write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert store.load(KEY) is None


def test_images_are_kept_with_all_their_bits(store: Store) -> None:
    saved = store.save(KEY, OUTCOME, FALLEN)
    assert store.load(KEY, images=True) == saved != OUTCOME
    found = store.fallen(saved)
    assert torch.equal(found.rows, FALLEN.rows)
    assert torch.equal(found.images, FALLEN.images)


def test_an_outcome_without_images_does_not_do_where_they_are_wanted(store: Store) -> None:
    store.save(KEY, OUTCOME)
    assert store.load(KEY, images=True) is None
    assert store.load(KEY) == OUTCOME


def test_damaged_images_are_made_again(store: Store) -> None:
    saved = store.save(KEY, OUTCOME, FALLEN)
    path = only_file(store, ".safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.warns(UserWarning, match=path.name):
        assert store.load(KEY, images=True) is None
    path.unlink()
    with pytest.warns(UserWarning, match=path.name):
        assert store.load(KEY, images=True) is None
    with pytest.raises(EvaluationError, match=path.name):
        store.fallen(saved)
    assert store.load(KEY) == saved


def test_a_full_disk_keeps_what_is_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.save(KEY, OUTCOME)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(EvaluationError, match=r"No space left on device.*finished shards are kept"):
                store.save({**KEY, "shard": 4}, OUTCOME)
    assert [path.name for path in store.folder.iterdir()] == [only_file(store).name]
    assert store.load(KEY) == OUTCOME


def test_too_little_space_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    with opened(tmp_path, "subject"):
        pass
    with pytest.raises(EvaluationError, match="needs 6 MB free, got 2"), opened(tmp_path, "subject", needed=5_000_000):
        pass


@pytest.mark.parametrize("leader", [True, False])
def test_a_file_in_place_of_the_folder_is_told_at_once(tmp_path: Path, leader: bool) -> None:
    (tmp_path / "store").write_text("")
    for root in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(EvaluationError, match="choose another store"), opened(root, "subject", leader=leader):
            pass


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(EvaluationError, match="Permission denied"), opened(tmp_path, "subject"):
        pass


def test_subjects_have_folders_and_locks_of_their_own(tmp_path: Path) -> None:
    with opened(tmp_path, "one") as one, opened(tmp_path, "other") as other:
        assert one.folder != other.folder
        with pytest.raises(EvaluationError, match=f"process {os.getpid()} is evaluating"), opened(tmp_path, "one"):
            pass
        with opened(tmp_path, "one", leader=False) as shared:
            assert shared == one
    assert not list(tmp_path.glob("*/lock*"))


def test_half_written_files_of_a_killed_process_are_swept_away(tmp_path: Path) -> None:
    with opened(tmp_path, "one") as store:
        store.save(KEY, OUTCOME)
        (store.folder / ".00004-aa.json.123.partial").write_text("{")
    with opened(tmp_path, "one") as store:
        assert only_file(store)
        assert not list(store.folder.glob(".*"))


def lock_of(path: Path, **change: object) -> None:
    with locked(path):
        holder = json.loads(path.read_text())
    path.write_text(json.dumps({**holder, **change}))


def ended_process() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait()
    return process.pid


def test_a_lock_left_by_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock_of(path, pid=ended_process())
    with locked(path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells when a process started")
def test_a_lock_of_a_former_process_of_the_same_number_is_taken_over(tmp_path: Path) -> None:
    lock_of(tmp_path / "lock", started="1")
    with locked(tmp_path / "lock"):
        pass


def test_a_lock_of_a_living_process_holds(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path), pytest.raises(EvaluationError, match=f"process {os.getpid()} .*wait for it"), locked(path):
        pass


def test_a_lock_from_another_machine_holds(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock_of(path, host="elsewhere", pid=1)
    with pytest.raises(EvaluationError, match=r"process 1 on elsewhere .*delete .*lock if it has ended"), locked(path):
        pass
    assert path.exists()


def test_an_unfinished_lock_counts_only_for_a_moment(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text("")
    with pytest.raises(EvaluationError, match="just creating"), locked(path):
        pass
    os.utime(path, (time.time() - 60, time.time() - 60))
    with locked(path):
        assert json.loads(path.read_text())["host"] == socket.gethostname()


def test_of_two_that_take_over_one_waits(tmp_path: Path) -> None:
    path, guard = tmp_path / "lock", tmp_path / "lock.taking-over"
    lock_of(path, pid=ended_process())
    guard.write_text("")
    with pytest.raises(EvaluationError, match="just taking over"), locked(path):
        pass
    os.utime(guard, (time.time() - 60, time.time() - 60))
    with locked(path):
        assert not guard.exists()


def test_a_lock_that_was_taken_away_is_not_given_back_for_another(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with locked(path):
        path.write_text("somebody else's")
    assert path.read_text() == "somebody else's"


def test_atomic_writes_replace_or_leave(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"one")
    write_atomically(path, b"two")
    assert path.read_bytes() == b"two"
    with pytest.raises(OSError, match="directory"):
        write_atomically(tmp_path / "missing" / "file", b"")


@pytest.mark.parametrize(
    "change",
    [
        {"decisions": ()}, {"decisions": (-2,)}, {"decisions": (1.5,)}, {"decisions": (True,)}, {"threads": -2},
        {"seconds": -1.0}, {"seconds": float("nan")}, {"parts": (("clean", "1"),)}, {"parts": (("clean", "1x0"),)},
    ],
)  # fmt: skip
def test_an_outcome_has_a_form(change: dict[str, object]) -> None:
    table = {**OUTCOME.to_table(), **change}
    with pytest.raises(EvaluationError, match="outcome"):
        Outcome.from_table(table)
    assert Outcome.from_table(json.loads(json.dumps(OUTCOME.to_table()))) == OUTCOME
