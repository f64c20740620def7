"""Drawing: files are deterministic, and series can be told apart without colour."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.text import Text as Label

from empir_plugin.errors import CompatibilityError
from empir_plugin.reproduce.figures import (
    STYLES,
    annotate_points,
    draw_bars,
    draw_lines,
    panels,
    require_matplotlib,
    save_figure,
)


def _plot(figure: Figure) -> None:
    (axis,) = panels(figure, 1, 1)
    draw_bars(axis, ["x", "y"], [("first", [1.0, None]), ("second", [2.0, 3.0])])


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    require_matplotlib()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(CompatibilityError, match=r"matplotlib.*pip install 'empir-plugin\[reproduce\]'"):
        require_matplotlib()


def test_equal_numbers_give_equal_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        save_figure(tmp_path / folder, "p", (2, 2), _plot)
    for name in ("p.svg", "p.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_bar_too_low_to_see_is_labelled_and_a_missing_one_is_not() -> None:
    (axis,) = panels(Figure(), 1, 1)
    draw_bars(axis, ["x", "y"], [("first", [0.0, None]), ("second", [60.0, 0.07])])
    labels = [text for text in axis.texts if isinstance(text, Annotation) and text.get_text()]
    assert [(round(text.xy[0], 1), text.get_text()) for text in labels] == [(-0.2, "0"), (1.2, ".07")]


def test_a_missing_number_has_no_bar(tmp_path: Path) -> None:
    bars: list[int] = []

    def plot(figure: Figure) -> None:
        _plot(figure)
        bars.append(len(figure.axes[0].patches))

    save_figure(tmp_path, "p", (2, 2), plot)
    assert bars == [3]


def test_series_differ_without_colour() -> None:
    (axis,) = panels(Figure(), 1, 1)
    draw_lines(axis, [0, 1], [("a", [1, 2]), ("b", [3, 4])])
    assert len({(line.get_marker(), line.get_linestyle()) for line in axis.lines}) == 2
    for part in ("marker", "line", "hatch"):
        assert len({getattr(style, part) for style in STYLES}) == len(STYLES)
    for style in STYLES:
        assert 0 <= style.shade < 0.6, "pale lines do not print"


def test_names_of_points_do_not_overlap(tmp_path: Path) -> None:
    boxes: list[tuple[float, float, float, float]] = []

    def plot(figure: Figure) -> None:
        (axis,) = panels(figure, 1, 1)
        axis.set_xlim(0, 100)
        axis.set_ylim(-3, 103)
        annotate_points(axis, [(name, 50.0 + index, 0.0) for index, name in enumerate(("w1a1", "w2a2", "w4a4", "fp"))])
        figure.canvas.draw()
        boxes.extend(Label.get_window_extent(text).extents for text in axis.texts)

    save_figure(tmp_path, "names", (3.6, 3.2), plot)
    assert len(boxes) == 4
    for index, (left, bottom, right, top) in enumerate(boxes):
        for other in boxes[index + 1 :]:
            apart = right <= other[0] or other[2] <= left or top <= other[1] or other[3] <= bottom
            assert apart, (index, other)
