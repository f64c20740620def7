"""Tables in Markdown, as the README and the documentation have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table without a line break at its end.

    Args:
        head: Name of every column.
        rows: Cells, as many as there are columns.
        align: ``l`` for a column of texts, ``r`` for one of numbers; the last letter holds for all that follow.
    """
    lines = [{"l": "---", "r": "---:"}[letter] for letter in align.ljust(len(head), align[-1])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, lines, *rows))
