"""Finished shards: found again only by what they belong to, never half written, never by two processes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from empir_plugin.errors import EvaluationError
from empir_plugin.evaluation.cache.store import Cache, open_cache
from empir_plugin.evaluation.outcome import BrokenImages, Outcome

KEY = {"subject": "a", "attack": "fgsm", "seed": 0, "shard": 3}
OUTCOME = Outcome((3, -1, 0), 0.25, 2, ("a flag",), (("clean", "101"), ("square", "100")))
BROKEN = BrokenImages(torch.tensor([2]), torch.rand(1, 3, 4, 4))


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path)


def only_file(cache: Cache, ending: str = ".json") -> Path:
    (found,) = cache.folder.glob(f"*{ending}")
    return found


def test_what_is_stored_is_found(cache: Cache) -> None:
    assert cache.load(KEY) is None
    assert cache.save(KEY, OUTCOME) == OUTCOME
    assert cache.load(KEY) == OUTCOME
    assert only_file(cache).name.startswith("00003-")
    assert json.loads(only_file(cache).read_text())["key"] == KEY


@pytest.mark.parametrize(
    "change", [{"subject": "b"}, {"seed": 1}, {"shard": 4}, {"attack": "pgd"}, {"new": 1}], ids=str
)
def test_another_key_never_matches(cache: Cache, change: dict[str, str | int]) -> None:
    cache.save(KEY, OUTCOME)
    assert cache.load({**KEY, **change}) is None


def test_a_file_under_a_false_name_is_not_believed(cache: Cache) -> None:
    cache.save(KEY, OUTCOME)
    path, other = only_file(cache), {**KEY, "subject": "b"}
    cache.save(other, Outcome((1,), 0.0, 1))
    (target,) = set(cache.folder.glob("*.json")) - {path}
    shutil.copy(path, target)
    with pytest.warns(UserWarning, match="another evaluation"):
        assert cache.load(other) is None


@pytest.mark.parametrize("cut", [0, 1, 20, -40, -2])
def test_a_truncated_file_is_computed_again(cache: Cache, cut: int) -> None:
    cache.save(KEY, OUTCOME)
    path = only_file(cache)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.warns(UserWarning, match=f"{path.name} is damaged"):
        assert cache.load(KEY) is None
    cache.save(KEY, OUTCOME)
    assert cache.load(KEY) == OUTCOME


def test_no_flipped_digit_goes_unnoticed(cache: Cache) -> None:
    cache.save(KEY, OUTCOME)
    path = only_file(cache)
    content = path.read_bytes()
    for place in [place for place, byte in enumerate(content) if chr(byte).isdigit()]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.warns(UserWarning, match="damaged"):
            assert cache.load(KEY) is None


@pytest.mark.parametrize(
    "content", [b"[]", b"null", b"\xff", b'{"sha256": 1, "key": {}, "outcome": {}}', b"[" * 99_999]
)
def test_anything_else_in_the_file_is_damage(cache: Cache, content: bytes) -> None:
    cache.save(KEY, OUTCOME)
    only_file(cache).write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        assert cache.load(KEY) is None


def test_images_are_kept_with_all_their_bits(cache: Cache) -> None:
    saved = cache.save(KEY, OUTCOME, BROKEN)
    assert cache.load(KEY, with_images=True) == saved != OUTCOME
    found = cache.broken_images(saved)
    assert torch.equal(found.rows, BROKEN.rows)
    assert torch.equal(found.images, BROKEN.images)


def test_an_outcome_without_images_does_not_do_where_they_are_wanted(cache: Cache) -> None:
    cache.save(KEY, OUTCOME)
    assert cache.load(KEY, with_images=True) is None
    assert cache.load(KEY) == OUTCOME


def test_damaged_images_are_made_again(cache: Cache) -> None:
    saved = cache.save(KEY, OUTCOME, BROKEN)
    path = only_file(cache, ".safetensors")
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    with pytest.warns(UserWarning, match=path.name):
        assert cache.load(KEY, with_images=True) is None
    path.unlink()
    with pytest.warns(UserWarning, match=path.name):
        assert cache.load(KEY, with_images=True) is None
    with pytest.raises(EvaluationError, match=path.name):
        cache.broken_images(saved)
    assert cache.load(KEY) == saved


def test_a_full_disk_keeps_what_is_there(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.save(KEY, OUTCOME)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    for call in ("replace", "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, full)
            with pytest.raises(EvaluationError, match=r"No space left on device.*finished shards are kept"):
                cache.save({**KEY, "shard": 4}, OUTCOME)
    assert [path.name for path in cache.folder.iterdir()] == [only_file(cache).name]
    assert cache.load(KEY) == OUTCOME


def test_too_little_space_is_told_before_anything_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2_000_000))
    with open_cache(tmp_path, "subject"):
        pass
    with (
        pytest.raises(EvaluationError, match="needs 6 MB free, got 2"),
        open_cache(tmp_path, "subject", needed=5_000_000),
    ):
        pass


@pytest.mark.parametrize("leader", [True, False])
def test_a_file_in_place_of_the_folder_is_told_at_once(tmp_path: Path, leader: bool) -> None:
    (tmp_path / "store").write_text("")
    for root in (tmp_path / "store", tmp_path / "store" / "below"):
        with pytest.raises(EvaluationError, match="choose another store"), open_cache(root, "subject", leader=leader):
            pass


def test_a_folder_that_cannot_be_written_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refused)
    with pytest.raises(EvaluationError, match="Permission denied"), open_cache(tmp_path, "subject"):
        pass


def test_subjects_have_folders_and_locks_of_their_own(tmp_path: Path) -> None:
    with open_cache(tmp_path, "one") as one, open_cache(tmp_path, "other") as other:
        assert one.folder != other.folder
        with (
            pytest.raises(EvaluationError, match="another evaluation of this model on this data"),
            open_cache(tmp_path, "one"),
        ):
            pass
        with open_cache(tmp_path, "one", leader=False) as shared:
            assert shared == one


def test_half_written_files_of_a_killed_process_are_swept_away(tmp_path: Path) -> None:
    with open_cache(tmp_path, "one") as cache:
        cache.save(KEY, OUTCOME)
        (cache.folder / ".00004-aa.json.123.partial").write_text("{")
    with open_cache(tmp_path, "one") as cache:
        assert only_file(cache)
        assert not list(cache.folder.glob(".*"))


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
