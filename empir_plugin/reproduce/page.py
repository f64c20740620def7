"""A report as one file of HTML that needs nothing else: no network, no script, no other file."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from empir_plugin.errors import EvaluationError
from empir_plugin.reproduce.document import Block, Cell, Code, Document, Link, Picture, Table, Text


def html(document: Document, figures: Path) -> str:
    """Write a document as HTML; its figures are in it as SVG, which a browser scales without loss.

    Args:
        document: The report.
        figures: Folder of the figures.

    Raises:
        EvaluationError: If a figure is missing.

    Example:
        >>> "<h1>Title</h1>" in html(Document("Title", (), ()), Path())
        True
    """
    style = _style()
    pictures = {block.stem: _inline(figures / f"{block.stem}.svg") for block in _pictures(document)}
    page = _environment().get_template("report.html.j2")
    return page.render(
        document=document, pictures=pictures, kind=_kind, links=_links, style=Markup(style), style_hash=_hash(style)
    )


def _pictures(document: Document) -> list[Picture]:
    return [block for section in document.sections for block in section.blocks if isinstance(block, Picture)]


def _kind(block: Block) -> str:
    kinds: dict[type[Block], str] = {Text: "text", Code: "code", Table: "table", Picture: "picture"}
    return kinds[type(block)]


def _links(cell: Cell) -> tuple[Link, ...]:
    return (cell,) if isinstance(cell, Link) else cell if isinstance(cell, tuple) else ()


def _inline(path: Path) -> str:
    """A figure as address: as an image, nothing in it can run, and no name in it clashes with another's."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EvaluationError(f"the figure {path} cannot be read ({error.strerror}): run again") from error
    return f"data:image/svg+xml;base64,{base64.b64encode(content).decode()}"


@cache
def _environment() -> Environment:
    loader = PackageLoader("empir_plugin.reproduce", "data")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _style() -> str:
    return "\n" + (files("empir_plugin.reproduce") / "data" / "report.css").read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
