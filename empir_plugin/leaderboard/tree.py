"""Boards, and the folder of a leaderboard: entries as RobustBench lays them out, their sources, and their tables."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from empir_plugin._files.atomic import write_atomically
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError
from empir_plugin.leaderboard.entry import Entry, escape_html
from empir_plugin.leaderboard.evidence import Evidence, SourceFile
from empir_plugin.leaderboard.foreign import BY_ATTACKS, BY_CORRUPTIONS, ForeignEntry
from empir_plugin.leaderboard.papers import all_facts
from empir_plugin.leaderboard.publication import publish_files, settle

CORRUPTIONS = "corruptions"
"""RobustBench's name of the threat model of common corruptions, https://arxiv.org/abs/1903.12261."""


@dataclass(frozen=True)
class Board:
    """The ranking of models on one data set under one threat.

    Args:
        dataset: Name of the data set.
        threat: Of all its entries; None for common corruptions, which have no radius.
        n: Number of test images that an entry must cover.
        in_robustbench: Whether RobustBench (https://robustbench.github.io) has this board.
    """

    dataset: str
    threat: Threat | None
    n: int = 10_000
    in_robustbench: bool = True

    @property
    def threat_model(self) -> str:
        """RobustBench's name of the threat: ``Linf``, ``L2`` or ``corruptions``."""
        return CORRUPTIONS if self.threat is None else str(self.threat.norm)

    @property
    def eps_text(self) -> str | None:
        """The eps of its entries as text; None for corruptions."""
        return None if self.threat is None else self.threat.eps_text

    @property
    def folder(self) -> PurePosixPath:
        """Folder of its entries below ``model_info``, as in RobustBench."""
        return PurePosixPath(self.dataset, self.threat_model)

    def __str__(self) -> str:
        return str(self.folder)


def _board(dataset: str, threat: str, n: int = 10_000, *, in_robustbench: bool = True) -> Board:
    return Board(dataset, None if threat == CORRUPTIONS else Threat.parse(threat), n, in_robustbench)


_ALL = (
    _board("cifar10", "Linf:8/255"),
    _board("cifar10", "L2:0.5"),
    _board("cifar10", CORRUPTIONS),
    _board("cifar100", "Linf:8/255"),
    _board("cifar100", CORRUPTIONS),
    _board("imagenet", "Linf:4/255", 5_000),
    _board("imagenet", CORRUPTIONS, 5_000),
    _board("mnist", "Linf:0.3", in_robustbench=False),
)

BOARDS: Mapping[str, Board] = MappingProxyType({str(board): board for board in _ALL})
"""Every board by its folder, such as ``"cifar10/Linf"``."""


def board_of(dataset: str, threat_model: str) -> Board:
    """The board of a data set and a threat model: ``Linf``, ``L2`` or ``corruptions``.

    Raises:
        InputError: If there is no such board.

    Example:
        >>> str(board_of("cifar10", "Linf").threat)
        'Linf:8/255'
    """
    folder = f"{dataset}/{threat_model}"
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

    @property
    def is_own(self) -> bool:
        """Whether the entry is one of this tree's own, and not a file of others."""
        return is_own(self.entry, self.evidence)

    def read(self) -> Entry | ForeignEntry:
        """Read the entry: strictly if it is one of this tree's own.

        Raises:
            InputError: If it cannot be read, or has no accuracy to rank it by.
        """
        return Entry.read(self.entry) if self.is_own else self.read_foreign()

    def read_foreign(self) -> ForeignEntry:
        """Read the entry as one of others.

        Raises:
            InputError: If it cannot be read, or has no accuracy to rank it by.
        """
        return ForeignEntry.read(self.entry, BY_ATTACKS if self.board.threat else BY_CORRUPTIONS)

    def __str__(self) -> str:
        return f"{self.board}/{self.stem}"


def is_own(entry: Path, evidence: Path) -> bool:
    """Whether a file is an entry of this tree's own: it has an evidence file, or the name of a model of this package.

    Args:
        entry: Path of the entry.
        evidence: Path of its evidence file, which may be missing.
    """
    return evidence.exists() or entry.stem in {facts.stem for facts in all_facts().values()}


@dataclass(frozen=True)
class Problem:
    """Something wrong with a file.

    Args:
        path: Of the file.
        reason: What is wrong.
    """

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


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
        """Check that the folder exists, and end a publication that a killed process had begun in it.

        Raises:
            InputError: If it does not exist, or there is one to end and the folder cannot be written.
        """
        if not self.root.is_dir():
            raise InputError(f"there is no leaderboard at {self.root}: pass its folder as --tree")
        settle(self.root)

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
    if is_in_runs(tree, path, source):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, path.read_bytes())
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"{path} cannot be copied to {target} ({reason}): choose another tree") from error


def is_in_runs(tree: Tree, path: Path, source: SourceFile) -> bool:
    """Whether the folder of runs has a source already; the arguments are those of :func:`copy_to_runs`.

    Raises:
        EvaluationError: If the folder has another file of this name.
        InputError: If that file cannot be read.
    """
    target = tree.runs / source.path
    try:
        if not target.exists():
            return False
        found = hashlib.sha256(target.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{target} cannot be read ({error.strerror or error}): choose another tree") from error
    if found != source.sha256:
        raise EvaluationError(f"{target} holds something else: rename {path}")
    return True


def publish(tree: Tree, place: Place, entry: Entry, evidence: Evidence, sources: Mapping[Path, SourceFile]) -> None:
    """Write an entry, its evidence file and the sources that are not in the tree yet: all of them or none.

    If the entry exists, its unknown keys and the order of its keys are kept. Call it with the lock of the tree: see
    :func:`empir_plugin.leaderboard.publication.publishing`.

    Args:
        tree: The leaderboard.
        place: Of the entry.
        entry: The entry.
        evidence: Names its sources.
        sources: The source file of each file.

    Raises:
        EvaluationError: If the folder of runs has another file of the name of a source.
        InputError: If the files cannot be written, or the existing file is not an entry.
    """
    if place.entry.exists():
        old = Entry.read(place.entry).table() if place.evidence.exists() else place.read_foreign().values
        entry = entry.in_place_of(old)
    copied = {tree.runs / source.path: path for path, source in sources.items() if not is_in_runs(tree, path, source)}
    try:
        files = {target: path.read_bytes() for target, path in copied.items()}
        texts = {place.evidence: evidence.to_json().encode(), place.entry: entry.to_json().encode()}
        publish_files(tree.root, files | texts)
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"the entry cannot be written to {place.entry} ({reason}): choose another tree") from error


_HEAD = ("#", "model", "paper", "clean", "AutoAttack", "lowest known", "unreliable", "architecture", "venue")
_ALIGNMENT = ("---:", "---", "---", "---:", "---:", "---:", "---", "---", "---")
_CORRUPTIONS_HEAD = ("#", "model", "paper", "clean", "corruptions", "architecture", "venue")
_CORRUPTIONS_ALIGNMENT = ("---:", "---", "---", "---:", "---:", "---", "---")


Row = tuple[Place, "Entry | ForeignEntry"]


def ranking(tree: Tree) -> tuple[dict[Board, list[Row]], list[Problem]]:
    """The entries of every board, ranked as in RobustBench: by the lowest robust accuracy known.

    Returns:
        The rows of each board that has entries, and the files of others that are left out, with the reasons.

    Raises:
        InputError: If the folder does not exist, or an entry of the tree's own is malformed.
    """
    tree.require()
    boards: dict[Board, list[Row]] = {}
    left_out: list[Problem] = []
    for place in tree.places():
        entry = _read(place)
        if isinstance(entry, Problem):
            left_out.append(entry)
        else:
            boards.setdefault(place.board, []).append((place, entry))
    return {board: sorted(rows, key=lambda row: -float(row[1].lowest_acc)) for board, rows in boards.items()}, left_out


def _read(place: Place) -> Entry | ForeignEntry | Problem:
    """The entry, or what is wrong with it if it is one of others."""
    try:
        return place.read()
    except InputError as error:
        if place.is_own:
            raise
        return Problem(place.entry, reason_of(error, place))


def reason_of(error: InputError, place: Place) -> str:
    """What is wrong with an entry, without its path."""
    return str(error).removeprefix(f"{place.entry} ").removeprefix("is not a leaderboard entry: ")


def markdown_tables(tree: Tree) -> str:
    """A Markdown table for each board with entries, ranked as in RobustBench, and the files that are left out.

    Raises:
        InputError: If the folder does not exist, or an entry of the tree's own is malformed.
    """
    boards, left_out = ranking(tree)
    parts = [_table(board, rows) for board, rows in boards.items()]
    if left_out:
        lines = (f"- {_escape_markdown(escape_html(str(problem)))}" for problem in left_out)
        parts.append("\n".join(["### Files left out", "", *lines]))
    return "\n\n".join(parts) + "\n" if parts else ""


def _table(board: Board, rows: Iterable[Row]) -> str:
    title = f"### {board.dataset}, {board.threat_model}" + (f", eps = {board.eps_text}" if board.eps_text else "")
    head, alignment = (_HEAD, _ALIGNMENT) if board.threat else (_CORRUPTIONS_HEAD, _CORRUPTIONS_ALIGNMENT)
    lines = (_line(_cells(rank, *row)) for rank, row in enumerate(rows, 1))
    return "\n".join([title, "", _line(head), _line(alignment), *lines])


def _cells(rank: int, place: Place, entry: Entry | ForeignEntry) -> Iterator[str]:
    link = entry.link.replace("(", "%28").replace(")", "%29")
    title = _escape_markdown(entry.name)
    yield from (str(rank), _escape_markdown(escape_html(place.stem)), f"[{title}]({link})" if link else title)
    accuracies = (entry.clean_acc, entry.board_acc, *([entry.lowest_acc] if place.board.threat else []))
    yield from (f"{accuracy} %" if accuracy else "" for accuracy in accuracies)
    if place.board.threat:
        yield {True: "yes", False: "no", None: ""}[entry.unreliable]
    yield from (_escape_markdown(text) for text in (entry.architecture, entry.venue))


def _escape_markdown(text: str) -> str:
    """Text of an entry without anything that would end a cell or a link; its HTML entities are valid Markdown."""
    return "".join(f"\\{letter}" if letter in "|[]*_`\\" else letter for letter in text)


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
