"""Attacks by name: discovered through entry points of any distribution, and created from checked settings."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
import torch
from torch import nn

from empir_plugin.attacks import autoattack, carlini_wagner, gradient, registry, surrogates, transfer
from empir_plugin.attacks.registry import attacks, load_attack
from empir_plugin.attacks.threat import Threat
from empir_plugin.errors import EvaluationError, InputError

OURS = {
    "fgsm": gradient.fgsm(),
    "bim": gradient.bim(),
    "pgd": gradient.pgd(),
    "mim": gradient.mim(),
    "rfgsm": gradient.rfgsm(),
    "uniform-noise": gradient.uniform_noise(),
    "gaussian-noise": gradient.gaussian_noise(),
    "cw": carlini_wagner.CarliniWagner(),
    "cw-empir": carlini_wagner.carlini_wagner_of_empir(),
    "autoattack": autoattack.AutoAttackSuite(),
    "autoattack-plus": autoattack.AutoAttackSuite("plus"),
    "autoattack-rand": autoattack.AutoAttackSuite("rand"),
    "apgd-ce": autoattack.AutoAttackSuite(attacks=("apgd-ce",)),
    "apgd-dlr": autoattack.AutoAttackSuite(attacks=("apgd-dlr",)),
    "apgd-t": autoattack.AutoAttackSuite(attacks=("apgd-t",)),
    "fab": autoattack.AutoAttackSuite(attacks=("fab",)),
    "fab-t": autoattack.AutoAttackSuite(attacks=("fab-t",)),
    "square": autoattack.AutoAttackSuite(attacks=("square",)),
}
NEED_SETTINGS = {"transfer", "on-member"}


@pytest.mark.parametrize("name", list(OURS))
def test_a_name_alone_gives_the_attack_with_its_defaults(name: str) -> None:
    assert load_attack(name) == OURS[name]


def test_every_entry_point_of_this_package_is_tested_here() -> None:
    declared = {point.name for point in distribution("empir-plugin").entry_points.select(group=registry.GROUP)}
    assert declared == {*OURS, *NEED_SETTINGS} <= attacks().keys()


def test_settings_reach_the_attack() -> None:
    voters = surrogates.voters
    assert load_attack("PGD", steps=7, restarts=2) == gradient.pgd(7, restarts=2)
    assert load_attack("cw_empir", surrogate=voters) == carlini_wagner.carlini_wagner_of_empir(surrogate=voters)
    suite = autoattack.AutoAttackSuite(attacks=("square",), queries=10, batch_size=3, surrogate=voters)
    assert load_attack("square", queries=10, batch_size=3, surrogate=voters) == suite
    part = autoattack.AutoAttackSuite(attacks=("apgd-ce",), surrogate=voters)
    assert load_attack("apgd-ce", surrogate=voters) == part
    assert load_attack("autoattack-rand", queries=10) == autoattack.AutoAttackSuite("rand", queries=10)


def test_transfer_takes_its_source_and_attack() -> None:
    source, attack = nn.Flatten(), gradient.bim(1)
    assert load_attack("transfer", source=source, attack=attack) == transfer.Transfer(source, attack)
    assert load_attack("on-member", index=1, attack=attack) == transfer.OnMember(1, attack)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("pdg", {}, r"'pdg'.* did you mean 'pgd'\?"),
        ("Auto-Atack", {}, r"did you mean 'autoattack'\?"),
        ("deepfool!", {}, r"'deepfool!'.* there are apgd-ce, apgd-dlr, apgd-t, autoattack,"),
        ("pgd", {"step": 3}, r"'pgd' .*step: it takes steps, step_size, restarts, loss, surrogate"),
        ("apgd-ce", {"queries": 3}, r"'apgd-ce' .*queries: it takes surrogate, batch_size"),
        ("transfer", {"source": 1}, r"'transfer' needs .*attack: it takes source, attack"),
        ("pgd", {"steps": "40"}, r"'pgd' .*steps='40' .*it takes steps"),
        ("pgd", {"steps": -1}, r"steps must be 0 or more.*got steps=-1"),
    ],
)
def test_errors_name_the_bad_setting_and_the_known_ones(name: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_attack(name, **settings)


def test_loaded_attacks_break_near_images_only() -> None:
    x, y = torch.tensor([[[[0.51, 0.5]]]]), torch.tensor([0])
    model, near, far = nn.Flatten(), Threat.parse("Linf:0.004"), Threat.parse("Linf:0.1")
    for name in ("fgsm", "bim", "pgd", "mim", "rfgsm"):
        assert model(load_attack(name)(model, x, y, far)).argmax(1) == 1
        assert torch.equal(load_attack(name)(model, x, y, near), x)


THEIRS = """
from empir_plugin.attacks import bim

def careful(*, patience: int):
    return bim(patience)

def anything(**settings):
    return bim(**settings)

def an_attack(model, x, y, threat, *, seed=0, indices=None):
    return x

ready = bim(3)

def no_attack():
    return 3
"""
THEIR_POINTS = """[robustbench.attacks]
careful = {module}:careful
anything = {module}:anything
no-attack = {module}:no_attack
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """Put another distribution with the given entry points on the path."""

    def put(points: str) -> str:
        module = "their_attacks_package"
        info = tmp_path / "their_attacks-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-attacks\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(points.format(module=module))
        (tmp_path / f"{module}.py").write_text(THEIRS)
        monkeypatch.syspath_prepend(tmp_path)
        return module

    attacks.cache_clear()
    yield put
    attacks.cache_clear()
    sys.modules.pop("their_attacks_package", None)


def test_attacks_of_another_distribution_are_discovered(install: Callable[[str], str]) -> None:
    install(THEIR_POINTS)
    assert {"careful", "anything", *OURS} <= attacks().keys()
    assert load_attack("careful", patience=3) == gradient.bim(3)
    assert load_attack("anything", steps=3) == gradient.bim(3)
    with pytest.raises(InputError, match=r"'careful' needs .*patience: it takes patience"):
        load_attack("careful")
    with pytest.raises(EvaluationError, match=r"'no-attack' .*callable, got int: tell its authors"):
        load_attack("no-attack")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("not_there:attack", "it cannot be loaded (ModuleNotFoundError"),
        ("{module}:missing", "it cannot be loaded (AttributeError"),
        ("{module}:an_attack", "it is no attack factory (settings in, an attack out) but a function"),
        ("{module}:ready", "it is no attack factory (settings in, an attack out) but a GradientAttack"),
        ("math:pi", "it is no attack factory (settings in, an attack out) but a float"),
    ],
)
def test_a_broken_entry_point_is_a_warning_that_names_its_distribution(
    install: Callable[[str], str], value: str, problem: str
) -> None:
    install(f"[robustbench.attacks]\ncareful = {{module}}:careful\nbad = {value}\n")
    with pytest.warns(UserWarning, match=re.escape(f"attack 'bad' of their-attacks is ignored: {problem}")) as caught:
        found = attacks()
    assert len(caught) == 1
    assert "bad" not in found
    assert {"careful", *OURS} <= found.keys(), "a broken entry point must not affect the others"


def test_a_duplicate_name_keeps_the_first_attack(install: Callable[[str], str]) -> None:
    install("[robustbench.attacks]\npgd = {module}:careful\n")
    with pytest.warns(UserWarning, match="attack 'pgd' of their-attacks is ignored: the name is taken"):
        assert attacks()["pgd"] is gradient.pgd
