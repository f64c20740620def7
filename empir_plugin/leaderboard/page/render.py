"""A tree as one page of HTML that needs nothing else: no network, no fonts, no other file.

What comes from data is escaped by Jinja. Beyond that, the page's own ``Content-Security-Policy`` lets a browser run and
apply only the one script and the one style sheet whose hashes it names, and load nothing.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from empir_plugin._files.atomic import write_atomically
from empir_plugin.errors import InputError
from empir_plugin.leaderboard.entry import unescape_html
from empir_plugin.leaderboard.page.charts import HEIGHT, PLOT, WIDTH, Chart, charts
from empir_plugin.leaderboard.page.details import Bar, Compared, Fact, Run, bars, compared, costs, footnote, run
from empir_plugin.leaderboard.page.published import Published, published
from empir_plugin.leaderboard.page.rows import (
    COLUMNS,
    Cell,
    Verdict,
    cells,
    counted,
    dataset_text,
    norm_text,
    verdict_of,
)
from empir_plugin.leaderboard.tree import Board, Tree


@dataclass(frozen=True)
class Shown:
    """One entry as a page shows it.

    Args:
        key: Its address on the page.
        row: The entry.
        title: Of the paper.
        authors: Of the paper.
        venue: Of the paper.
        architecture: Of the model.
        cells: Of the table.
        verdict: Of the audit.
        bars: What each attack left.
        runs: The records it rests on.
        others: Further records of the same weights.
        costs: What it costs.
        footnote: As markup.
    """

    key: str
    row: Published
    title: str
    authors: str
    venue: str
    architecture: str
    cells: tuple[Cell, ...]
    verdict: Verdict
    bars: tuple[Bar, ...]
    runs: tuple[Run, ...]
    others: tuple[Run, ...]
    costs: tuple[Fact, ...]
    footnote: Markup


@dataclass(frozen=True)
class Section:
    """One board as a page shows it.

    Args:
        key: Its address on the page.
        title: In words.
        images: Of the test set, in words.
        board: The board.
        entries: Ranked.
        claims: Of their papers.
        charts: Of all of them.
    """

    key: str
    title: str
    images: str
    board: Board
    entries: tuple[Shown, ...]
    claims: tuple[Compared, ...]
    charts: tuple[Chart, ...]


def render(tree: Tree) -> str:
    """The page of a tree; of one without entries, a page that says so. The same tree gives the same text.

    Raises:
        InputError: If there is no such folder.
        EvaluationError: If something in it is wrong: see :func:`empir_plugin.leaderboard.page.published.published`.

    Example:
        >>> import tempfile
        >>> "There are no entries yet" in render(Tree(Path(tempfile.mkdtemp())))
        True
    """
    sections = tuple(_section(board, rows) for board, rows in published(tree).items())
    style, script = _static("page.css"), _static("page.js")
    page = _environment().get_template("page.html.j2")
    return page.render(
        sections=sections,
        columns=COLUMNS,
        style=Markup(style),
        script=Markup(script),
        style_hash=_hash(style),
        script_hash=_hash(script),
        plot=PLOT,
        width=WIDTH,
        height=HEIGHT,
    )


def write_page(tree: Tree, out: Path) -> None:
    """Write the page of a tree into a file, or leave the file as it was.

    Raises:
        InputError: If there is no such folder, or the file cannot be written.
        EvaluationError: If something in the tree is wrong.
    """
    text = render(tree)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as error:
        raise InputError(f"the page cannot be written to {out} ({error.strerror or error}): choose another") from error


def _section(board: Board, rows: Sequence[Published]) -> Section:
    return Section(
        key=f"{board.dataset}-{board.threat.norm}",
        title=f"{dataset_text(board.dataset)}, {norm_text(str(board.threat.norm))}, ε = {board.threat.eps_text}",
        images=counted(board.n, "test image"),
        board=board,
        entries=tuple(_shown(board, rows)),
        claims=tuple(claim for row in rows for claim in compared(row)),
        charts=charts(rows),
    )


def _shown(board: Board, rows: Sequence[Published]) -> Iterator[Shown]:
    for rank, row in enumerate(rows, 1):
        entry = row.entry
        yield Shown(
            key=f"{board.dataset}-{board.threat.norm}-{row.place.stem}",
            row=row,
            title=unescape_html(entry.name),
            authors=unescape_html(entry.authors),
            venue=unescape_html(entry.venue),
            architecture=unescape_html(entry.architecture),
            cells=tuple(cells(rank, row)),
            verdict=verdict_of(row),
            bars=tuple(bars(row)),
            runs=tuple(map(run, row.records)),
            others=tuple(map(run, row.others)),
            costs=costs(row),
            footnote=footnote(row),
        )


@cache
def _environment() -> Environment:
    loader = PackageLoader("empir_plugin.leaderboard", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _static(name: str) -> str:
    """A file without data in it, surrounded by line breaks as it will be in the page."""
    return "\n" + files("empir_plugin.leaderboard").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
