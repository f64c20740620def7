"""The folder of a reproduction: ours is used again, anybody else's is refused and left alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.reproduce.workspace import Workspace, check_publishable


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_new_folder_is_made_and_can_be_opened_again(workspace: Workspace) -> None:
    for _ in range(2):
        with workspace.opened():
            assert workspace.records.is_dir()
            assert workspace.figures.is_dir()
    assert json.loads((workspace.root / "reproduction.json").read_text())["format"] == 1


def test_an_empty_folder_is_used(workspace: Workspace) -> None:
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
    ("spoil", "told"),
    [
        (_foreign_file, "holds thesis.tex, which is not of a reproduction: choose another --out"),
        (_no_marker, "is not empty and no reproduction of this package: choose another --out"),
        (_broken_marker, "is not empty and no reproduction of this package: choose another --out"),
        (_other_release, "was made by empir-plugin 0.0.1"),
        (_other_format, "format 7"),
    ],
)
def test_a_folder_that_is_not_ours_is_refused_untouched(
    workspace: Workspace, spoil: Callable[[Workspace], None], told: str
) -> None:
    with workspace.opened():
        pass
    spoil(workspace)
    before = _snapshot(workspace.root)
    with pytest.raises(InputError, match=told), workspace.opened():
        pass
    assert _snapshot(workspace.root) == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("mine")
    with pytest.raises(InputError, match="is a file, and the output needs a folder"):
        Workspace(path).check()
    assert path.read_text() == "mine"


def test_two_processes_do_not_share_it(workspace: Workspace) -> None:
    with workspace.opened(), pytest.raises(EvaluationError, match="wait for it"), workspace.opened():
        pass


def _finished(space: Workspace) -> None:
    with space.opened():
        (space.records / "a.json").write_text("{}")
        space.report.write_text("[a](reproduction/records/a.json) ![f](reproduction/figures/f.svg)")


def test_publishing_copies_what_the_report_links_and_again_after_a_change(workspace: Workspace, tmp_path: Path) -> None:
    _finished(workspace)
    report = tmp_path / "docs" / "paper.md"
    for _ in range(2):
        workspace.publish(report)
        assert report.read_text() == "[a](paper/records/a.json) ![f](paper/figures/f.svg)"
        assert (report.parent / "paper" / "records" / "a.json").read_text() == "{}"
        (workspace.records / "b.json").write_text("{}")
    assert (report.parent / "paper" / "records" / "b.json").is_file()


def test_publishing_onto_itself_changes_nothing(workspace: Workspace) -> None:
    _finished(workspace)
    before = _snapshot(workspace.root)
    workspace.publish(workspace.report)
    assert _snapshot(workspace.root) == before


def test_nothing_of_others_is_overwritten_by_publishing(workspace: Workspace, tmp_path: Path) -> None:
    _finished(workspace)
    text, folder = tmp_path / "text.md", tmp_path / "folder.md"
    text.write_text("mine")
    folder.with_suffix("").mkdir()
    (folder.with_suffix("") / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"text\.md is not a report of this command"):
        workspace.publish(text)
    with pytest.raises(InputError, match=r"holds mine\.txt"):
        workspace.publish(folder)
    with pytest.raises(InputError, match=r"must name a file that ends in \.md"):
        check_publishable(tmp_path / "report.txt")
    assert text.read_text() == "mine"
    assert not folder.exists()
