"""Drawing figures that can be read without colour: series differ in marker, line style and hatch."""

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
class SeriesStyle:
    """How a series is drawn.

    Args:
        marker: Marker of its points.
        line: Style of its line.
        shade: Grey level of its line, from 0 (black) to 1 (white).
        hatch: Hatch of its bars.
    """

    marker: str
    line: str | tuple[int, tuple[int, ...]]
    shade: float
    hatch: str = ""

    @property
    def color(self) -> str:
        """The grey level as a matplotlib color."""
        return f"{self.shade:g}"


STYLES = (
    SeriesStyle("o", "-", 0.0),
    SeriesStyle("s", "--", 0.35, "///"),
    SeriesStyle("^", ":", 0.2, "..."),
    SeriesStyle("D", "-.", 0.55, "xxx"),
    SeriesStyle("v", (0, (5, 1, 1, 1, 1, 1)), 0.1, "\\\\\\"),
    SeriesStyle("P", (0, (1, 3)), 0.45, "+++"),
)
"""Styles of the first, second, ... series; any two differ in marker, line and hatch."""


def require_matplotlib() -> None:
    """Check that matplotlib, which draws the figures, can be imported.

    Raises:
        CompatibilityError: If matplotlib cannot be imported.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        cure = "pip install 'empir-plugin[reproduce]'"
        raise CompatibilityError(f"figures are drawn with matplotlib, which cannot be imported: {cure}") from error


def save_figure(folder: Path, stem: str, size: tuple[float, float], plot: Callable[[Figure], None]) -> None:
    """Draw a figure and save it as SVG and PNG. Equal numbers give byte-identical files.

    Args:
        folder: Folder of the files.
        stem: Name of the files, without the ending.
        size: Width and height in inches.
        plot: Draws the content into an empty figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with _default_style():
        figure = Figure(size, layout="constrained")
        FigureCanvasAgg(figure)
        plot(figure)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{stem}.svg", metadata={"Date": None})
        figure.set_layout_engine("none")  # Saving the SVG has fixed the layout.
        figure.savefig(folder / f"{stem}.png", dpi=_DPI, metadata={"Software": ""})


@contextmanager
def _default_style() -> Iterator[None]:
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(_STYLE)
        yield


def panels(figure: Figure, rows: int, columns: int) -> list[Axes]:
    """Add empty panels to a figure and return them row by row."""
    return list(figure.subplots(rows, columns, squeeze=False).flat)


def percent_axis(axis: Axes, label: str, *, room: float = 3.0) -> None:
    """Make the vertical axis a labelled axis of percentages.

    Args:
        axis: The panel.
        label: Quantity and unit.
        room: Room below 0, so that markers at 0 are not cut off.
    """
    axis.set_ylabel(label)
    axis.set_ylim(-room, 103)


def draw_lines(axis: Axes, x: Sequence[float], series: Sequence[tuple[str, Sequence[float]]]) -> None:
    """Draw a line for each series. Markers shrink from series to series, so that all show where lines coincide."""
    for index, (style, (name, y)) in enumerate(zip(STYLES, series, strict=False)):
        size = 8.5 - index
        axis.plot(
            x, y, color=style.color, marker=style.marker, linestyle=style.line, label=name, mfc="none", markersize=size
        )


def annotate_points(axis: Axes, points: Sequence[tuple[str, float, float]]) -> None:
    """Write a name above each point, moved up where another name or point is in the way.

    Args:
        axis: A panel whose vertical axis shows percentages; the limits of its horizontal axis must be final.
        points: Name, x and y of each point.
    """
    low, high = axis.get_xlim()
    places = [(name, (x - low) / (high - low) * _WIDTH, y / 100 * _HEIGHT) for name, x, y in points]
    taken = [(x - 4, x + 4, y - 4, y + 4) for _, x, y in places]
    for (name, x, y), (_, at_x, at_y) in zip(places, points, strict=True):
        half = 3 * len(name)
        boxes = ((x - half, x + half, y + rise, y + rise + 9) for rise in range(6, 200, 3))
        free = next(box for box in boxes if not any(_overlap(box, other) for other in taken))
        taken.append(free)
        rise = free[2] - y
        line = {"arrowstyle": "-", "color": "0.6", "linewidth": 0.6, "shrinkB": 4} if rise > 6 else None
        axis.annotate(
            name, (at_x, at_y), (0, rise), textcoords="offset points", ha="center", fontsize=8, arrowprops=line
        )


_WIDTH, _HEIGHT = 205, 165
"""Approximate size of a panel in a figure of two by two, in typographic points."""


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one[0] < other[1] and other[0] < one[1] and one[2] < other[3] and other[2] < one[3]


def draw_bars(axis: Axes, groups: Sequence[str], series: Sequence[tuple[str, Sequence[float | None]]]) -> None:
    """Draw groups of bars, one bar for each series.

    A missing number has no bar. A bar too low to see is labelled with its number, to tell it from a missing one.
    """
    width = 0.8 / len(series)
    tallest = max((value for _, values in series for value in values if value is not None), default=0.0)
    for index, (style, (name, values)) in enumerate(zip(STYLES, series, strict=False)):
        shown = [(place, value) for place, value in enumerate(values) if value is not None]
        places = [place + (index - (len(series) - 1) / 2) * width for place, _ in shown]
        face = f"{0.25 + 0.75 * (index / max(1, len(series) - 1)):g}"
        heights = [value for _, value in shown]
        container = axis.bar(
            places, heights, width, label=name, color=face, edgecolor="black", hatch=style.hatch, linewidth=0.6
        )
        labels = ["" if height > tallest / 50 else f"{height:.1g}".lstrip("0") or "0" for height in heights]
        axis.bar_label(container, labels, fontsize=6, padding=1)
    axis.set_xticks(range(len(groups)), groups)
    axis.grid(False, axis="x")
