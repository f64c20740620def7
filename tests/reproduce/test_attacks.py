"""The protocol for figures of many networks."""

from __future__ import annotations

from empir_plugin.evaluation.protocols import adaptive
from empir_plugin.reproduce.attacks import strong
from empir_plugin.reproduce.subjects import SUBJECTS
from empir_plugin.zoo.registry import load_model


def test_strong_is_the_pgd_attacks_of_adaptive_and_square() -> None:
    network, ensemble = SUBJECTS["mnist", "baseline"], SUBJECTS["mnist", "empir"]
    for subject, count in ((network, 4), (ensemble, 6)):
        model = load_model(subject.name)
        names = [spec.name for spec in strong.attacks(model, "mnist")]
        assert len(names) == count + 1
        assert names.pop() == "Square", "last: in a cascade it costs time only where PGD fails"
        assert set(names) < {spec.name for spec in adaptive.attacks(model, "mnist")}
        assert not any("apgd" in name or name == "AutoAttack" for name in names)
