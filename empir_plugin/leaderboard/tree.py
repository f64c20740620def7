"""The folder of a leaderboard: entries as RobustBench lays them out, and beside them what they rest on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from empir_plugin._files.atomic import replacing, write_atomically
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.leaderboard.entry import Entry
from empir_plugin.leaderboard.evidence import Evidence, Source


@dataclass(frozen=True)
class Board:
    """One leaderboard.

    Args:
        dataset: Name of the data set.
        threat: Norm and radius of all its entries.
        n: Images of the test set it asks for.
        in_robustbench: Whether RobustBench (https://robustbench.github.io) keeps it; otherwise it is ours alone.
    """

    dataset: str
    threat: Threat
    n: int = 10_000
    in_robustbench: bool = True

    @property
    def folder(self) -> PurePosixPath:
        """Where RobustBench's layout keeps its entries, below ``model_info``."""
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
        InputError: If there is none.

    Example:
        >>> str(board_of("cifar10", "Linf").threat)
        'Linf:8/255'
    """
    folder = f"{dataset}/{norm}"
    if folder not in BOARDS:
        raise InputError(f"a board is one of {', '.join(BOARDS)}, got {folder!r}: entries stand on no other")
    return BOARDS[folder]


@dataclass(frozen=True)
class Place:
    """Where the files of one entry are.

    Args:
        board: It stands on.
        stem: Of its file.
        entry: The entry, as RobustBench has it.
        evidence: The names of the files it rests on.
    """

    board: Board
    stem: str
    entry: Path
    evidence: Path

    def __str__(self) -> str:
        return f"{self.board}/{self.stem}"


@dataclass(frozen=True)
class Tree:
    """A leaderboard's folder.

    Args:
        root: Holds ``model_info`` (entries) and ``runs`` (records and other files of experiments).

    Example:
        >>> from empir_plugin.leaderboard.tree import board_of
        >>> Tree(Path("board")).place(board_of("cifar10", "Linf"), "Sen2020EMPIR").entry.as_posix()
        'board/model_info/cifar10/Linf/Sen2020EMPIR.json'
    """

    root: Path

    @property
    def model_info(self) -> Path:
        """The folder RobustBench's ``generate_leaderboard`` takes."""
        return self.root / "model_info"

    @property
    def runs(self) -> Path:
        """The folder of run records."""
        return self.root / "runs"

    def require(self) -> None:
        """Refuse a folder that is not there.

        Raises:
            InputError: If it is not.
        """
        if not self.root.is_dir():
            raise InputError(f"there is no leaderboard at {self.root}: pass its folder as --tree")

    @property
    def evidence(self) -> Path:
        """The folder that names the sources of each entry."""
        return self.runs / "entries"

    def place(self, board: Board, stem: str) -> Place:
        """Where an entry of that stem is, or would be."""
        file = f"{stem}.json"
        return Place(board, stem, self.model_info / board.folder / file, self.evidence / board.folder / file)

    def places(self) -> Iterator[Place]:
        """Of the entries that are there, board by board."""
        for board in BOARDS.values():
            for path in sorted((self.model_info / board.folder).glob("*.json")):
                yield self.place(board, path.stem)


def source(tree: Tree, path: Path) -> Source:
    """A file as a source: where it is if it lies in the folder of runs, else where :func:`filed` puts it.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}): check the path") from error
    inside = path.resolve().is_relative_to(tree.runs.resolve())
    name = path.resolve().relative_to(tree.runs.resolve()).as_posix() if inside else path.name
    return Source(name, digest)


def filed(tree: Tree, path: Path, named: Source) -> None:
    """Copy a file of an experiment into the folder of runs, unless it is there.

    Raises:
        EvaluationError: If another file has its name there.
        InputError: If it cannot be written.
    """
    target = tree.runs / named.path
    try:
        if target.exists():
            if hashlib.sha256(target.read_bytes()).hexdigest() != named.sha256:
                raise EvaluationError(f"{target} holds something else: rename {path}")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, path.read_bytes())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be copied to {target} ({reason}): choose another tree") from error


def publish(place: Place, entry: Entry, evidence: Evidence) -> None:
    """Write an entry and the names of its sources: both or neither.

    An entry that is there keeps its unknown keys, and the order of its keys.

    Raises:
        InputError: If they cannot be written, or what stands there is no entry.
    """
    if place.entry.exists():
        entry = entry.in_place_of(Entry.read(place.entry))
    try:
        with _replacing(place.evidence) as sources, _replacing(place.entry) as shown:
            sources.write_bytes(evidence.to_json().encode())
            shown.write_bytes(entry.to_json().encode())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the entry cannot be written to {place.entry} ({reason}): choose another tree") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        yield partial
