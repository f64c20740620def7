"""The README: short, in the expected order, and consistent with CITATION.cff."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CITATION = ROOT / "CITATION.cff"


@pytest.fixture
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_it_has_at_most_8_kb(readme: str) -> None:
    assert len(readme.encode()) <= 8000


def test_its_sections_are_in_the_usual_order(readme: str) -> None:
    assert re.findall(r"^## (.+)$", readme, re.MULTILINE) == [
        "Installation", "Quickstart", "Results", "Models", "Command line", "Documentation", "Citation",
    ]  # fmt: skip


def test_its_two_commands_do_everything_on_a_fresh_machine(readme: str) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert blocks[:2] == ["pip install . && empir evaluate empir-cifar\n", 'pip install -e ".[test]" && pytest\n']


def test_ci_runs_the_test_command(readme: str) -> None:
    if not (ROOT / ".ci" / "run").is_file():
        pytest.skip("the source distribution has no .ci/")
    command = (ROOT / ".ci" / "run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert re.sub(r" --quiet|bash -c|'", "", command).strip() in readme


def test_the_bibtex_entries_agree_with_the_citation_file(readme: str) -> None:
    if not CITATION.is_file():
        pytest.skip("the source distribution has no CITATION.cff")
    yaml = pytest.importorskip("yaml")
    citation = yaml.safe_load(CITATION.read_text(encoding="utf-8"))
    software, paper = (_fields(entry) for entry in re.findall(r"^@\w+\{.*?^\}", readme, re.MULTILINE | re.DOTALL))
    assert software == {
        "title": citation["title"],
        "author": citation["authors"][0]["name"],
        "version": citation["version"],
        "license": citation["license"],
    }
    reference = citation["references"][0]
    assert paper == {
        "title": reference["title"],
        "author": " and ".join(f"{each['family-names']}, {each['given-names']}" for each in reference["authors"]),
        "booktitle": reference["collection-title"],
        "year": str(reference["year"]),
        "url": reference["url"],
    }


def _fields(entry: str) -> dict[str, str]:
    """The fields of a BibTeX entry, without braces."""
    fields = re.findall(r"^  (\w+) *= \{(.*)\},?$", entry, re.MULTILINE)
    return {name: re.sub(r"[{}]", "", value) for name, value in fields}
