"""What mkdocs does beyond its plugins: the README is a page, and files outside ``docs`` that pages link to are carried.

A link such as ``../benchmarks/records/attacks.json`` is written as it works in the repository. On the site it leads to
a copy of that file, taken when the site is built, so that a reader gets from a number to its record without a network.
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
"""Page of the site that is made from the repository's README."""
COPIES = "repository"
"""Folder of the site for copies of the repository's files."""

_LINK = re.compile(r"\[(?P<text>[^\[\]]*)\]\((?P<target>(?![a-z]+:|#)[^()\s#]+)(?P<anchor>#[^()\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as a page."""
    files.append(File.generated(config, README, content=(ROOT / "README.md").read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Send links that leave ``docs`` to the page or the copy that stands for their target."""
    source = page.file.src_uri
    folder = ROOT if source == README else Path(config.docs_dir, source).parent

    def carried(path: Path) -> str:
        if path == ROOT / "README.md":
            return README
        name = f"{COPIES}/{path.relative_to(ROOT).as_posix()}"
        name = f"{name}.txt" if path.suffix == ".md" else name  # mkdocs would make another page of it
        if files.get_file_from_path(name) is None:
            files.append(File.generated(config, name, abs_src_path=str(path)))
        return name

    return rewritten(markdown, folder, Path(config.docs_dir), Path(source).parent, carried)


def rewritten(markdown: str, folder: Path, docs: Path, here: Path, carried: Callable[[Path], str]) -> str:
    """Markdown with every link out of ``docs`` replaced.

    Args:
        markdown: Of a page.
        folder: Where its relative links start.
        docs: The folder of pages; links into it stay as they are.
        here: Folder of the page on the site.
        carried: From a file of the repository to what stands for it on the site.

    Raises:
        PluginError: If a link leads to nothing, or out of the repository.
    """

    def replaced(match: re.Match[str]) -> str:
        path = Path(os.path.normpath(folder / match["target"]))
        if path.is_relative_to(docs) and folder != ROOT:
            return match[0]
        if not path.exists() or not path.is_relative_to(ROOT):
            raise PluginError(f"{folder.name}: the link to {match['target']} leads to no file of the repository")
        if path.is_dir():
            return match["text"]
        target = path.relative_to(docs).as_posix() if path.is_relative_to(docs) else carried(path)
        return f"[{match['text']}]({os.path.relpath(target, here)}{match['anchor'] or ''})"

    return "".join(_LINK.sub(replaced, line) if prose else line for prose, line in _lines(markdown))


def _lines(markdown: str) -> Iterator[tuple[bool, str]]:
    """Lines, and whether each is prose: outside of fenced code."""
    inside = False
    for line in markdown.splitlines(keepends=True):
        fence = line.lstrip().startswith("```")
        yield not (inside or fence), line
        inside = inside != fence
