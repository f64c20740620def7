"""The built documentation site: it builds strictly, shows every page, and loads nothing from elsewhere."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
MISSING = [name for name in ("mkdocs", "mkdocstrings", "material") if find_spec(name) is None]

pytestmark = [
    pytest.mark.skipif(not PAGES, reason="the source distribution has no docs/"),
    pytest.mark.skipif(bool(MISSING), reason=f"missing {', '.join(MISSING)}: pip install 'empir-plugin[docs]'"),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site")
    process = _build("--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(out))
    assert process.returncode == 0, process.stdout + process.stderr
    return out


def _build(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not --quiet: mkdocs counts only the warnings it logs, so --strict would have no effect.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", *arguments]
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)


class _Requests(HTMLParser):
    """Addresses that a browser requests when it shows a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(values.get("href", ""))
        elif tag != "a":
            self.addresses.append(values.get("src", ""))


def _external(page: str) -> list[str]:
    return [address for address in _Requests(page).addresses if re.match(r"(?:\w+:)?//", address)]


def test_it_builds_without_a_warning_and_shows_every_page(site: Path) -> None:
    for page in PAGES:
        built = (site / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert title is not None
        assert f">{title[1]}<" in built, page
    results = (site / "results.html").read_text(encoding="utf-8")
    assert 'href="repository/leaderboard/runs/empir-cifar-adaptive-1000.json"' in results
    copy = site / "repository" / "leaderboard" / "runs" / "empir-cifar-adaptive-1000.json"
    assert copy.read_bytes() == (ROOT / "leaderboard" / "runs" / copy.name).read_bytes()
    readme = (site / "readme.html").read_text(encoding="utf-8")
    assert 'href="results.html"' in readme
    assert "<svg" in (site / "architecture.html").read_text(encoding="utf-8")


def test_docstrings_are_rendered_without_roles(site: Path) -> None:
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r":(?:func|class|data|mod|meth):", text), page
    models = (site / "api" / "models.html").read_text(encoding="utf-8")
    assert 'id="empir_plugin.quantize_"' in models
    assert "Examples:" in models


def test_no_page_loads_anything_external(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert {page.name: _external(page.read_text(encoding="utf-8")) for page in pages} == {
        page.name: [] for page in pages
    }
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8"))
    assert _external('<a href="https://a.org">x</a><script src="https://b.org/x.js"></script>') == [
        "https://b.org/x.js"
    ]


def test_a_link_out_of_the_repository_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = importlib.import_module("mkdocs.exceptions")
    monkeypatch.syspath_prepend(ROOT / "tools")
    hooks = importlib.import_module("docs_hooks")

    def rewrite(text: str, page: str = "index.md") -> str:
        return hooks.rewrite_links(
            text, (DOCS / page).parent, DOCS, Path(page).parent, lambda path: f"copies/{path.name}"
        )

    assert rewrite("[a](../README.md)\n[b](tutorial.md)") == "[a](copies/README.md)\n[b](tutorial.md)"
    assert rewrite("[a](../../LICENSE#x)", "api/index.md") == "[a](../copies/LICENSE#x)"
    assert rewrite("[the runs](../leaderboard/runs)") == "the runs"
    assert rewrite("```\n[a](../missing)\n```") == "```\n[a](../missing)\n```"
    for target in ("../missing.json", "../../elsewhere"):
        with pytest.raises(exceptions.PluginError, match=f"file of the repository, got {re.escape(target)}"):
            rewrite(f"[a]({target})")


def test_a_warning_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](missing.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: a\n")
    process = _build("--config-file", str(tmp_path / "mkdocs.yml"), "--site-dir", str(tmp_path / "site"))
    assert process.returncode != 0
    assert "missing.md" in process.stderr
