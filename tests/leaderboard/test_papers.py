"""Facts about models: complete, with a stem for each model, and read from files of other papers."""

from __future__ import annotations

from pathlib import Path

import pytest

from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import InputError
from empir_plugin.leaderboard.papers import all_facts, facts_of, model_of, read_facts, require_stem
from empir_plugin.zoo.card import cards

SHIPPED = [card for card in cards().values() if card.has_weights]
PAPER = """
title = "A & B"
link = "https://example.org"
authors = "Ann Other"
venue = "Nowhere 2021"
[[models]]
model = "my-model"
stem = "Other2021A"
dataset = "cifar10"
architecture = "ResNet <18>"
claims = [{ threat = "Linf:8/255", accuracy = "50.00", attack = "PGD" }]
"""


def test_models_and_stems_correspond() -> None:
    assert set(all_facts()) == {card.name for card in SHIPPED}
    for card in SHIPPED:
        facts = facts_of(card.name)
        assert (facts.dataset, facts.number_forward_passes) == (card.dataset, len(card.networks))
        assert model_of(facts.stem, facts.dataset) == card.name
    stems = [(facts.stem, facts.dataset) for facts in all_facts().values()]
    assert len(set(stems)) == len(stems)


def test_empir_is_named_as_robustbench_would_name_it() -> None:
    facts = facts_of("empir-cifar")
    assert facts.stem == "Sen2020EMPIR"
    assert facts.authors == "Sanchari Sen, Balaraman Ravindran, Anand Raghunathan"
    assert (facts.venue, facts.link) == ("ICLR 2020", "https://openreview.net/forum?id=HJem3yHKwH")


def test_an_accuracy_is_reported_at_its_own_eps_only() -> None:
    assert facts_of("empir-cifar").reported_accuracy(Threat.parse("Linf:8/255")) == ""
    assert facts_of("empir-cifar").reported_accuracy(Threat.parse("Linf:0.1")) == "13.55"
    assert facts_of("empir-mnist").reported_accuracy(Threat.parse("Linf:0.3")) == "17.51"


@pytest.mark.parametrize("stem", ["Sen2020EMPIR", "Moosavi-Dezfooli2019Robustness", "Jia2022LAS-AT_34_10"])
def test_stems_of_robustbench_are_valid(stem: str) -> None:
    require_stem(stem)


@pytest.mark.parametrize(
    "stem", ["empir-cifar", "EMPIR", "Sen2020", "Sen20EMPIR", "Sen2020EMPIR_", "Sen 2020 EMPIR", ""]
)
def test_other_stems_are_refused(stem: str) -> None:
    with pytest.raises(InputError, match="the stem of an entry must be <Name><Year>"):
        require_stem(stem)


def test_a_paper_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(PAPER)
    facts = read_facts(path, "my-model")
    assert facts.fields()["name"] == "A &amp; B"
    assert facts.fields()["architecture"] == "ResNet &lt;18&gt;"
    assert facts.reported_accuracy(Threat.parse("Linf:8/255")) == "50.00"
    with pytest.raises(InputError, match=r"my-model.*'other': add it"):
        read_facts(path, "other")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[",
        PAPER.replace("stem", "steem"),
        PAPER.replace("Other2021A", "other"),
        "models = 3",
        "\x00",
        PAPER.replace("50.00", "about 50"),
    ],
)
def test_a_file_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"paper\.toml describes no paper"):
        read_facts(path, "my-model")


def test_a_value_that_is_not_a_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(PAPER.replace('stem = "', 'note = 5\nstem = "'))
    with pytest.raises(InputError, match=r"note of model 'my-model'.*got 5: put it in quotes"):
        read_facts(path, "my-model")


def test_unknown_models_and_stems_are_refused() -> None:
    with pytest.raises(InputError, match=r"'other'.*empir-cifar.*--paper"):
        facts_of("other")
    with pytest.raises(InputError, match=r"'Sen2020EMPIR' on imagenet: see `empir list`"):
        model_of("Sen2020EMPIR", "imagenet")
