"""Hooks for mkdocs: add the README as a page, and copy files outside ``docs`` that pages link to.

A link such as ``../benchmarks/records/attacks.json`` works in the repository. On the site it leads to a copy of that
file, made when the site is built, so readers can follow a number to its record offline.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
README = "readme.md"
"""The page made from the repository's README."""
COPIES = "repository"
"""The folder of the site for copies of files."""

_LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>(?![a-z]+:|#)[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as a page."""
    files.append(File.generated(config, README, content=(ROOT / "README.md").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to files outside ``docs`` by links to their page or copy."""
    source = page.file.src_uri
    folder = ROOT if source == README else Path(config.docs_dir, source).parent

    def copy_of(path: Path) -> str:
        if path == ROOT / "README.md":
            return README
        name = f"{COPIES}/{path.relative_to(ROOT).as_posix()}"
        name = f"{name}.txt" if path.suffix == ".md" else name  # mkdocs would build a page from it
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        return name

    return rewrite_links(markdown, folder, Path(config.docs_dir), Path(source).parent, copy_of)


def rewrite_links(markdown: str, folder: Path, docs: Path, here: Path, copy_of: Callable[[Path], str]) -> str:
    """Replace every link to a file outside ``docs``.

    Args:
        markdown: The text of a page.
        folder: The folder its relative links start from.
        docs: The folder of pages; links into it are unchanged.
        here: The folder of the page on the site.
        copy_of: Maps a file of the repository to its copy on the site.

    Raises:
        PluginError: If a link leads to a missing file, or out of the repository.
    """

    def replace(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match["target"]))
        if path.is_relative_to(docs) and folder != ROOT:
            return match[0]
        if not path.exists() or not path.is_relative_to(ROOT):
            raise PluginError(f"{folder.name}: a link must lead to a file of the repository, got {match['target']}")
        if path.is_dir():
            return match["text"]
        target = path.relative_to(docs).as_posix() if path.is_relative_to(docs) else copy_of(path)
        return f"[{match['text']}]({os.path.relpath(target, here)}{match['anchor'] or ''})"

    return "".join(_LINK.sub(replace, line) if prose else line for prose, line in _lines(markdown))


def _lines(markdown: str) -> Iterator[tuple[bool, str]]:
    """Lines, and whether each is outside of fenced code."""
    inside = False
    for line in markdown.splitlines(keepends=True):
        fence = line.lstrip().startswith("```")
        yield not (inside or fence), line
        inside = inside != fence
