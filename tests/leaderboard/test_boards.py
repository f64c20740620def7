"""Boards: the radii RobustBench publishes entries at."""

from __future__ import annotations

import pytest

from empir_plugin.errors import InputError
from empir_plugin.leaderboard.tree import BOARDS, board_of
from empir_plugin.zoo.card import cards


def test_the_radii_are_robustbench_s() -> None:
    published = {name: board.threat.eps_text for name, board in BOARDS.items() if board.in_robustbench}
    assert published == {
        "cifar10/Linf": "8/255",
        "cifar10/L2": "0.5",
        "cifar100/Linf": "8/255",
        "imagenet/Linf": "4/255",
    }
    assert [name for name, board in BOARDS.items() if not board.in_robustbench] == ["mnist/Linf"]


def test_the_models_are_evaluated_at_the_radius_of_their_board() -> None:
    for card in cards().values():
        assert str(board_of(card.dataset, "Linf").threat) == card.threat


def test_there_is_no_other_board() -> None:
    with pytest.raises(InputError, match=r"a board is one of cifar10/Linf, .* got 'mnist/L2'"):
        board_of("mnist", "L2")
