"""Boards, and the folder of a leaderboard: entries as RobustBench lays them out, their sources, and their tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from empir_plugin._files.atomic import replacing, write_atomically
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.evidence import Evidence, SourceFile


@dataclass(frozen=True)
class Board:
    """The ranking of models on one data set under one threat.

    Args:
        dataset: Name of the data set.
        threat: Of all its entries.
        n: Number of test images that an entry must cover.
        in_robustbench: Whether RobustBench (https://robustbench.github.io) has this board.
    """

    dataset: str
    threat: Threat
    n: int = 10_000
    in_robustbench: bool = True

    @property
    def folder(self) -> PurePosixPath:
        """Folder of its entries below ``model_info``, as in RobustBench."""
        return PurePosixPath(self.dataset, str(self.threat.norm))

    def __str__(self) -> str:
        return str(self.folder)


def _board(dataset: str, threat: str, n: int = 10_000, *, in_robustbench: bool = True) -> Board:
    return Board(dataset, Threat.parse(threat), n, in_robustbench)


_ALL = (
    _board("cifar10", "Linf:8/255"),
    _board("cifar10", "L2:0.5"),
    _board("cifar100", "Linf:8/255"),
    _board("imagenet", "Linf:4/255", 5_000),
    _board("mnist", "Linf:0.3", in_robustbench=False),
)

BOARDS: Mapping[str, Board] = MappingProxyType({str(board): board for board in _ALL})
"""Every board by its folder, such as ``"cifar10/Linf"``."""


def board_of(dataset: str, norm: str) -> Board:
    """The board of a data set and a norm.

    Raises:
        InputError: If there is no such board.

    Example:
        >>> str(board_of("cifar10", "Linf").threat)
        'Linf:8/255'
    """
    folder = f"{dataset}/{norm}"
    if folder not in BOARDS:
        raise InputError(f"a board is one of {', '.join(BOARDS)}, got {folder!r}: choose one of them")
    return BOARDS[folder]


@dataclass(frozen=True)
class Place:
    """Where the files of one entry are.

    Args:
        board: Of the entry.
        stem: Of its file.
        entry: Path of the entry.
        evidence: Path of the evidence file, which names its sources.
    """

    board: Board
    stem: str
    entry: Path
    evidence: Path

    def __str__(self) -> str:
        return f"{self.board}/{self.stem}"


@dataclass(frozen=True)
class Tree:
    """The folder of a leaderboard.

    Args:
        root: Contains ``model_info`` (entries) and ``runs`` (records and other files of experiments).

    Example:
        >>> Tree(Path("board")).place(board_of("cifar10", "Linf"), "Sen2020EMPIR").entry.as_posix()
        'board/model_info/cifar10/Linf/Sen2020EMPIR.json'
    """

    root: Path

    @property
    def model_info(self) -> Path:
        """The folder of entries, for RobustBench's ``generate_leaderboard``."""
        return self.root / "model_info"

    @property
    def runs(self) -> Path:
        """The folder of run records."""
        return self.root / "runs"

    def require(self) -> None:
        """Check that the folder exists.

        Raises:
            InputError: If it does not.
        """
        if not self.root.is_dir():
            raise InputError(f"there is no leaderboard at {self.root}: pass its folder as --tree")

    @property
    def evidence(self) -> Path:
        """The folder of evidence files."""
        return self.runs / "entries"

    def place(self, board: Board, stem: str) -> Place:
        """Where an entry with this stem is, or would be."""
        file = f"{stem}.json"
        return Place(board, stem, self.model_info / board.folder / file, self.evidence / board.folder / file)

    def places(self) -> Iterator[Place]:
        """Places of all entries, board by board."""
        for board in BOARDS.values():
            for path in sorted((self.model_info / board.folder).glob("*.json")):
                yield self.place(board, path.stem)


def source_file(tree: Tree, path: Path) -> SourceFile:
    """A file as a source of an entry.

    Args:
        tree: The leaderboard.
        path: In its folder of runs; or elsewhere, from where :func:`copy_to_runs` copies it to the top of that folder.

    Raises:
        InputError: If the file cannot be read.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check the path") from error
    inside = path.resolve().is_relative_to(tree.runs.resolve())
    name = path.resolve().relative_to(tree.runs.resolve()).as_posix() if inside else path.name
    return SourceFile(name, digest)


def copy_to_runs(tree: Tree, path: Path, source: SourceFile) -> None:
    """Copy a file into the folder of runs, unless it is there already.

    Args:
        tree: The leaderboard.
        path: Of the file.
        source: The file as a source: see :func:`source_file`.

    Raises:
        EvaluationError: If the folder has another file of this name.
        InputError: If the file cannot be written.
    """
    target = tree.runs / source.path
    try:
        if target.exists():
            if hashlib.sha256(target.read_bytes()).hexdigest() != source.sha256:
                raise EvaluationError(f"{target} holds something else: rename {path}")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, path.read_bytes())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be copied to {target} ({reason}): choose another tree") from error


def publish(place: Place, entry: Entry, evidence: Evidence) -> None:
    """Write an entry and its evidence file: both or neither.

    If the entry exists, its unknown keys and the order of its keys are kept.

    Raises:
        InputError: If the files cannot be written, or the existing file is not an entry.
    """
    if place.entry.exists():
        entry = entry.in_place_of(Entry.read(place.entry))
    try:
        with _replacing(place.evidence) as evidence_file, _replacing(place.entry) as entry_file:
            evidence_file.write_bytes(evidence.to_json().encode())
            entry_file.write_bytes(entry.to_json().encode())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the entry cannot be written to {place.entry} ({reason}): choose another tree") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        yield partial


_HEAD = ("#", "model", "paper", "clean", "AutoAttack", "lowest known", "unreliable", "architecture", "venue")
_ALIGNMENT = ("---:", "---", "---", "---:", "---:", "---:", "---", "---", "---")


def markdown_tables(tree: Tree) -> str:
    """A Markdown table for each board with entries, ranked as in RobustBench: by the lowest robust accuracy known.

    Raises:
        InputError: If the folder does not exist, or a file is not an entry.
    """
    tree.require()
    entries: dict[str, list[tuple[str, Entry]]] = {}
    for place in tree.places():
        entries.setdefault(str(place.board), []).append((place.stem, Entry.read(place.entry)))
    return "\n\n".join(_table(BOARDS[board], rows) for board, rows in entries.items()) + "\n" if entries else ""


def _table(board: Board, rows: Iterable[tuple[str, Entry]]) -> str:
    ranked = sorted(rows, key=lambda row: -float(row[1].lowest_acc))
    title = f"### {board.dataset}, {board.threat.norm}, eps = {board.threat.eps_text}"
    lines = [_line(_HEAD), _line(_ALIGNMENT), *(_line(_cells(rank, *row)) for rank, row in enumerate(ranked, 1))]
    return "\n".join([title, "", *lines])


def _cells(rank: int, stem: str, entry: Entry) -> Iterator[str]:
    link = entry.link.replace("(", "%28").replace(")", "%29")
    yield from (str(rank), _escape_markdown(stem), f"[{_escape_markdown(entry.name)}]({link})")
    yield from (f"{accuracy} %" for accuracy in (entry.clean_acc, entry.autoattack_acc, entry.lowest_acc))
    yield "yes" if entry.unreliable else "no"
    yield from (_escape_markdown(text) for text in (entry.architecture, entry.venue))


def _escape_markdown(text: str) -> str:
    """Text of an entry without anything that would end a cell or a link; its HTML entities are valid Markdown."""
    return "".join(f"\\{letter}" if letter in "|[]*_`\\" else letter for letter in text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
