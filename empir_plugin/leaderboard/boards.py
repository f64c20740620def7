"""The boards an entry can stand on: a data set, and the one radius at which its entries are comparable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from types import MappingProxyType

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError


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
