"""The documentation: its code runs, its commands and links exist, and the reference is complete."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from empir_plugin.evaluation.record import Record
from empir_plugin.models.layers import is_full_precision

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
EXAMPLE = ROOT / "examples" / "blurred"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [ROOT / "README.md", *PAGES]
PACKAGES = "empir_plugin", "empir_plugin.attacks", "empir_plugin.evaluation", "empir_plugin.models"

pytestmark = pytest.mark.skipif(not PAGES, reason="the source distribution has no docs/")


@dataclass(frozen=True)
class Block:
    """Fenced code: its language, its title, the note in the comment above it, and its text."""

    language: str
    title: str
    note: str
    text: str


_FENCE = re.compile(
    r"^(?:<!-- (?P<note>[^>\n]+) -->\n)?```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


def _blocks(page: Path, language: str) -> list[Block]:
    blocks = [Block(**match.groupdict("")) for match in _FENCE.finditer(page.read_text(encoding="utf-8"))]
    return [block for block in blocks if block.language == language]


def _prose(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# Code.


def _run(page: Path, images: int, notes: tuple[str, ...] = ("",)) -> dict[str, Any]:
    """Run the code of a page on fewer images, except blocks with other notes, and return its variables."""
    names: dict[str, Any] = {}
    for block in _blocks(page, "python"):
        code = block.text.replace("n_examples=50", f"n_examples={images}")
        assert code != block.text or "n_examples" not in code, "write n_examples=50, which this test replaces"
        if block.note in notes and not block.title:
            exec(compile(code, _name(page), "exec"), names)
    return names


def test_the_code_of_the_tutorial_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names = _run(DOCS / "tutorial.md", 4)
    shown = capsys.readouterr().out
    assert "3 layers at w4a4" in shown
    assert "3 layers at w2a2" in shown
    assert re.search(r"\d % clean\n\d+\.\d+ % under attack\n", shown)
    assert (tmp_path / "mine.json").is_file()
    assert len(names["attacks"]) == len(names["record"].attacks) == 2


@pytest.mark.slow
def test_the_slow_code_of_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = _run(DOCS / "tutorial.md", 32, ("", "takes minutes"))
    assert names["record"].protocol["name"] == "adaptive"
    assert names["report"].verdict in ("passed", "masked")


@pytest.mark.parametrize("page", [ROOT / "README.md", DOCS / "index.md"], ids=_name)
def test_the_code_of_the_first_pages_runs(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = _run(page, 2)["record"]
    assert capsys.readouterr().out == f"{record.clean_accuracy} {record.worst_case_accuracy}\n"


def test_the_code_of_the_evaluation_guide_runs(capsys: pytest.CaptureFixture[str]) -> None:
    record = _run(DOCS / "evaluate.md", 2)["record"]
    assert capsys.readouterr().out == f"{record.worst_case_accuracy}\n"


def test_the_code_of_the_quantization_guide_runs() -> None:
    with pytest.warns(UserWarning, match="without weights.*custom_checkpoint="):
        names = _run(DOCS / "quantize.md", 2)
    assert "3 layers at w4a4" in str(names["report"])
    assert [is_full_precision(member) for member in names["ensemble"].members] == [True, False, False]


@pytest.mark.data
@pytest.mark.slow
def test_the_code_of_the_longer_attacks_runs(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (block,) = _blocks(DOCS / "robust.md", "python")
    code = block.text.replace('"DIR"', repr(str(data_dir)))
    shorter = {"n_examples=1000": "n_examples=2", "queries=20_000": "queries=20", "steps=100": "steps=2"}
    for setting, replacement in shorter.items():
        assert setting in code
        code = code.replace(setting, replacement)
    exec(compile(code, "docs/robust.md", "exec"), {})
    record = Record.read(tmp_path / "empir-mnist-at-longer-1000.json")
    committed = Record.read(ROOT / "leaderboard" / "runs" / "empir-mnist-at-longer-1000.json")
    assert [attack.name for attack in record.attacks] == [attack.name for attack in committed.attacks]
    assert record.data["n"] == 2


def test_the_tutorial_s_ensemble_takes_ten_lines() -> None:
    lines = _blocks(DOCS / "tutorial.md", "python")[0].text.splitlines()
    assert len([line for line in lines if line and not line.startswith(("import ", "from "))]) == 10


def test_the_call_of_another_library_breaks_every_image() -> None:
    pytest.importorskip("torchattacks", reason="torchattacks is not installed: see benchmarks/peers.txt")
    (block,) = _blocks(DOCS / "peers.md", "python")
    names: dict[str, Any] = {}
    exec(compile(block.text, "docs/peers.md", "exec"), names)
    assert names["accuracy"] == 0


def test_every_python_block_is_run_or_says_why_not() -> None:
    run = {
        "README.md",
        "docs/evaluate.md",
        "docs/index.md",
        "docs/peers.md",
        "docs/quantize.md",
        "docs/robust.md",
        "docs/tutorial.md",
    }
    for page in TEXTS:
        for block in _blocks(page, "python"):
            ast.parse(block.text)
            assert block.title or block.note.startswith("not run: ") or _name(page) in run, (page, block.text)


def test_titled_blocks_are_from_the_example_package() -> None:
    titled = [block for lang in ("python", "toml") for block in _blocks(DOCS / "extend.md", lang) if block.title]
    assert {block.title for block in titled} >= {"pyproject.toml", "blurred/models.py", "blurred/attacks.py"}
    for block in titled:
        assert block.text in (EXAMPLE / block.title).read_text(encoding="utf-8"), block.title


# Commands, links, names.


def _commands(page: Path) -> Iterator[list[str]]:
    for block in _blocks(page, "bash"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "&&" in words:
                yield words[: words.index("&&")]
                words = words[words.index("&&") + 1 :]
            yield words


def _parse(command: click.Command, words: list[str]) -> None:
    """Parse a command line as click does, without running it."""
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
def test_commands_exist_with_their_options(
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


def test_an_unknown_option_is_found(empir: click.Command) -> None:
    with pytest.raises(click.NoSuchOption):
        _parse(empir, ["empir", "leaderboard", "check", "--thorough"])


_LINK = re.compile(r"\[[^\[\]]*\]\((?P<target>[^()\s]+)\)")


def _broken(page: Path, text: str) -> list[str]:
    """Links of a page to missing files or headings."""
    broken = []
    for match in _LINK.finditer(_prose(text)):
        target, _, anchor = match["target"].partition("#")
        path = page.parent / target if target else page
        if target.startswith(("https://", "http://")):
            continue
        if not path.exists() or (anchor and anchor not in _anchors(path)):
            broken.append(match["target"])
    return broken


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", _prose(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


@pytest.mark.parametrize("page", TEXTS, ids=_name)
def test_links_are_not_broken(page: Path) -> None:
    assert _broken(page, page.read_text(encoding="utf-8")) == []


def test_broken_links_are_found() -> None:
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
    """The names a package exports: its ``__all__``, or the names imported as themselves."""
    exported = getattr(importlib.import_module(package), "__all__", None)
    if exported is not None:
        return [f"{package}.{name}" for name in exported]
    source = (ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8")
    aliases = [alias for node in ast.parse(source).body if isinstance(node, ast.ImportFrom) for alias in node.names]
    return [f"{package}.{alias.name}" for alias in aliases if alias.asname == alias.name]


def test_every_public_name_is_in_the_reference_once() -> None:
    documented = [_resolved(name) for name in _directives()]
    assert len({id(each) for each in documented}) == len(documented), "a name is documented twice"
    public = [name for package in PACKAGES for name in _public(package)]
    assert len(public) > 100
    missing = [name for name in public if not any(_resolved(name) is each for each in documented)]
    assert missing == [], "add `::: NAME` to a page of docs/api"


def test_links_into_the_reference_exist() -> None:
    known = {*_directives()}
    used = {name for page in PAGES for name in re.findall(r"\]\[(empir_plugin[\w.]*)\]", page.read_text("utf-8"))}
    assert used
    assert used <= known, sorted(used - known)


_FORBIDDEN = re.compile(r"(?<![\w.])/(?:work|root|home|mnt|Users)/|localhost|127\.0\.0\.1|index-url|pypi\.|\u2014")


@pytest.mark.parametrize("folder", ["docs", "examples", "tools", "mkdocs.yml"])
def test_nothing_depends_on_one_machine(folder: str) -> None:
    root = ROOT / folder
    files = [root] if root.is_file() else [p for p in root.rglob("*") if p.suffix in (".md", ".py", ".toml", ".svg")]
    assert files
    assert [_name(path) for path in files if _FORBIDDEN.search(path.read_text(encoding="utf-8"))] == []
    assert _FORBIDDEN.search("see /home/me/data")
