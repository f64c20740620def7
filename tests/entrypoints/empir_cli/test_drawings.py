"""``empir evaluate --eps-curve`` and ``--pictures``: files, tables, and what they are not combined with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from empir_cli import main
from empir_plugin.evaluation.curve import Curve

pytest.importorskip("matplotlib")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["evaluate", "cifarconv-w2a2", "--n-examples", "4", "--attack", "FGSM", *arguments])


def test_a_curve_is_printed_written_and_plotted(tmp_path: Path) -> None:
    target = tmp_path / "curve.json"
    result = run("--eps-curve", "0,4/255,...,12/255", "--out", str(target))
    assert result.exit_code == 0, result.output
    curve = Curve.read(target)
    assert curve.radii == ("4/255", "8/255", "12/255")
    (row,) = (line for line in result.output.splitlines() if line.split()[:1] == ["12/255"])
    assert row.split()[1] == f"{curve.accuracy()[-1]:.2f}"
    names = {path.name for path in tmp_path.iterdir()}
    stems = ("curve", "curve-minimal-eps")
    assert names == {"curve.json", *(f"{stem}.{ending}" for stem in stems for ending in ("svg", "png"))}


def test_without_matplotlib_the_curve_is_written_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = run("--eps-curve", "8/255", "--out", str(tmp_path / "curve.json"))
    assert result.exit_code == 0, result.output
    assert "empir-plugin[plots]" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["curve.json"]
    pictures = run("--pictures", "1", "--out", str(tmp_path / "record.json"))
    assert pictures.exit_code == 2
    assert "empir-plugin[plots]" in pictures.output


def test_pictures_are_drawn_beside_the_record(tmp_path: Path) -> None:
    result = run("--threat", "Linf:16/255", "--pictures", "2", "--out", str(tmp_path / "record.json"))
    assert result.exit_code == 0, result.output
    assert {path.name for path in tmp_path.iterdir()} == {
        "record.json", "record-pictures.svg", "record-pictures.png"
    }  # fmt: skip


@pytest.mark.parametrize(
    "other", [("--store", "s"), ("--images", "i"), ("--pictures", "1"), ("--cascade",), ("--json",)]
)
def test_a_curve_is_refused_with_what_it_does_not_do(other: tuple[str, ...], tmp_path: Path) -> None:
    result = run("--eps-curve", "8/255", "--out", str(tmp_path / "c.json"), *other)
    assert result.exit_code == 2
    assert f"got {other[0]}: leave that out" in result.output
    assert not list(tmp_path.iterdir())
