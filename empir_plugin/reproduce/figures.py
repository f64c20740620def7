"""Figures that can be read without colour: shapes, lines and hatches tell the series apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from empir_plugin.errors import CompatibilityError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: dict[str, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": "0.88",
    "axes.axisbelow": True, "legend.frameon": False, "svg.hashsalt": "empir-plugin", "svg.fonttype": "path",
    "hatch.linewidth": 0.6, "lines.markersize": 5,
}  # fmt: skip
_DPI = 160


@dataclass(frozen=True)
class Look:
    """How a series is drawn.

    Args:
        marker: Of its points.
        line: Style of its line.
        shade: From 0, black, to 1, white.
        hatch: Pattern of its bars.
    """

    marker: str
    line: str | tuple[int, tuple[int, ...]]
    shade: float
    hatch: str = ""

    @property
    def color(self) -> str:
        """The shade as matplotlib writes it."""
        return f"{self.shade:g}"


LOOKS = (
    Look("o", "-", 0.0),
    Look("s", "--", 0.35, "///"),
    Look("^", ":", 0.2, "..."),
    Look("D", "-.", 0.55, "xxx"),
    Look("v", (0, (5, 1, 1, 1, 1, 1)), 0.1, "\\\\\\"),
    Look("P", (0, (1, 3)), 0.45, "+++"),
)
"""Series in order; any two differ in shape, in line and in hatch."""


def require_matplotlib() -> None:
    """Refuse to begin without what figures are drawn with.

    Raises:
        CompatibilityError: If matplotlib cannot be imported.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        cure = "pip install 'empir-plugin[reproduce]'"
        raise CompatibilityError(f"figures are drawn with matplotlib, which cannot be imported: {cure}") from error


def draw(folder: Path, stem: str, size: tuple[float, float], paint: Callable[[Figure], None]) -> None:
    """Draw a figure and write it as SVG and PNG, the same bytes for the same numbers.

    Args:
        folder: For the files.
        stem: Of their names.
        size: Width and height in inches.
        paint: Puts everything into the figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _styled():
        figure = Figure(size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # The first file has laid everything out.
        figure.savefig(folder / f"{stem}.png", dpi=_DPI, metadata={"Software": ""})


@contextmanager
def _styled() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_STYLE)
        yield


def panels(figure: Figure, rows: int, columns: int) -> list[Axes]:
    """Empty panels, row by row."""
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def percent_axis(axis: Axes, label: str, *, room: float = 3.0) -> None:
    """Give the upright axis a label and the range of percentages.

    Args:
        axis: The panel.
        label: What is shown, with its unit.
        room: Below 0, so that points there are whole.
    """
    axis.set_ylabel(label)
    axis.set_ylim(-room, 103)


def lines(axis: Axes, x: Sequence[float], series: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Series over the same numbers, each with its own shape and line; where they coincide, every shape is seen."""
    for index, (look, (name, y)) in enumerate(zip(LOOKS, series, strict=False)):
        size = 8.5 - index
        axis.plot(
            x, y, color=look.color, marker=look.marker, linestyle=look.line, label=name, mfc="none", markersize=size
        )


def write_names(axis: Axes, spots: Sequence[tuple[str, float, float]]) -> None:
    """Write a name above each point, higher where another name or point is in the way.

    Args:
        axis: A panel whose upright axis shows percentages; its range to the right must be final.
        spots: Name and place of every point.
    """
    low, high = axis.get_xlim()
    places = [(name, (x - low) / (high - low) * _WIDE, y / 100 * _TALL) for name, x, y in spots]
    taken = [(x - 4, x + 4, y - 4, y + 4) for _, x, y in places]
    for (name, x, y), (_, at_x, at_y) in zip(places, spots, strict=True):
        half = 3 * len(name)
        boxes = ((x - half, x + half, y + rise, y + rise + 9) for rise in range(6, 200, 3))
        free = next(box for box in boxes if not any(_overlap(box, other) for other in taken))
        taken.append(free)
        rise = free[2] - y
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 4} if rise > 6 else None
        axis.annotate(
            name, (at_x, at_y), (0, rise), textcoords="offset points", ha="center", fontsize=8, arrowprops=line
        )


_WIDE, _TALL = 205, 165
"""About the size of a panel, two of which stand beside and above each other, in typographic points."""


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def bars(axis: Axes, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    """Groups of bars beside each other, one bar for each series.

    Where a number is missing there is no bar; one too low to see, which looks the same, has its number there.
    """
    width = 0.8 / len(series)
    tallest = max((value for _, values in series for value in values if value is not None), default=0.0)
    for index, (look, (name, values)) in enumerate(zip(LOOKS, series, strict=False)):
        shown = [(place, value) for place, value in enumerate(values) if value is not None]
        places = [place + (index - (len(series) - 1) / 2) * width for place, _ in shown]
        face = f"{0.25 + 0.75 * (index / max(1, len(series) - 1)):g}"
        heights = [value for _, value in shown]
        drawn = axis.bar(
            places, heights, width, label=name, color=face, edgecolor="black", hatch=look.hatch, linewidth=0.6
        )
        told = ["" if height > tallest / 50 else f"{height:.1g}".lstrip("0") or "0" for height in heights]
        axis.bar_label(drawn, told, fontsize=6, padding=1)
    axis.set_xticks(range(len(groups)), groups)
    axis.grid(False, axis="x")
