"""Renders a leaderboard tree as one self-contained HTML page: no network, no fonts, no other files.

Jinja escapes all data. In addition, the page's own ``Content-Security-Policy`` names the hashes of its one script and
one style sheet, so that a browser runs and applies nothing else, and loads nothing.
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
from empir_plugin.leaderboard.page.charts import HEIGHT, PLOT, WIDTH, Bar, Chart, bars, charts
from empir_plugin.leaderboard.page.details import (
    ClaimComparison,
    Fact,
    RunSummary,
    compare_claims,
    costs,
    footnote,
    summarize_run,
)
from empir_plugin.leaderboard.page.entries import PublishedEntry, published_entries
from empir_plugin.leaderboard.page.table import COLUMNS, Cell, Column, Verdict, cells, columns_of, verdict_of
from empir_plugin.leaderboard.page.text import count_text, dataset_text, norm_text
from empir_plugin.leaderboard.tree import Board, Problem, Row, Tree, ranking


@dataclass(frozen=True)
class EntrySection:
    """One entry on the page.

    Args:
        key: Its HTML id.
        row: The entry with its sources.
        title: Of the paper.
        authors: Of the paper.
        venue: Of the paper.
        architecture: Of the model.
        cells: Of the ranking table.
        verdict: Of the audit.
        bars: Accuracy under each attack.
        runs: The records it is computed from.
        others: Other records of the same weights.
        costs: Relative to one full-precision network.
        footnote: As markup.
    """

    key: str
    row: PublishedEntry
    title: str
    authors: str
    venue: str
    architecture: str
    cells: tuple[Cell, ...]
    verdict: Verdict
    bars: tuple[Bar, ...]
    runs: tuple[RunSummary, ...]
    others: tuple[RunSummary, ...]
    costs: tuple[Fact, ...]
    footnote: Markup


@dataclass(frozen=True)
class RankedRow:
    """One entry in the ranking of a whole board, which has the entries of others, too. Texts are plain.

    Args:
        rank: From 1.
        stem: Name of the entry.
        key: HTML id of its section; empty for an entry of others.
        title: Of the paper.
        link: Address of the paper; may be empty.
        clean: Clean accuracy in percent.
        measured: Accuracy under AutoAttack or corruptions, in percent.
        lowest: The lowest robust accuracy known, in percent.
        architecture: Of the model.
        venue: Of the paper.
    """

    rank: int
    stem: str
    key: str
    title: str
    link: str
    clean: str
    measured: str
    lowest: str
    architecture: str
    venue: str


@dataclass(frozen=True)
class BoardSection:
    """One board on the page.

    Args:
        key: Its HTML id.
        title: Data set, norm and eps in words.
        images: Size of the test set in words.
        board: The board.
        entries: The tree's own entries, ranked.
        whole: The ranking of all entries; empty if there are none of others.
        claims: The claims of their papers, beside the measurements.
        charts: Of all entries.
    """

    key: str
    title: str
    images: str
    board: Board
    entries: tuple[EntrySection, ...]
    whole: tuple[RankedRow, ...]
    claims: tuple[ClaimComparison, ...]
    charts: tuple[Chart, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns of the ranking of its own entries."""
        return columns_of(self.board)


def render(tree: Tree) -> str:
    """Render the page of a tree. The same tree always gives the same text.

    Entries of others have no records here: they are shown in a ranking of the whole board. Files that cannot be ranked
    are named.

    Raises:
        InputError: If there is no such folder.
        EvaluationError: If the tree is inconsistent: see
            :func:`empir_plugin.leaderboard.page.entries.published_entries`.

    Example:
        >>> import tempfile
        >>> "There are no entries yet" in render(Tree(Path(tempfile.mkdtemp())))
        True
    """
    published = published_entries(tree)
    boards, left_out = ranking(tree)
    sections = tuple(_board_section(board, published.get(board, ()), rows) for board, rows in boards.items())
    style, script = _static("page.css"), _static("page.js")
    page = _environment().get_template("page.html.j2")
    return page.render(
        sections=sections,
        left_out=[Problem(problem.path.relative_to(tree.root), problem.reason) for problem in left_out],
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
    """Write the page of a tree to a file. If that fails, an existing file is unchanged.

    Raises:
        InputError: If there is no such folder, or the file cannot be written.
        EvaluationError: If the tree is inconsistent.
    """
    text = render(tree)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(out, text.encode())
    except OSError as error:
        raise InputError(f"the page cannot be written to {out} ({error.strerror or error}): choose another") from error


def _board_section(board: Board, rows: Sequence[PublishedEntry], ranked: Sequence[Row]) -> BoardSection:
    return BoardSection(
        key=_key(board),
        title=f"{dataset_text(board.dataset)}, {_threat(board)}",
        images=count_text(board.n, "test image"),
        board=board,
        entries=tuple(_entry_sections(board, rows)),
        whole=tuple(_whole(board, ranked)) if len(ranked) > len(rows) else (),
        claims=() if board.threat is None else tuple(claim for row in rows for claim in compare_claims(row)),
        charts=charts(rows) if rows else (),
    )


def _key(board: Board) -> str:
    return f"{board.dataset}-{board.threat_model}"


def _threat(board: Board) -> str:
    return "common corruptions" if board.threat is None else f"{norm_text(board.threat_model)}, ε = {board.eps_text}"


def _whole(board: Board, ranked: Sequence[Row]) -> Iterator[RankedRow]:
    for rank, (place, entry) in enumerate(ranked, 1):
        key = f"{_key(board)}-{place.stem}" if place.is_own else ""
        title, architecture, venue = map(unescape_html, (entry.name, entry.architecture, entry.venue))
        accuracies = entry.clean_acc, entry.board_acc, entry.lowest_acc
        yield RankedRow(rank, place.stem, key, title, entry.link, *accuracies, architecture, venue)


def _entry_sections(board: Board, rows: Sequence[PublishedEntry]) -> Iterator[EntrySection]:
    for rank, row in enumerate(rows, 1):
        entry = row.entry
        yield EntrySection(
            key=f"{_key(board)}-{row.place.stem}",
            row=row,
            title=unescape_html(entry.name),
            authors=unescape_html(entry.authors),
            venue=unescape_html(entry.venue),
            architecture=unescape_html(entry.architecture),
            cells=tuple(cells(rank, row)),
            verdict=verdict_of(row),
            bars=tuple(bars(row)),
            runs=tuple(map(summarize_run, row.records)),
            others=tuple(map(summarize_run, row.others)),
            costs=costs(row),
            footnote=footnote(row),
        )


@cache
def _environment() -> Environment:
    loader = PackageLoader("empir_plugin.leaderboard", "templates")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _static(name: str) -> str:
    """The text of the style sheet or the script, with the line break that precedes it in the page."""
    return "\n" + files("empir_plugin.leaderboard").joinpath("templates").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
