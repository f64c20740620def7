"""The output folder: one of ours is reused, any other is refused and left unchanged."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.reproduce.workspace import Workspace, check_publishable


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_is_created_and_can_be_reused(workspace: Workspace) -> None:
    for _ in range(2):
        with workspace.lock():
            assert workspace.records.is_dir()
            assert workspace.figures.is_dir()
    assert json.loads((workspace.root / "reproduction.json").read_text())["format"] == 1


def test_an_empty_folder_is_accepted(workspace: Workspace) -> None:
    workspace.root.mkdir()
    workspace.check()


def _foreign_file(space: Workspace) -> None:
    (space.root / "thesis.tex").write_text("mine")


def _no_marker(space: Workspace) -> None:
    (space.root / "reproduction.json").unlink()


def _other_release(space: Workspace) -> None:
    (space.root / "reproduction.json").write_text(json.dumps({"format": 1, "empir-plugin": "0.0.1"}))


def _other_format(space: Workspace) -> None:
    table = json.loads((space.root / "reproduction.json").read_text())
    (space.root / "reproduction.json").write_text(json.dumps({**table, "format": 7}))


def _broken_marker(space: Workspace) -> None:
    (space.root / "reproduction.json").write_text("[]")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_foreign_file, r"thesis\.tex.*choose another --out"),
        (_no_marker, "not empty.*choose another --out"),
        (_broken_marker, "not empty.*choose another --out"),
        (_other_release, r"empir-plugin 0\.0\.1 .*choose another --out, or delete"),
        (_other_format, "format 7.*choose another --out, or delete"),
    ],
)
def test_any_other_folder_is_refused_and_left_unchanged(
    workspace: Workspace, spoil: Callable[[Workspace], None], message: str
) -> None:
    with workspace.lock():
        pass
    spoil(workspace)
    before = _snapshot(workspace.root)
    with pytest.raises(InputError, match=message), workspace.lock():
        pass
    assert _snapshot(workspace.root) == before


def test_a_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"is a file.*choose another --out"):
        Workspace(path).check()
    assert path.read_text() == "mine"


def test_two_processes_cannot_share_it(workspace: Workspace) -> None:
    with workspace.lock(), pytest.raises(EvaluationError, match="wait for it"), workspace.lock():
        pass


def _finished(space: Workspace) -> None:
    with space.lock():
        (space.records / "a.json").write_text("{}")
        space.report.write_text("[a](reproduction/records/a.json) ![f](reproduction/figures/f.svg)")


def test_publishing_copies_the_report_with_its_records_and_figures(workspace: Workspace, tmp_path: Path) -> None:
    _finished(workspace)
    report = tmp_path / "docs" / "paper.md"
    for _ in range(2):
        workspace.publish(report)
        assert report.read_text() == "[a](paper/records/a.json) ![f](paper/figures/f.svg)"
        assert (report.parent / "paper" / "records" / "a.json").read_text() == "{}"
        (workspace.records / "b.json").write_text("{}")
    assert (report.parent / "paper" / "records" / "b.json").is_file()


def test_publishing_to_its_own_path_changes_nothing(workspace: Workspace) -> None:
    _finished(workspace)
    before = _snapshot(workspace.root)
    workspace.publish(workspace.report)
    assert _snapshot(workspace.root) == before


def test_publishing_overwrites_no_other_files(workspace: Workspace, tmp_path: Path) -> None:
    _finished(workspace)
    text, folder = tmp_path / "text.md", tmp_path / "folder.md"
    text.write_text("mine")
    folder.with_suffix("").mkdir()
    (folder.with_suffix("") / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"text\.md.*choose another --report"):
        workspace.publish(text)
    with pytest.raises(InputError, match=r"holds mine\.txt.*choose another --report"):
        workspace.publish(folder)
    with pytest.raises(InputError, match=r"--report.*\.md, got .*report\.txt"):
        check_publishable(tmp_path / "report.txt")
    assert text.read_text() == "mine"
    assert not folder.exists()
