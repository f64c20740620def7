"""A report as values, before it is Markdown or HTML."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A word that leads to a file.

    Args:
        text: What is shown.
        path: Below the folder of the report, with ``/`` between its parts.
    """

    text: str
    path: str


Cell = str | Link | tuple[Link, ...]


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: Plain words.
    """

    text: str


@dataclass(frozen=True)
class Code:
    """What a reader types.

    Args:
        text: The command.
    """

    text: str


@dataclass(frozen=True)
class Table:
    """Rows below a header.

    Args:
        caption: What it shows, with units.
        header: Of its columns.
        rows: Of as many cells.
        texts: So many columns hold words, the ones after them numbers.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure in files.

    Args:
        stem: Of its files, which are an SVG and a PNG.
        caption: What it shows.
        description: The same for those who do not see it: what is on the axes, and what it tells.
    """

    stem: str
    caption: str
    description: str


Block = Text | Code | Table | Picture


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        key: Its address.
        title: In words.
        blocks: What is in it.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report.

    Args:
        title: In words.
        lead: What it is about.
        sections: In order.
    """

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def points(value: float | None) -> str:
    """Percent or points to two decimals; a dash where there is no number.

    Example:
        >>> points(12.3), points(None)
        ('12.30', '-')
    """
    return "-" if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """A difference to two decimals with its sign; a dash where there is none.

    Example:
        >>> signed(1.5), signed(-2.0)
        ('+1.50', '-2.00')
    """
    return "-" if value is None else f"{value:+.2f}"
