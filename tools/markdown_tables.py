"""Tables in Markdown, as the README and the documentation show them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str) -> str:
    """A table, without a line break at its end.

    Args:
        head: The column names.
        rows: The cells, one per column.
        align: One letter per column: ``l`` for text, ``r`` for numbers. The last letter is repeated.

    Example:
        >>> print(markdown_table(("model", "clean"), [("empir-cifar", "75.23 %")], "lr"))
        | model | clean |
        | --- | ---: |
        | empir-cifar | 75.23 % |
    """
    lines = [{"l": "---", "r": "---:"}[letter] for letter in align.ljust(len(head), align[-1])]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, lines, *rows))
