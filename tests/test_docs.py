"""The documentation: what it shows runs, what it names exists, what it counts is on record, and it builds strictly."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import pytest

from empir_plugin.evaluation.record import Record

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "examples" / "blurred"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]
PACKAGES = "empir_plugin", "empir_plugin.attacks", "empir_plugin.evaluation", "empir_plugin.models"

pytestmark = pytest.mark.skipif(not PAGES, reason="the source distribution has no docs/")


@dataclass(frozen=True)
class Block:
    """Fenced code: its language, its title, a note in a comment above it, and its text."""

    language: str
    title: str
    note: str
    text: str


_FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^>\n]+) -->\n)?```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def _blocks(page: Path, language: str) -> list[Block]:
    found = [Block(**match.groupdict("")) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in found if block.language == language]


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# What it shows runs.


def _run(page: Path, images: int, notes: tuple[str, ...]) -> dict[str, Any]:
    names: dict[str, Any] = {}
    for block in _blocks(page, "python"):
        code = block.text.replace("n_examples=50", f"n_examples={images}")
        assert code != block.text or "n_examples" not in code, "so many images would take long"
        if block.note in notes and not block.title:
            exec(compile(code, _name(page), "exec"), names)
    return names


def test_the_tutorial_s_code_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = _run(DOCS / "tutorial.md", 4, ("",))
    shown = capsys.readouterr().out
    assert "3 layers at w4a4" in shown
    assert "3 layers at w2a2" in shown
    assert re.search(r"\d % clean\n\d+\.\d+ % under attack\n", shown)
    assert (tmp_path / "mine.json").is_file()
    assert len(names["attacks"]) == len(names["record"].attacks) == 2


@pytest.mark.slow
def test_the_tutorial_s_long_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = _run(DOCS / "tutorial.md", 32, ("", "takes minutes"))
    assert names["record"].protocol["name"] == "adaptive"
    assert names["report"].verdict in ("passed", "masked")


def test_the_first_page_s_code_runs(capsys: pytest.CaptureFixture[str]) -> None:
    record = _run(DOCS / "index.md", 2, ("",))["record"]
    assert capsys.readouterr().out == f"{record.clean_accuracy} {record.worst_case_accuracy}\n"


@pytest.mark.data
@pytest.mark.slow
def test_the_longer_attacks_run(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = _blocks(DOCS / "robust.md", "python")
    code = block.text.replace('"DIR"', repr(str(data_dir)))
    less = {"n_examples=1000": "n_examples=2", "queries=20_000": "queries=20", "steps=100": "steps=2"}
    for much, little in less.items():
        assert much in code
        code = code.replace(much, little)
    exec(compile(code, "docs/robust.md", "exec"), {})
    record = Record.read(tmp_path / "empir-mnist-at-longer-1000.json")
    committed = Record.read(ROOT / "leaderboard" / "runs" / "empir-mnist-at-longer-1000.json")
    assert [attack.name for attack in record.attacks] == [attack.name for attack in committed.attacks]
    assert record.data["n"] == 2


def test_ten_lines_are_ten() -> None:
    lines = _blocks(DOCS / "tutorial.md", "python")[0].text.splitlines()
    assert len([line for line in lines if line and not line.startswith(("import ", "from "))]) == 10


def test_every_python_block_runs_here_or_says_why_not() -> None:
    elsewhere = {"tutorial.md", "index.md", "robust.md"}
    for page in PAGES:
        for block in _blocks(page, "python"):
            ast.parse(block.text)
            assert block.title or block.note.startswith("not run: ") or page.name in elsewhere, (page, block.text)


def test_titled_blocks_are_the_example_package_s_own_text() -> None:
    titled = [block for lang in ("python", "toml") for block in _blocks(DOCS / "extend.md", lang) if block.title]
    assert {block.title for block in titled} >= {"pyproject.toml", "blurred/models.py", "blurred/attacks.py"}
    for block in titled:
        assert block.text in (EXAMPLE / block.title).read_text(encoding="utf-8"), block.title


# What it names exists.


def _commands(page: Path) -> Iterator[list[str]]:
    for block in _blocks(page, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            yield words


def _parse(command: click.Command, words: list[str]) -> None:
    """Parse a command line as click does, and run nothing."""
    name, *rest = words
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            inner = command.get_command(context, rest[0])
            assert inner is not None, words
            _parse(inner, rest)
    else:
        command.make_context(name, rest)


@pytest.fixture
def empir() -> click.Command:
    return importlib.import_module("empir_cli").main


@pytest.mark.parametrize("page", TEXTS, ids=_name)
def test_every_command_has_the_options_it_is_shown_with(
    page: Path, empir: click.Command, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    for words in _commands(page):
        environment = [word for word in words if re.match(r"[A-Z_]+=", word)]
        words = words[len(environment) :]
        if words[:1] == ["empir"]:
            _parse(empir, words)
        elif words[:1] == ["python"] and words[1].startswith("benchmarks/"):
            _parse(importlib.import_module(Path(words[1]).stem).main, words[1:])
        elif words[:1] == ["python"]:
            assert (ROOT / words[1]).is_file(), words
        for word in words:
            if word.startswith("--rb-"):
                pytestconfig.getoption(word)


def test_a_command_with_an_unknown_option_is_seen(empir: click.Command) -> None:
    with pytest.raises(click.NoSuchOption):
        _parse(empir, ["empir", "leaderboard", "check", "--thorough"])


_LINK = re.compile(r"\[[^\[\]]*\]\((?P<target>[^()\s]+)\)")


def _broken(page: Path, text: str) -> list[str]:
    """Links of a page that lead to no file, or to no heading."""
    found = []
    for match in _LINK.finditer(_prose(text)):
        target, _, anchor = match["target"].partition("#")
        path = page.parent / target if target else page
        if target.startswith(("https://", "http://")):
            continue
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            found.append(match["target"])
    return found


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=_name)
def test_links_lead_somewhere(page: Path) -> None:
    assert _broken(page, page.read_text(encoding="utf-8")) == []


def test_a_broken_link_is_seen() -> None:
    page = DOCS / "index.md"
    assert _broken(page, "[a](missing.md) [b](believe.md#missing) [c](believe.md#verdicts)") == [
        "missing.md",
        "believe.md#missing",
    ]


def _directives() -> list[str]:
    return [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text("utf-8"), re.MULTILINE)]


def _resolved(name: str) -> object:
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute)


def _public(package: str) -> list[str]:
    """What a package's ``__init__`` exports: the names imported as themselves."""
    source = (ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    aliases = [alias for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [f"{package}.{alias.name}" for alias in aliases if alias.asname == alias.name]


def test_every_public_name_is_in_the_reference_once() -> None:
    documented = [_resolved(name) for name in _directives()]
    assert len({id(each) for each in documented}) == len(documented), "each has one place"
    public = [name for package in PACKAGES for name in _public(package)]
    assert len(public) > 100
    lacking = [name for name in public if not any(_resolved(name) is each for each in documented)]
    assert not lacking, f"put `::: {lacking[0]}` into a page of docs/api" if lacking else ""


def test_references_into_the_reference_exist() -> None:
    known = {*_directives()}
    used = {name for page in PAGES for name in re.findall(r"\]\[(empir_plugin[\w.]*)\]", page.read_text("utf-8"))}
    assert used
    assert used <= known, sorted(used - known)


_FORBIDDEN = re.compile(r"(?<![\w.])/(?:work|root|home|mnt|Users)/|localhost|127\.0\.0\.1|index-url|pypi\.|\u2014")


@pytest.mark.parametrize("folder", ["docs", "examples", "tools", "mkdocs.yml"])
def test_nothing_in_it_belongs_to_one_machine(folder: str) -> None:
    root = ROOT / folder
    files = [root] if root.is_file() else [p for p in root.rglob("*") if p.suffix in (".md", ".py", ".toml", ".svg")]
    assert files
    assert [_name(path) for path in files if _FORBIDDEN.search(path.read_text(encoding="utf-8"))] == []
    assert _FORBIDDEN.search("see /home/me/data")


# What it counts is on record.


@pytest.fixture
def tools(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "tools")
    return importlib.import_module("docs_tables")


@pytest.mark.parametrize("page", ["architecture.md", "believe.md", "benchmarks.md", "robust.md"])
def test_tables_are_those_of_records_and_code(page: str, tools: ModuleType) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert tools.written(page, text) == text, "run python tools/docs_tables.py"
    wrong = re.sub(r"(<!-- [\w -]+ -->\n\n)", r"\1wrong ", text)
    assert wrong != text
    assert tools.written(page, wrong) == text, "and a wrong table is seen"
    with pytest.raises(ValueError, match="must have a block"):
        tools.written(page, text.replace("<!-- /", "<!-- "))


_MEASURED = re.compile(r"\d+(?:\.\d+)? %|\d+(?:\.\d+)? times|\| \d")


@pytest.mark.parametrize("page", ["index.md", "benchmarks.md", "architecture.md", "submit.md", "extend.md"])
def test_no_measured_number_stands_outside_of_the_tables(page: str) -> None:
    text = _prose((DOCS / page).read_text(encoding="utf-8"))
    text = re.sub(r"<!-- ([\w -]+) -->.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
    assert _MEASURED.findall(text) == []
    assert _MEASURED.findall("It is 6.1 times as fast, and leaves 0.2 %.") == ["6.1 times", "0.2 %"]


def test_the_picture_is_that_of_the_code(tools: ModuleType) -> None:
    rooms = tools.architecture
    assert rooms.unknown() == [], "give it a line in ROOMS of tools/architecture.py"
    assert (DOCS / "rooms.svg").read_text(encoding="utf-8") == rooms.picture(), "run python tools/docs_tables.py"
    assert all(f">{room.name}</text>" in rooms.picture() for room in rooms.rooms())


def test_every_room_imports_only_from_those_above_it(tools: ModuleType) -> None:
    rooms = tools.architecture
    found = rooms.imports()
    assert {"models", "zoo", "attacks", "evaluation", "leaderboard"} <= found.keys()
    assert "models" in found["attacks"]
    assert rooms.violations(found) == []


def test_an_import_from_below_is_seen(tools: ModuleType) -> None:
    rooms = tools.architecture
    late = "def f():\n    from empir_plugin.leaderboard import add\n    import click\n    import torch"
    names = frozenset(filter(None, map(rooms._room_or_package, rooms.modules(late))))
    assert names == {"leaderboard", "click", "torch"}
    assert rooms.violations({"attacks": names}) == [
        "attacks imports from leaderboard, which comes after it",
        "attacks imports click, which is for empir_cli",
    ]
    assert rooms.violations({"empir_cli": names}) == []


# It builds strictly.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("mkdocs") is None or find_spec("mkdocstrings") is None or find_spec("material") is None:
        pytest.skip("the documentation cannot be built: pip install 'empir-plugin[docs]'")
    out = tmp_path_factory.mktemp("site")
    done = _build("--config-file", str(ROOT / "mkdocs.yml"), "--site-dir", str(out))
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def _build(*arguments: str) -> subprocess.CompletedProcess[str]:
    # Not --quiet: what is not logged is not counted, and nothing would be strict.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", *arguments]
    settings = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(command, cwd=ROOT, env=settings, capture_output=True, text=True)


class _Loaded(HTMLParser):
    """Addresses that a browser loads by itself when it shows a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {key: value or "" for key, value in attrs}
        if tag == "link" and values.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(values.get("href", ""))
        elif tag != "a":
            self.found.append(values.get("src", ""))


def _from_elsewhere(page: str) -> list[str]:
    return [address for address in _Loaded(page).found if re.match(r"(?:\w+:)?//", address)]


def test_it_builds_without_a_warning_and_every_page_has_its_text(site: Path) -> None:
    for page in PAGES:
        built = (site / page.relative_to(DOCS)).with_suffix(".html").read_text(encoding="utf-8")
        title = re.search(r"^# (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert title is not None
        assert f">{title[1]}<" in built, page
    readme = (site / "readme.html").read_text(encoding="utf-8")
    assert 'href="repository/leaderboard/runs/empir-cifar-adaptive-1000.json"' in readme
    carried = site / "repository" / "leaderboard" / "runs" / "empir-cifar-adaptive-1000.json"
    assert carried.read_bytes() == (ROOT / "leaderboard" / "runs" / carried.name).read_bytes()
    assert "<svg" in (site / "architecture.html").read_text(encoding="utf-8")


def test_docstrings_are_read_as_they_are_meant(site: Path) -> None:
    for page in (site / "api").glob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert not re.search(r":(?:func|class|data|mod|meth):", text), page
    models = (site / "api" / "models.html").read_text(encoding="utf-8")
    assert 'id="empir_plugin.quantize_"' in models
    assert "Examples:" in models


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    assert {page.name: _from_elsewhere(page.read_text(encoding="utf-8")) for page in pages} == {
        page.name: [] for page in pages
    }
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//", sheet.read_text(encoding="utf-8"))
    assert _from_elsewhere('<a href="https://a.org">x</a><script src="https://b.org/x.js"></script>') == [
        "https://b.org/x.js"
    ]


def test_a_link_out_of_the_repository_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    exceptions = pytest.importorskip("mkdocs.exceptions", reason="no mkdocs: pip install 'empir-plugin[docs]'")
    monkeypatch.syspath_prepend(ROOT / "tools")
    hooks = importlib.import_module("docs_hooks")

    def rewritten(text: str, page: str = "index.md") -> str:
        return hooks.rewritten(text, (DOCS / page).parent, DOCS, Path(page).parent, lambda path: f"copies/{path.name}")

    assert rewritten("[a](../README.md)\n[b](tutorial.md)") == "[a](copies/README.md)\n[b](tutorial.md)"
    assert rewritten("[a](../../LICENSE#x)", "api/index.md") == "[a](../copies/LICENSE#x)"
    assert rewritten("[the runs](../leaderboard/runs)") == "the runs"
    assert rewritten("```\n[a](../missing)\n```") == "```\n[a](../missing)\n```"
    for target in ("../missing.json", "../../elsewhere"):
        with pytest.raises(exceptions.PluginError, match="leads to no file of the repository"):
            rewritten(f"[a]({target})")


def test_a_warning_fails_the_build(tmp_path: Path) -> None:
    if find_spec("mkdocs") is None or find_spec("material") is None:
        pytest.skip("the documentation cannot be built: pip install 'empir-plugin[docs]'")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# A\n\n[b](missing.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: a\n")
    done = _build("--config-file", str(tmp_path / "mkdocs.yml"), "--site-dir", str(tmp_path / "site"))
    assert done.returncode != 0
    assert "missing.md" in done.stderr
