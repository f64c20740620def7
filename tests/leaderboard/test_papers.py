"""Facts of papers: complete, and with a name for each model both ways."""

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


def test_every_model_with_weights_has_a_stem_and_back() -> None:
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


def test_a_claim_counts_at_its_own_radius_only() -> None:
    assert facts_of("empir-cifar").reported(Threat.parse("Linf:8/255")) == ""
    assert facts_of("empir-cifar").reported(Threat.parse("Linf:0.1")) == "13.55"
    assert facts_of("empir-mnist").reported(Threat.parse("Linf:0.3")) == "17.51"


@pytest.mark.parametrize("stem", ["Sen2020EMPIR", "Moosavi-Dezfooli2019Robustness", "Jia2022LAS-AT_34_10"])
def test_stems_of_robustbench_pass(stem: str) -> None:
    require_stem(stem)


@pytest.mark.parametrize(
    "stem", ["empir-cifar", "EMPIR", "Sen2020", "Sen20EMPIR", "Sen2020EMPIR_", "Sen 2020 EMPIR", ""]
)
def test_other_stems_do_not(stem: str) -> None:
    with pytest.raises(InputError, match="the stem of an entry must be <Name><Year>"):
        require_stem(stem)


def test_a_paper_of_somebody_else_is_read(tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(PAPER)
    facts = read_facts(path, "my-model")
    assert facts.fields()["name"] == "A &amp; B"
    assert facts.fields()["architecture"] == "ResNet &lt;18&gt;"
    assert facts.reported(Threat.parse("Linf:8/255")) == "50.00"
    with pytest.raises(InputError, match="speaks of my-model, not of 'other'"):
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
def test_what_describes_no_paper(text: str, tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"paper\.toml describes no paper"):
        read_facts(path, "my-model")


def test_texts_are_texts(tmp_path: Path) -> None:
    path = tmp_path / "paper.toml"
    path.write_text(PAPER.replace('stem = "', 'note = 5\nstem = "'))
    with pytest.raises(InputError, match=r"note of model 'my-model'.*got 5: put it in quotes"):
        read_facts(path, "my-model")


def test_unknown_models_and_stems() -> None:
    with pytest.raises(InputError, match="no paper is known for 'other', only for empir-cifar"):
        facts_of("other")
    with pytest.raises(InputError, match="no model of this package has entries named 'Sen2020EMPIR' on imagenet"):
        model_of("Sen2020EMPIR", "imagenet")
