"""``empir reproduce`` on the command line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from empir_cli.commands.reproduce import reproduce
from empir_cli.group import Commands


@click.group(cls=Commands)
def _main() -> None:
    """The command among others."""


_main.add_command(reproduce)


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(_main, ["reproduce", *map(str, arguments)])


def test_figure_3b_from_the_bundled_sample(tmp_path: Path) -> None:
    out, docs = tmp_path / "out", tmp_path / "docs" / "reproduction.md"
    done = run("fig3b", "--out", out, "--n-examples", "2", "--report", docs)
    assert done.exit_code == 0, done.output
    assert f"Report: {docs}" in done.output
    text = docs.read_text()
    assert "empir reproduce fig3b --n-examples 2" in text
    assert "](reproduction/figures/fig3b.svg)" in text
    assert (docs.parent / "reproduction" / "figures" / "fig3b.svg").is_file()
    record = docs.parent / "reproduction" / "records" / "mnist-empir-confusion-released.json"
    assert json.loads(record.read_text())["data"]["n"] == 2
    assert not list(out.glob("*.html"))


REFUSED = {
    "unknown target": (("table3",), "what to reproduce is one of table2, fig1"),
    "too many images": (("fig3b", "--n-examples", "1001"), "pass --data-dir for the full set"),
    "no images": (("fig3b", "--n-examples", "0"), "n_examples must be a whole number, at least 1"),
    "no training images": (("fig1", "--n-examples", "2"), "has to be trained first, and this package holds"),
    "missing folder": (("fig3b", "--data-dir", "no-such-folder"), "no-such-folder is not a folder: check --data-dir"),
    "report without .md": (("fig3b", "--n-examples", "2", "--report", "report.txt"), "must name a file that ends in"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_wrong_arguments_give_one_error_and_no_files(case: str, tmp_path: Path) -> None:
    arguments, message = REFUSED[case]
    done = run(*arguments, "--out", tmp_path / "out")
    assert done.exit_code == 2
    assert message in done.output
    assert "Traceback" not in done.output
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_is_refused_and_left_unchanged(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    done = run("fig3b", "--out", tmp_path, "--n-examples", "2")
    assert done.exit_code == 2
    assert "holds thesis.tex" in done.output
    assert "choose another --out" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_folder_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "reproduction.json").write_text(json.dumps({"format": 1, "empir-plugin": "0.0.1"}))
    done = run("fig3b", "--out", tmp_path, "--n-examples", "2")
    assert done.exit_code == 2
    assert "was made by empir-plugin 0.0.1" in done.output
    assert "choose another --out, or delete that folder" in done.output


def test_without_matplotlib_the_error_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    done = run("fig3b", "--out", tmp_path / "out", "--n-examples", "2")
    assert done.exit_code == 2
    assert "pip install 'empir-plugin[reproduce]'" in done.output
