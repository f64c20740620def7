"""A document as Markdown, and its figures."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.text import Text as Label

from empir_plugin.reproduce.document import Code, Document, Link, Picture, Section, Table, Text
from empir_plugin.reproduce.figures import LOOKS, bars, draw, lines, panels, write_names
from empir_plugin.reproduce.report import markdown

TABLE = Table(
    "Some numbers, in %.",
    ("Name", "From", "Left"),
    (("a|b <i>", (Link("r", "x/r.json"), Link("s", "s")), "1.50"),),
    texts=2,
)
BLOCKS = (Text("Words & <b>more</b>."), Code("empir reproduce x"), TABLE, Picture("p", "Cap", "Alt"))
DOCUMENT = Document(
    "Title", ("Lead.",),
    (Section("one", "Part", BLOCKS),),
)  # fmt: skip


def _paint(figure: object) -> None:
    (axis,) = panels(figure, 1, 1)  # pyright: ignore[reportArgumentType]
    bars(axis, ["x", "y"], [("first", [1.0, None]), ("second", [2.0, 3.0])])


def test_markdown() -> None:
    text = markdown(DOCUMENT, "figures")
    assert "| Name | From | Left |\n| --- | --- | ---: |\n| a\\|b \\<i> | [r](x/r.json), [s](s) | 1.50 |" in text
    assert "```console\nempir reproduce x\n```" in text
    assert "![Alt](figures/p.svg)\n\n*Cap*" in text
    assert "Words & \\<b>more\\</b>." in text


def test_a_bar_too_low_to_be_seen_is_told_from_a_missing_one() -> None:
    (axis,) = panels(Figure(), 1, 1)
    bars(axis, ["x", "y"], [("first", [0.0, None]), ("second", [60.0, 0.07])])
    told = [text for text in axis.texts if isinstance(text, Annotation) and text.get_text()]
    assert [(round(text.xy[0], 1), text.get_text()) for text in told] == [(-0.2, "0"), (1.2, ".07")]


def test_the_same_numbers_give_the_same_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        draw(tmp_path / folder, "p", (2, 2), _paint)
    for name in ("p.svg", "p.png"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert (tmp_path / "a" / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_missing_number_has_no_bar_and_series_differ_without_colour(tmp_path: Path) -> None:
    seen: list[int] = []

    def paint(figure: object) -> None:
        (axis,) = panels(figure, 1, 1)  # pyright: ignore[reportArgumentType]
        bars(axis, ["x", "y"], [("first", [1.0, None]), ("second", [2.0, 3.0])])
        seen.append(len(axis.patches))
        lines(axis, [0, 1], [("a", [1, 2]), ("b", [3, 4])])
        drawn = {(line.get_marker(), line.get_linestyle()) for line in axis.lines}
        assert len(drawn) == 2

    draw(tmp_path, "p", (2, 2), paint)
    assert seen == [3]
    for part in ("marker", "line", "hatch"):
        assert len({getattr(look, part) for look in LOOKS}) == len(LOOKS)
    for look in LOOKS:
        assert 0 <= look.shade < 0.6, "pale lines do not print"


def test_names_beside_points_do_not_cover_each_other(tmp_path: Path) -> None:
    seen: list[tuple[float, float, float, float]] = []

    def paint(figure: object) -> None:
        (axis,) = panels(figure, 1, 1)  # pyright: ignore[reportArgumentType]
        axis.set_xlim(0, 100)
        axis.set_ylim(-3, 103)
        write_names(axis, [(name, 50.0 + index, 0.0) for index, name in enumerate(("w1a1", "w2a2", "w4a4", "fp"))])
        figure.canvas.draw()  # pyright: ignore[reportAttributeAccessIssue]
        seen.extend(Label.get_window_extent(text).extents for text in axis.texts)

    draw(tmp_path, "names", (3.6, 3.2), paint)
    assert len(seen) == 4
    for index, (left, bottom, right, top) in enumerate(seen):
        for other in seen[index + 1 :]:
            apart = right <= other[0] or other[2] <= left or top <= other[1] or other[3] <= bottom
            assert apart, (index, other)
