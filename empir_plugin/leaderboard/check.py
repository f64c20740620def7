"""Check a leaderboard: compose every entry again from its sources and compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Set
from pathlib import Path

from empir_plugin._files.atomic import PARTIAL
from empir_plugin.errors import EmpirError, InputError
from empir_plugin.leaderboard.add import compose
from empir_plugin.leaderboard.eligibility import find_missing_records
from empir_plugin.leaderboard.entry import KEYS, Entry
from empir_plugin.leaderboard.evidence import Evidence
from empir_plugin.leaderboard.papers import Facts, require_stem
from empir_plugin.leaderboard.publication import STAGED
from empir_plugin.leaderboard.tree import Place, Problem, Tree, is_own, reason_of


def check(tree: Tree) -> list[Problem]:
    """Find everything that is wrong with a tree; nothing if all its own entries follow from their sources.

    What is unusual in files of others is not wrong: see :func:`notes`.

    Raises:
        InputError: If the folder does not exist.

    Example:
        >>> import tempfile
        >>> root = Path(tempfile.mkdtemp())
        >>> (root / "model_info").mkdir()
        >>> _ = (root / "model_info" / "Sen2020EMPIR.json").write_text("{}")
        >>> [problem.path.name for problem in check(Tree(root))]
        ['Sen2020EMPIR.json']
    """
    tree.require()
    places = [place for place in tree.places() if place.is_own]
    problems = [Problem(place.entry, reason) for place in places for reason in check_entry(tree, place)]
    return [*problems, *(problem for problem in _stray_files(tree) if _is_own(tree, problem.path))]


def notes(tree: Tree) -> list[Problem]:
    """What is unusual in the files of others: entries without sources in this tree, and whatever else is beside them.

    Raises:
        InputError: If the folder does not exist.

    Example:
        >>> import tempfile
        >>> board = Path(tempfile.mkdtemp(), "model_info", "cifar10", "Linf")
        >>> board.mkdir(parents=True)
        >>> _ = (board / "Standard.json").write_text('{"autoattack_acc": "0.0"}')
        >>> notes(Tree(board.parents[2]))[0].reason
        'link is missing'
    """
    tree.require()
    places = [place for place in tree.places() if not place.is_own]
    found = [Problem(place.entry, reason) for place in places for reason in _notes_on(place)]
    return [*found, *(problem for problem in _stray_files(tree) if not _is_own(tree, problem.path))]


def _notes_on(place: Place) -> Iterator[str]:
    try:
        entry = place.read_foreign()
    except InputError as error:
        yield f"left out: {reason_of(error, place)}"
        return
    yield from entry.notes
    yield from _compare_with_folder(entry.values.get("dataset"), entry.values.get("eps"), place)


def check_entry(tree: Tree, place: Place) -> list[str]:
    """Find everything that is wrong with one entry, in sentences."""
    try:
        require_stem(place.stem)
        entry = Entry.read(place.entry)
    except InputError as error:
        return [reason_of(error, place)]
    return [*_compare_with_folder(entry.dataset, entry.eps, place), *_compare_with_sources(entry, tree, place)]


def _compare_with_folder(dataset: object, eps: object, place: Place) -> Iterator[str]:
    if dataset != place.board.dataset:
        yield f"its dataset is {_plain(dataset)}, its folder is that of {place.board.dataset}"
    if eps != place.board.eps_text:
        yield f"its eps is {_plain(eps)}, entries on {place.board} have {_plain(place.board.eps_text)}"


def _compare_with_sources(entry: Entry, tree: Tree, place: Place) -> Iterator[str]:
    try:
        evidence = Evidence.read(place.evidence)
        findings = evidence.findings(tree.runs)
        yield from _compare_with_facts(findings.facts, place)
        expected = compose(findings, place.board).table()
    except EmpirError as error:
        yield str(error)
        return
    for name in find_missing_records(tree, evidence.model, place.board, [source.path for source in evidence.records]):
        yield f"{name} is a record of {evidence.model} on {place.board}, too: add the entry anew, with it"
    table = entry.table()
    for key in KEYS:
        if table.get(key) != expected.get(key):
            yield f"{key} is {_text(table.get(key))}, its sources make it {_text(expected.get(key))}"


def _compare_with_facts(facts: Facts, place: Place) -> Iterator[str]:
    if (facts.stem, facts.dataset) != (place.stem, place.board.dataset):
        yield f"entries of {facts.model} are named {facts.stem} on {facts.dataset}, not {place}"


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _text(value: object) -> str:
    return "left out" if value is None else json.dumps(value)


def _stray_files(tree: Tree) -> Iterator[Problem]:
    known = {path for place in tree.places() for path in (place.entry, place.evidence)}
    for folder, reason in (
        (tree.model_info, "no board has a file here: entries are <dataset>/<norm>/<Stem>.json"),
        (tree.evidence, "there is no entry that this is the evidence of"),
    ):
        for path in sorted(path for path in folder.rglob("*") if _is_stray(path, known)):
            yield Problem(path, reason)


def _is_stray(path: Path, known: Set[Path]) -> bool:
    """Whether a file belongs to no entry; the unfinished file of a running process does not count."""
    unfinished = path.name.startswith(".") and path.suffix in (PARTIAL, STAGED)
    return path.is_file() and path not in known and not unfinished and path.name not in UNAGGREGATED


UNAGGREGATED = ("unaggregated_results.csv", "unaggregated_results_3d.csv")
"""Where RobustBench keeps the accuracies under every corruption, beside the entries."""


def _is_own(tree: Tree, path: Path) -> bool:
    if path.is_relative_to(tree.evidence):
        return True
    return is_own(path, tree.evidence / path.relative_to(tree.model_info))
