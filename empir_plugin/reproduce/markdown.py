"""A report as Markdown."""

from __future__ import annotations

from collections.abc import Iterator

from empir_plugin.reproduce.document import Block, Cell, Code, Document, Link, Picture, Table, Text


def markdown(document: Document, figures: str) -> str:
    r"""Write a document as Markdown.

    Args:
        document: The report.
        figures: Folder of the figures, relative to the file.

    Example:
        >>> from empir_plugin.reproduce.document import Section
        >>> markdown(Document("Title", ("Lead.",), (Section("s", "Part", (Text("Words."),)),)), "figures")
        '# Title\n\nLead.\n\n## Part\n\nWords.\n'
    """
    pieces = [f"# {document.title}", *map(_escaped, document.lead)]
    for section in document.sections:
        pieces += [f"## {section.title}", *(_block(block, figures) for block in section.blocks)]
    return "\n\n".join(pieces) + "\n"


def _block(block: Block, figures: str) -> str:
    if isinstance(block, Text):
        return _escaped(block.text)
    if isinstance(block, Code):
        return f"```console\n{block.text}\n```"
    if isinstance(block, Picture):
        alt = _escaped(block.description).replace("[", "(").replace("]", ")")
        return f"![{alt}]({figures}/{block.stem}.svg)\n\n*{_escaped(block.caption)}*"
    return "\n".join(_table(block))


def _table(table: Table) -> Iterator[str]:
    yield f"*{_escaped(table.caption)}*\n"
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
        return f"[{_escaped(cell.text)}]({cell.path})"
    return _escaped(cell).replace("\n", " ")


def _escaped(text: str) -> str:
    for sign in "\\|*_<":
        text = text.replace(sign, f"\\{sign}")
    return text
