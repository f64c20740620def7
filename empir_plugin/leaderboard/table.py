"""A tree as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.tree import BOARDS, Board, Tree

_HEAD = ("#", "model", "paper", "clean", "AutoAttack", "lowest known", "unreliable", "architecture", "venue")
_RULE = ("---:", "---", "---", "---:", "---:", "---:", "---", "---", "---")


def markdown(tree: Tree) -> str:
    """A table for each board that has entries, ranked as RobustBench ranks: by the lowest robust accuracy known.

    Raises:
        InputError: If there is no such folder, or a file is no entry.
    """
    tree.require()
    entries: dict[str, list[tuple[str, Entry]]] = {}
    for place in tree.places():
        entries.setdefault(str(place.board), []).append((place.stem, Entry.read(place.entry)))
    return "\n\n".join(_board(BOARDS[board], rows) for board, rows in entries.items()) + "\n" if entries else ""


def _board(board: Board, rows: Iterable[tuple[str, Entry]]) -> str:
    ranked = sorted(rows, key=lambda row: -float(row[1].lowest_acc))
    title = f"### {board.dataset}, {board.threat.norm}, eps = {board.threat.eps_text}"
    lines = [_line(_HEAD), _line(_RULE), *(_line(_cells(rank, *row)) for rank, row in enumerate(ranked, 1))]
    return "\n".join([title, "", *lines])


def _cells(rank: int, stem: str, entry: Entry) -> Iterator[str]:
    link = entry.link.replace("(", "%28").replace(")", "%29")
    yield from (str(rank), _safe(stem), f"[{_safe(entry.name)}]({link})")
    yield from (f"{accuracy} %" for accuracy in (entry.clean_acc, entry.autoattack_acc, entry.lowest_acc))
    yield from ("yes" if entry.unreliable else "no", _safe(entry.architecture), _safe(entry.venue))


def _safe(text: str) -> str:
    """HTML is markup in Markdown, too, so entities stay; what else would end a cell or a link does not."""
    return "".join(f"\\{letter}" if letter in "|[]*_`\\" else letter for letter in text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
