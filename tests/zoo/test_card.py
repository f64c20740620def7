"""Model cards: parsing, and networks built from them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from empir_plugin._files import tables as _toml
from empir_plugin.errors import InputError, WeightsError
from empir_plugin.models.activations import Activations
from empir_plugin.models.convert.quantize_ import quantize_
from empir_plugin.models.convert.select import INNER
from empir_plugin.models.ensemble import Ensemble
from empir_plugin.models.layers import quantized_layers
from empir_plugin.models.packing import save_packed
from empir_plugin.zoo import builders
from empir_plugin.zoo.builders import build_model, count_parameters
from empir_plugin.zoo.card import ModelCard, cards, family_cards
from empir_plugin.zoo.quantized.architectures import network

FAMILY = """
dataset = "cifar10"
threats = ["Linf"]
threat = "Linf:8/255"
architecture = "WideResNet-10-1"
help = "train it"
"""
IMAGES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def _made(precision: str, **settings: object) -> nn.Module:
    """A network with weights as if trained, at that precision."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = network("WideResNet-10-1", num_classes=10)
    if precision != "fp":
        quantize_(model, precision, calibration=IMAGES, **settings)  # type: ignore[arg-type]
    return model.eval()


def _row(name: str, precision: str, extra: str = "") -> str:
    return f'[[networks]]\nname = "{name}"\nsummary = "tiny"\nprecision = "{precision}"\nscale = "max"\n{extra}\n'


def _parse(rows: str, ensembles: str = "ensembles = []\n") -> dict[str, ModelCard]:
    return {card.name: card for card in family_cards(_toml.loads(ensembles + FAMILY + rows))}


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder cards take weights from."""
    (tmp_path / "weights").mkdir()
    monkeypatch.setattr(builders, "files", lambda package: tmp_path)
    return tmp_path / "weights"


def _shipped(model: nn.Module, folder: Path, name: str) -> str:
    digest = save_packed(model, folder / f"{name}.safetensors")
    return f'weights = "{name}.safetensors"\nsha256 = "{digest}"'


CONVERSIONS = {
    "auto": ({"activations": "auto"}, ""),
    "signed, which the file tells": ({"activations": "signed"}, ""),
    "learned ranges": ({"activations": "pact"}, 'activations = "pact"'),
    "all layers": ({"layers": "all"}, 'layers = "all"'),
    "named layers": ({"layers": ("block1.*", "fc")}, 'layers = ["block1.*", "fc"]'),
}


@pytest.mark.parametrize(("settings", "text"), CONVERSIONS.values(), ids=CONVERSIONS)
def test_a_card_builds_the_converted_network_with_its_weights(
    settings: dict[str, object], text: str, weights: Path
) -> None:
    model = _made("w2a4", **settings)
    card = _parse(_row("low", "w2a4", f"{_shipped(model, weights, 'low')}\n{text}"))["low"]
    built = build_model(card)
    with torch.no_grad():
        assert torch.equal(built(IMAGES), model(IMAGES))
    assert {name for name, _ in quantized_layers(built)} == {name for name, _ in quantized_layers(model)}
    assert built.weights_loaded
    assert not built.training


def test_members_of_different_precision_vote(weights: Path) -> None:
    members = {precision: _made(precision) for precision in ("fp", "w4a4", "w2a2")}
    rows = "".join(_row(name, name, _shipped(model, weights, name)) for name, model in members.items())
    ensembles = 'ensembles = [{ name = "all", summary = "three", networks = ["w4a4", "w2a2", "fp"] }]\n'
    family = _parse(rows, ensembles)
    assert family["all"].precisions == "w4a4 + w2a2 + fp"
    model = build_model(family["all"])
    assert isinstance(model, Ensemble)
    assert model.leader == 2
    with torch.no_grad():
        wanted = torch.stack([members[name](IMAGES) for name in ("w4a4", "w2a2", "fp")])
        assert torch.equal(model.member_logits(IMAGES), wanted)


def test_a_wrong_conversion_or_another_file_is_refused(weights: Path) -> None:
    shipped = _shipped(_made("w2a4", layers="all"), weights, "low")
    with pytest.raises(WeightsError, match="made for another architecture or precision"):
        build_model(_parse(_row("low", "w2a4", shipped))["low"])
    with pytest.raises(WeightsError, match="not the published file"):
        build_model(_parse(_row("low", "w2a4", shipped.replace('sha256 = "', 'sha256 = "0')))["low"])


def test_a_card_without_weights_warns() -> None:
    card = _parse(_row("low", "w2a4"))["low"]
    assert not card.has_weights
    with pytest.warns(UserWarning, match="low has no weights: train it"):
        assert not build_model(card).weights_loaded


def test_impossible_cards_are_refused() -> None:
    with pytest.raises(InputError, match=r"activations of network 'low' .*auto.*'relu'"):
        _parse(_row("low", "w2a4", 'activations = "relu"'))
    released = FAMILY.replace("WideResNet-10-1", "cifarconv")
    for extra in ('activations = "signed"', 'layers = "all"'):
        with pytest.raises(InputError, match=r"low is not converted.*leave out activations"):
            family_cards(_toml.loads("ensembles = []\n" + released + _row("low", "w2a4", extra)))


def test_parameters_are_counted_as_in_full_precision() -> None:
    by_hand = sum(parameter.numel() for parameter in _made("fp").parameters())
    for extra in ("", 'activations = "pact"'):
        (card,) = _parse(_row("low", "w2a4", extra)).values()
        assert count_parameters(card.networks[0], 10) == by_hand


@pytest.mark.parametrize("card", cards().values(), ids=list(cards()))
def test_the_parameters_on_a_card_are_those_of_the_network(card: ModelCard) -> None:
    for each in card.networks:
        assert each.parameters == count_parameters(each, card.num_classes)


def test_released_cards_are_read_as_before() -> None:
    one = cards()["cifarconv-w4a2"].networks[0]
    assert (one.scale, one.activations, one.layers) == ("none", Activations.UNSIGNED, INNER)
    assert not one.is_converted
