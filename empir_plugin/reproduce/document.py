"""The blocks of a report (text, tables, pictures), and writing them as Markdown."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Link:
    """A link to a file.

    Args:
        text: Text of the link.
        path: Path relative to the report, with ``/`` between its parts.
    """

    text: str
    path: str


Cell = str | Link | tuple[Link, ...]
"""A cell of a table."""


@dataclass(frozen=True)
class Text:
    """A paragraph.

    Args:
        text: Plain text.
    """

    text: str


@dataclass(frozen=True)
class Code:
    """A command for the reader to type.

    Args:
        text: The command.
    """

    text: str


@dataclass(frozen=True)
class Table:
    """A table with a header.

    Args:
        caption: What the table shows, with units.
        header: Names of the columns.
        rows: One cell for each column.
        texts: Number of text columns; the columns after them hold numbers.
    """

    caption: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    texts: int = 1


@dataclass(frozen=True)
class Picture:
    """A figure, stored as SVG and PNG.

    Args:
        stem: Name of its files, without the ending.
        caption: What the figure shows.
        description: Alternative text for readers who cannot see it: what is on the axes, and what it says.
    """

    stem: str
    caption: str
    description: str


Block = Text | Code | Table | Picture
"""An element of a section."""


@dataclass(frozen=True)
class Section:
    """A section of a report.

    Args:
        key: Short name.
        title: Heading.
        blocks: Its content, in order.
    """

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A report.

    Args:
        title: Heading.
        lead: Paragraphs before the first section.
        sections: Its sections, in order.
    """

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]


def points(value: float | None) -> str:
    """A number to two decimals; a dash for a missing one.

    Example:
        >>> points(12.3), points(None)
        ('12.30', '-')
    """
    return "-" if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """A difference to two decimals, with its sign; a dash for a missing one.

    Example:
        >>> signed(1.5), signed(-2.0)
        ('+1.50', '-2.00')
    """
    return "-" if value is None else f"{value:+.2f}"


def markdown(document: Document, figures: str) -> str:
    r"""Write a document as Markdown.

    Args:
        document: The report.
        figures: Folder of the figures, relative to the report.

    Example:
        >>> markdown(Document("Title", ("Lead.",), (Section("s", "Part", (Text("Words."),)),)), "figures")
        '# Title\n\nLead.\n\n## Part\n\nWords.\n'
    """
    pieces = [f"# {document.title}", *map(_escape, document.lead)]
    for section in document.sections:
        pieces += [f"## {section.title}", *(_block(block, figures) for block in section.blocks)]
    return "\n\n".join(pieces) + "\n"


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Text):
        return _escape(block.text)
    if isinstance(block, Code):
        return f"```console\n{block.text}\n```"
    if isinstance(block, Picture):
        alt = _escape(block.description).replace("[", "(").replace("]", ")")
        return f"![{alt}]({figures}/{block.stem}.svg)\n\n*{_escape(block.caption)}*"
    return "\n".join(_table(block))


def _table(table: Table) -> Iterator[str]:
    yield f"*{_escape(table.caption)}*\n"
    yield _row(table.header)
    numbers = len(table.header) - table.texts
    yield _row(("---",) * table.texts + ("---:",) * numbers)
    yield from (_row(row) for row in table.rows)


def _row(cells: tuple[Cell, ...]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(cell: Cell) -> str:
    if isinstance(cell, tuple):
        return ", ".join(map(_cell, cell))
    if isinstance(cell, Link):
        return f"[{_escape(cell.text)}]({cell.path})"
    return _escape(cell).replace("\n", " ")


def _escape(text: str) -> str:
    for sign in "\\|*_<":
        text = text.replace(sign, f"\\{sign}")
    return text
