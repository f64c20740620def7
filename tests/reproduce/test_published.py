"""Published numbers agree with each other and with the leaderboard, and every gap has its reasons."""

from __future__ import annotations

import pytest

from empir_plugin.leaderboard.papers import facts_of
from empir_plugin.reproduce.published import COLUMNS, all_differences, codes, legend, table2

ROWS = list(table2().items())


@pytest.mark.parametrize(("place", "row"), ROWS, ids=["-".join(place) for place, _ in ROWS])
def test_every_published_average_is_that_of_its_four_attacks(place: tuple[str, str], row: object) -> None:
    published = table2()[place]
    for numbers in (published.paper, published.repository):
        if numbers:
            assert len(numbers) == len(COLUMNS)
            assert numbers[-1] == pytest.approx(sum(numbers[1:5]) / 4, abs=0.02)


@pytest.mark.parametrize(
    ("place", "model"),
    [
        (("mnist", "baseline"), "mnistconv-fp"),
        (("mnist", "empir"), "empir-mnist"),
        (("cifar10", "baseline"), "cifarconv-fp"),
        (("cifar10", "empir"), "empir-cifar"),
    ],
)
def test_the_leaderboard_quotes_the_same_numbers(place: tuple[str, str], model: str) -> None:
    (claim,) = facts_of(model).claims
    assert float(claim.accuracy) == table2()[place].repository[COLUMNS.index(claim.attack)]


def test_the_gains_of_the_abstract_follow_from_the_repository() -> None:
    gains = {
        dataset: table2()[dataset, "empir"].reference[-1] - table2()[dataset, "baseline"].reference[-1]
        for dataset in ("mnist", "cifar10", "imagenet")
    }
    assert gains == {key: pytest.approx(value, abs=0.06) for key, value in
                     {"mnist": 42.6, "cifar10": 15.2, "imagenet": 10.5}.items()}  # fmt: skip


def test_differences_apply_where_they_should() -> None:
    for dataset, defence in table2():
        for ours in ("released", "paper", "adaptive"):
            letters = codes(ours, dataset, defence).split()
            assert "W" in letters
            assert ("L" in letters) == (ours != "released")
            assert ("F" in letters) == ("fgsm" in defence)


def test_the_legend_explains_exactly_the_letters_in_use() -> None:
    table = legend(["W N", "N L"])
    assert [row[0] for row in table.rows] == ["W", "N", "L"]
    letters = [difference.code for difference in all_differences()]
    assert len(set(letters)) == len(letters)
